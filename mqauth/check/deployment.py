"""Rules on deployment: connections and files that others can reach, and what a consumer needs to settle messages.

Kafka has no URLs of its own. Here ``kafka://host:port?name=value`` has kafka-python's keyword arguments as its
query. Hosts are never looked up: only ``localhost`` and the loopback addresses are this machine.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

from mqauth.check.rule import Finding, Target, finding, mode, on, strangers, those
from mqauth.config.consumer_settings import ConsumerSettings
from mqauth.config.settings import DeadLettersSettings
from mqauth.config.toml_file import Place
from mqauth.http.connection import is_loopback
from mqauth.judging.policy import matches
from mqauth.stores.file import BYTES_AN_ID
from mqauth.wire import destination

_WRITE: Final = 0o022


class _URL(NamedTuple):
    """The parts of a URL, which may have several servers."""

    scheme: str
    hosts: list[str]
    options: Mapping[str, list[str]]
    has_password: bool

    def __str__(self) -> str:
        return f"{self.scheme}://{','.join(self.hosts)}"

    @property
    def is_unverified(self) -> bool:
        """Whether an encrypted connection is made with anyone who answers."""
        if self.scheme in ("amqp", "amqps"):
            # aio-pika verifies only without this option or with 0: even ``=false`` turns verification off.
            return any(value != "0" for value in self.options.get("no_verify_ssl", ()))
        lax = any(value != "required" for value in self.options.get("ssl_cert_reqs", ()))
        hostname = {value.lower() for value in self.options.get("ssl_check_hostname", ())}
        return self.scheme != "redis" and (
            lax or not hostname <= {"true", "t", "yes", "y", "1"}
        )


def connections(target: Target) -> Iterator[Finding]:
    """Find connections to brokers or Redis that are in the clear, or encrypted with anyone who answers."""
    for path, url in _urls(target):
        options = "ssl ssl_options ssl_context cafile capath cadata certfile keyfile no_verify_ssl"
        ignored = sorted({*options.split()} & url.options.keys())
        replay = url.scheme in ("redis", "rediss")
        # kafka-python's default is not encrypted.
        protocols = url.options.get("security_protocol", ["PLAINTEXT"])
        encrypted = (
            set(protocols) <= {"SSL", "SASL_SSL"}
            if url.scheme == "kafka"
            else url.scheme in ("amqps", "rediss")
        )
        if url.scheme == "amqp" and ignored:
            yield finding("broker_tls_ignored", path, f"{url} with {', '.join(ignored)}")
        elif not encrypted and not all(map(is_loopback, url.hosts)):
            yield finding(
                "replay_plaintext" if replay else "broker_plaintext",
                path,
                f"{url} is plaintext",
            )
        elif url.is_unverified:
            yield finding(
                "replay_unverified" if replay else "broker_unverified",
                path,
                f"{url} turns verification off",
            )


def writable(target: Target) -> Iterator[Finding]:
    """Find files that decide whom the consumer trusts, and that others may change."""
    trusted: list[tuple[Path | None, Place]] = [
        (target.file, ()),
        *_named(target, "replay.file", "consumer.opa.ca", "producer.identity.ca"),
    ]
    trusted += [(reference.ca, signs.at) for signs, reference in target.references]
    trusted += [
        (getattr(source, key), (*source.table.path, key))
        for source in target.sources
        for key in ("file", "ca", "snapshot")
    ]
    return (
        finding(
            "trust_writable",
            at,
            f"{target.shown(path)} may be written by others (mode {mode(path)})",
        )
        for path, at in trusted
        if path is not None and strangers(path) & _WRITE
    )


def readable(target: Target) -> Iterator[Finding]:
    """Find secrets that others may read."""
    passphrases = _named(
        target,
        "producer.passphrase_file",
        "audit.heads_passphrase_file",
        "authority.passphrase_file",
        "authority.heads_passphrase_file",
    )
    secrets: list[tuple[Path | None, Place]] = [
        *passphrases,
        *_named(
            target,
            "consumer.opa.token_file",
            "producer.identity.credential.client_secret_file",
        ),
    ]
    secrets += [(reference.secret, signs.at) for signs, reference in target.references]
    yield from (
        finding(
            "secret_readable",
            named,
            f"{target.shown(secret)} is open to others (mode {mode(secret)})",
        )
        for secret, named in secrets
        if secret is not None and strangers(secret)
    )
    if passphrases and strangers(target.file) & 0o004:
        yield finding(
            "config_readable",
            passphrases[0][1],
            f"{target.file.name} may be read by everybody and names a passphrase_file",
        )
    yield from (
        finding(
            "secret_readable",
            where,
            f"a password for {url} in a file that others may read (mode {mode(target.file)})",
        )
        for where, url in _urls(target)
        if strangers(target.file) & 0o044 and url.has_password
    )


def _named(target: Target, *settings: str) -> list[tuple[Path | None, Place]]:
    """Return the files that settings name, each with where it is named; a table may be missing."""
    named: list[tuple[Path | None, Place]] = []
    for setting in settings:
        path = tuple(setting.split("."))
        value: Any = target.settings
        for part in path:
            value = getattr(value, part, None)
        named += [] if value is None else [(value, path)]
    return named


def _urls(target: Target) -> Iterator[tuple[Place, _URL]]:
    """Yield each URL of the file, and where it stands."""
    for number, text in enumerate(target.options.brokers):
        yield ("check", "brokers", number), _parsed(text)
    replay = target.settings.replay
    if replay is not None and replay.redis is not None:
        yield ("replay", "store"), _parsed(replay.redis)


def _parsed(text: str) -> _URL:
    """Return the parts of a text that the configuration's reader has accepted as a URL."""
    scheme, _, rest = text.partition("://")
    # A scheme in capitals is the same one (RFC 3986, section 3.1).
    scheme = scheme.lower()
    authority = re.compile("[/?#]").split(rest, maxsplit=1)[0]
    servers = authority.split(",") if scheme == "kafka" else [authority]
    options = parse_qs(text.partition("#")[0].partition("?")[2], keep_blank_values=True)
    return _URL(
        scheme=scheme,
        hosts=[urlsplit(f"{scheme}://{server}").hostname or "" for server in servers],
        options=options,
        has_password=any(":" in server.rpartition("@")[0] for server in servers)
        or not options.keys().isdisjoint(("password", "sasl_plain_password")),
    )


@on("consumer")
def store(target: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find a replay store that is missing, unseen by other consumers, too small, or gone with the next restart."""
    replay, options = target.replay, target.options
    if replay is None or replay.kind == "redis":
        return
    if replay.kind == "none":
        yield finding("replay_off", ("replay", "store"), 'store = "none"')
        return
    at, where, capacity = ("replay", "store"), "in memory", replay.capacity
    if replay.file is not None:
        at, where = ("replay", "file"), "in a file of one process"
        with suppress(OSError):
            capacity = shutil.disk_usage(replay.file.parent).free // BYTES_AN_ID
    kept = consumer.max_lifetime + consumer.leeway + (consumer.max_queue_age or 0)
    ids = (options.rate or 0) * kept
    yield from those(
        (
            replay.file is not None and _is_temporary(target, replay.file),
            "replay_not_durable",
            at,
            f"{target.shown(replay.file or target.file)} does not outlast a restart",
        ),
        (
            options.consumers > 1,
            "replay_memory_shared",
            at,
            f"{options.consumers} consumers, and a store {where}",
        ),
        (
            ids > capacity,
            "replay_capacity",
            ("replay", "capacity") if replay.file is None else at,
            f"{options.rate} messages a second for {kept} s are {ids} ids, over {capacity}",
        ),
    )


@on("consumer")
def tables(target: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find a consumer that does not try itself at its start, or without the tables that settling needs."""
    audited, buried = "audit" in target.present, "dead_letters" in target.present
    return those(
        (not consumer.self_test, "self_test_off", ("consumer", "self_test"), "off"),
        (
            not audited and not buried,
            "settles_nothing",
            ("consumer",),
            "neither [audit] nor [dead_letters]",
        ),
        (
            buried and not audited,
            "audit_missing",
            ("audit",),
            "[consumer] and [dead_letters], and no [audit]",
        ),
        (
            audited and not buried,
            "dead_letters_missing",
            ("dead_letters",),
            "[consumer] and [audit], and no [dead_letters]",
        ),
    )


def audit(target: Target) -> Iterator[Finding]:
    """Find an audit file that does not last, that others may write, or that two processes share."""
    for at, path in target.audit_files:
        shown = target.shown(path)
        odd = os.path.exists(path) and not os.path.isfile(path)
        open_ = strangers(path) & _WRITE
        # A name that is filled in later is not looked at.
        usable = "{" in str(path) or os.access(
            path if os.path.exists(path) else path.parent, os.W_OK
        )
        yield from those(
            (odd, "audit_not_durable", at, f"{shown} is no regular file"),
            (
                not odd and _is_temporary(target, path),
                "audit_not_durable",
                at,
                f"{shown} does not outlast a restart",
            ),
            (
                open_,
                "audit_writable",
                at,
                f"{shown} may be written by others (mode {mode(path)})",
            ),
            (
                not open_ and not usable,
                "audit_unwritable",
                at,
                f"{shown} cannot be written by this user",
            ),
        )


def _is_temporary(target: Target, path: Path) -> bool:
    """Tell whether a file does not outlast a restart of the machine."""
    # A configuration that lies in a temporary folder itself is only being tried out.
    tried, kept = target.file.absolute(), Path(os.path.abspath(path))
    return any(
        kept.is_relative_to(folder) and not tried.is_relative_to(folder)
        for folder in ("/dev", "/proc", "/run", "/var/run", "/tmp")  # noqa: S108
    )


def shared(target: Target) -> Iterator[Finding]:
    """Find an audit file that two processes write."""
    settings, own, consumers = (
        target.settings.audit,
        dict(target.audit_files),
        target.options.consumers,
    )
    # In containers each process has the number 1.
    named = settings is None or any(
        name in str(settings.file) for name in ("{host}", "{instance}")
    )
    both = len(own) > 1 and len({os.path.abspath(path) for path in own.values()}) == 1
    return those(
        (
            consumers > 1 and not named,
            "audit_shared",
            ("audit", "file"),
            f"{consumers} consumers, and a name that two of them may share",
        ),
        (
            both,
            "audit_shared",
            ("authority", "audit"),
            "the consumer and the authority of this file write one",
        ),
    )


@on("dead_letters")
def dead_letters(target: Target, settings: DeadLettersSettings) -> Iterator[Finding]:
    """Find dead letters that the consumer would receive again."""
    at, name, consumer = ("dead_letters", "name"), settings.name, target.settings.consumer
    if consumer is None:
        return
    destinations = [allowed for rule in consumer.allow for allowed in rule.destinations]
    letters = (destination.kafka(name), destination.rabbitmq("", name))
    if name == consumer.scope or set(letters) & set(destinations):
        yield finding(
            "dead_letters_source", at, f"{name} is what the consumer reads from"
        )
    elif any(matches(allowed, letter) for allowed in destinations for letter in letters):
        yield finding(
            "dead_letters_reachable", at, f"a rule lets a producer publish to {name}"
        )


RULES: Final = (
    writable,
    readable,
    connections,
    store,
    tables,
    audit,
    shared,
    dead_letters,
)
