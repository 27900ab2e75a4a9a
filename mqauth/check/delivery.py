"""Rules on delivery: the replay store, the audit file and the dead letters of a consumer that settles messages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

from mqauth.check.findings import Finding, finding
from mqauth.check.target import Target, mode, strangers
from mqauth.judging.policy import matches
from mqauth.replay.memory import DEFAULT_CAPACITY
from mqauth.wire import destination

_TEMPORARY: Final = tuple(PurePosixPath(path) for path in ("/dev", "/proc", "/run", "/var/run", "/tmp"))  # noqa: S108
_WRITE: Final = 0o022
_FILE: Final = ("audit", "file")
_NAME: Final = ("dead_letters", "name")


def store(target: Target) -> Iterator[Finding]:
    """Find a replay store that other consumers do not see, or that is too small."""
    consumer, replay, options = target.settings.consumer, target.settings.replay, target.options
    if consumer is None or not target.is_memory:
        return
    if options.consumers > 1:
        yield finding(
            "replay_memory_shared", ("replay", "store"), f"{options.consumers} consumers, and a store in memory"
        )
    capacity = DEFAULT_CAPACITY if replay is None else replay.capacity
    kept = consumer.max_lifetime + consumer.leeway + (consumer.max_queue_age or 0)
    ids = (options.rate or 0) * kept
    if ids > capacity:
        yield finding(
            "replay_capacity",
            ("replay", "capacity"),
            f"{options.rate} messages a second for {kept} s are {ids} ids, over {capacity}",
        )


def tables(target: Target) -> Iterator[Finding]:
    """Find a consumer without the tables that settling needs."""
    if target.settings.consumer is None:
        return
    audited, buried = "audit" in target.present, "dead_letters" in target.present
    if not audited and not buried:
        yield finding("settles_nothing", ("consumer",), "neither [audit] nor [dead_letters]")
    elif not audited:
        yield finding("audit_missing", ("audit",), "[consumer] and [dead_letters], and no [audit]")
    elif not buried:
        yield finding("dead_letters_missing", ("dead_letters",), "[consumer] and [audit], and no [dead_letters]")


def audit(target: Target) -> Iterator[Finding]:
    """Find an audit file that does not last, that others may write, or that two consumers share."""
    if target.settings.audit is None:
        return
    path, consumers = target.settings.audit.file, target.options.consumers
    shown = target.shown(path)
    # A configuration that lies in a temporary folder itself is only being tried out.
    temporary = [folder for folder in _TEMPORARY if not target.file.absolute().is_relative_to(folder)]
    if os.path.exists(path) and not os.path.isfile(path):
        yield finding("audit_not_durable", _FILE, f"{shown} is no regular file")
    elif any(PurePosixPath(os.path.abspath(path)).is_relative_to(folder) for folder in temporary):
        yield finding("audit_not_durable", _FILE, f"{shown} does not outlast a restart")
    if strangers(path) & _WRITE:
        yield finding("audit_writable", _FILE, f"{shown} may be written by others (mode {mode(path)})")
    if consumers > 1 and "{pid}" not in str(path):
        yield finding("audit_shared", _FILE, f"{consumers} consumers, and one name")


def dead_letters(target: Target) -> Iterator[Finding]:
    """Find dead letters that the consumer would receive again."""
    settings, consumer = target.settings.dead_letters, target.settings.consumer
    if settings is None or consumer is None:
        return
    name = settings.name
    places = [place for rule in consumer.allow for place in rule.destinations]
    letters = (destination.kafka(name), destination.rabbitmq("", name))
    if name == consumer.scope or set(letters) & set(places):
        yield finding("dead_letters_source", _NAME, f"{name} is what the consumer reads from")
    elif any(matches(place, letter) for place in places for letter in letters):
        yield finding("dead_letters_reachable", _NAME, f"a rule lets a producer publish to {name}")


RULES: Final = (store, tables, audit, dead_letters)
