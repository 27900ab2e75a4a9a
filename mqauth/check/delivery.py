"""Delivery: replay store, audit file and dead letters, where consumers settle messages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

from mqauth.check import codes
from mqauth.check.findings import Finding
from mqauth.check.target import Rule, Target, mode, strangers
from mqauth.judging.policy import matches
from mqauth.replay.memory import DEFAULT_CAPACITY
from mqauth.wire import destination

_PASSING: Final = tuple(PurePosixPath(path) for path in ("/dev", "/proc", "/run", "/var/run", "/tmp"))  # noqa: S108
_WRITE: Final = 0o022
_FILE: Final = ("audit", "file")
_NAME: Final = ("dead_letters", "name")


def store(target: Target) -> Iterator[Finding]:
    """A replay store that others do not see, or that is too small."""
    consumer, options = target.consumer, target.options
    if consumer is None or not target.is_memory:
        return
    if options.consumers > 1:
        said = f"{options.consumers} consumers, and a store in memory"
        yield codes.REPLAY_MEMORY_SHARED.at(("replay", "store"), said)
    capacity = DEFAULT_CAPACITY if target.replay is None else target.replay.capacity
    kept = consumer.max_lifetime + consumer.leeway + (consumer.max_queue_age or 0)
    ids = (options.rate or 0) * kept
    if ids > capacity:
        said = f"{options.rate} messages a second for {kept} s are {ids} ids, over {capacity}"
        yield codes.REPLAY_CAPACITY.at(("replay", "capacity"), said)


def tables(target: Target) -> Iterator[Finding]:
    """A consumer without what settling needs."""
    if target.consumer is None:
        return
    audits, buries = "audit" in target.present, "dead_letters" in target.present
    if not audits and not buries:
        yield codes.SETTLES_NOTHING.at(("consumer",), "neither [audit] nor [dead_letters]")
    elif not audits:
        yield codes.AUDIT_MISSING.at(("audit",), "[consumer] and [dead_letters], and no [audit]")
    elif not buries:
        yield codes.DEAD_LETTERS_MISSING.at(("dead_letters",), "[consumer] and [audit], and no [dead_letters]")


def audit(target: Target) -> Iterator[Finding]:
    """An audit file that does not last, that others write, or that two consumers want."""
    if target.audit is None:
        return
    path = target.audit.file
    if os.path.exists(path) and not os.path.isfile(path):
        yield codes.AUDIT_NOT_DURABLE.at(_FILE, f"{target.shown(path)} is no regular file")
    elif any(PurePosixPath(os.path.abspath(path)).is_relative_to(passing) for passing in _passing(target)):
        yield codes.AUDIT_NOT_DURABLE.at(_FILE, f"{target.shown(path)} does not outlast a restart")
    if strangers(path) & _WRITE:
        said = f"{target.shown(path)} may be written by others (mode {mode(path)})"
        yield codes.AUDIT_WRITABLE.at(_FILE, said)
    if target.options.consumers > 1 and "{pid}" not in str(path):
        said = f"{target.options.consumers} consumers, and one name"
        yield codes.AUDIT_SHARED.at(_FILE, said)


def dead_letters(target: Target) -> Iterator[Finding]:
    """Dead letters that come back."""
    name, consumer = target.dead_letters, target.consumer
    if name is None or consumer is None:
        return
    places = [place for rule in consumer.allow for place in rule.destinations]
    letters = (destination.kafka(name), destination.rabbitmq("", name))
    if name == consumer.scope or set(letters) & set(places):
        yield codes.DEAD_LETTERS_SOURCE.at(_NAME, f"{name} is what the consumer reads from")
    elif any(matches(place, letter) for place in places for letter in letters):
        yield codes.DEAD_LETTERS_REACHABLE.at(_NAME, f"a rule lets a producer publish to {name}")


def _passing(target: Target) -> tuple[PurePosixPath, ...]:
    """Return where files do not last; a configuration that lies there itself is being tried out."""
    return tuple(path for path in _PASSING if not target.file.absolute().is_relative_to(path))


RULES: Final[tuple[Rule, ...]] = (store, tables, audit, dead_letters)
