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

from mqauth.check.rule import Finding, Target, finding, mode, on, strangers
from mqauth.config.consumer_settings import ConsumerSettings
from mqauth.config.settings import DeadLettersSettings
from mqauth.config.toml_file import Place
from mqauth.http.connection import is_loopback
from mqauth.judging.policy import matches
from mqauth.stores.file import BYTES_AN_ID
from mqauth.wire import destination

_WRITE: Final = 0o022
_TLS_OPTIONS: Final = frozenset(
    (
        "ssl",
        "ssl_options",
        "ssl_context",
        "cafile",
        "capath",
        "cadata",
        "certfile",
        "keyfile",
        "no_verify_ssl",
    )
)
"""Options of TLS, which clients ignore in a URL without it."""


class _URL(NamedTuple):
    """The parts of a URL, which may have several servers."""

    scheme: str
    hosts: list[str]
    options: Mapping[str, list[str]]
    has_password: bool

    def __str__(self) -> str:
        return f"{self.scheme}://{','.join(self.hosts)}"

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection is encrypted at all."""
        if self.scheme == "kafka":
            # kafka-python's default is not encrypted.
            protocols = self.options.get("security_protocol", ["PLAINTEXT"])
            return set(protocols) <= {"SSL", "SASL_SSL"}
        return self.scheme in ("amqps", "rediss")

    @property
    def is_unverified(self) -> bool:
        """Whether an encrypted connection is made with anyone who answers."""
        if self.scheme in ("amqp", "amqps"):
            # aio-pika verifies only without this option or with 0: even ``=false`` turns
            # verification off.
            return any(value != "0" for value in self.options.get("no_verify_ssl", ()))
        if self.scheme == "redis":
            return False

        requirements = self.options.get("ssl_cert_reqs", ())
        if any(value != "required" for value in requirements):
            return True
        hostname = {value.lower() for value in self.options.get("ssl_check_hostname", ())}
        return not hostname <= {"true", "t", "yes", "y", "1"}


def connections(target: Target) -> Iterator[Finding]:
    """Find connections to brokers or Redis that are in the clear, or encrypted with anyone who answers."""
    for path, url in _urls(target):
        ignored = sorted(_TLS_OPTIONS & url.options.keys())
        is_redis = url.scheme in ("redis", "rediss")
        if url.scheme == "amqp" and ignored:
            yield finding("broker_tls_ignored", path, f"{url} with {', '.join(ignored)}")
        elif not url.is_encrypted and not all(map(is_loopback, url.hosts)):
            code = "replay_plaintext" if is_redis else "broker_plaintext"
            yield finding(code, path, f"{url} is plaintext")
        elif url.is_unverified:
            code = "replay_unverified" if is_redis else "broker_unverified"
            yield finding(code, path, f"{url} turns verification off")


def writable(target: Target) -> Iterator[Finding]:
    """Find files that decide whom the consumer trusts, and that others may change."""
    trusted: list[tuple[Path | None, Place]] = [(target.file, ())]
    trusted += _files(target, "replay.file", "consumer.opa.ca", "producer.identity.ca")
    trusted += [(reference.ca, signs.at) for signs, reference in target.references]
    for source in target.sources:
        for key in ("file", "ca", "snapshot"):
            trusted.append((getattr(source, key), (*source.table.path, key)))

    for path, at in trusted:
        if path is not None and strangers(path) & _WRITE:
            message = f"{target.shown(path)} may be written by others (mode {mode(path)})"
            yield finding("trust_writable", at, message)


def readable(target: Target) -> Iterator[Finding]:
    """Find secrets that others may read."""
    passphrases = _files(
        target,
        "producer.passphrase_file",
        "audit.heads_passphrase_file",
        "authority.passphrase_file",
        "authority.heads_passphrase_file",
    )
    secrets = list(passphrases)
    secrets += _files(
        target,
        "consumer.opa.token_file",
        "producer.identity.credential.client_secret_file",
    )
    secrets += [(reference.secret, signs.at) for signs, reference in target.references]
    for path, at in secrets:
        if path is not None and strangers(path):
            message = f"{target.shown(path)} is open to others (mode {mode(path)})"
            yield finding("secret_readable", at, message)

    if passphrases and strangers(target.file) & 0o004:
        message = (
            f"{target.file.name} may be read by everybody and names a passphrase_file"
        )
        yield finding("config_readable", passphrases[0][1], message)

    # The file is a secret itself where a URL in it has a password.
    if strangers(target.file) & 0o044:
        for at, url in _urls(target):
            if url.has_password:
                message = f"a password for {url} in a file that others may read (mode {mode(target.file)})"
                yield finding("secret_readable", at, message)


def _files(target: Target, *settings: str) -> list[tuple[Path | None, Place]]:
    """Return the files that settings name, each with its setting; a table may be missing."""
    files: list[tuple[Path | None, Place]] = []
    for setting in settings:
        path = tuple(setting.split("."))
        value: Any = target.settings
        for part in path:
            value = getattr(value, part, None)
        if value is not None:
            files.append((value, path))
    return files


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

    has_password = any(":" in server.rpartition("@")[0] for server in servers)
    if not options.keys().isdisjoint(("password", "sasl_plain_password")):
        has_password = True
    return _URL(
        scheme=scheme,
        hosts=[urlsplit(f"{scheme}://{server}").hostname or "" for server in servers],
        options=options,
        has_password=has_password,
    )


@on("consumer")
def store(target: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find a replay store that is missing, unseen by other consumers, too small, or gone with the next restart."""
    replay = target.replay
    options = target.options
    if replay is None or replay.kind == "redis":
        return
    if replay.kind == "none":
        yield finding("replay_off", ("replay", "store"), 'store = "none"')
        return

    at = ("replay", "store")
    at_capacity = ("replay", "capacity")
    kind = "in memory"
    capacity = replay.capacity
    if replay.file is not None:
        at = at_capacity = ("replay", "file")
        kind = "in a file of one process"
        # A file has as many ids as its disk has room for.
        with suppress(OSError):
            capacity = shutil.disk_usage(replay.file.parent).free // BYTES_AN_ID
        if _is_temporary(target, replay.file):
            message = f"{target.shown(replay.file)} does not outlast a restart"
            yield finding("replay_not_durable", at, message)

    if options.consumers > 1:
        message = f"{options.consumers} consumers, and a store {kind}"
        yield finding("replay_memory_shared", at, message)

    kept = consumer.max_lifetime + consumer.leeway + (consumer.max_queue_age or 0)
    ids = (options.rate or 0) * kept
    if ids > capacity:
        message = f"{options.rate} messages a second for {kept} s are {ids} ids, over {capacity}"
        yield finding("replay_capacity", at_capacity, message)


@on("consumer")
def tables(target: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find a consumer that does not try itself at its start, or without the tables that settling needs."""
    if not consumer.self_test:
        yield finding("self_test_off", ("consumer", "self_test"), "off")

    has_audit = "audit" in target.present
    has_letters = "dead_letters" in target.present
    if not has_audit and not has_letters:
        message = "neither [audit] nor [dead_letters]"
        yield finding("settles_nothing", ("consumer",), message)
    elif not has_audit:
        message = "[consumer] and [dead_letters], and no [audit]"
        yield finding("audit_missing", ("audit",), message)
    elif not has_letters:
        message = "[consumer] and [audit], and no [dead_letters]"
        yield finding("dead_letters_missing", ("dead_letters",), message)


def audit(target: Target) -> Iterator[Finding]:
    """Find an audit file that does not last, or that others may write or the user may not."""
    for at, path in target.audit_files:
        shown = target.shown(path)
        exists = os.path.exists(path)
        if exists and not os.path.isfile(path):
            yield finding("audit_not_durable", at, f"{shown} is no regular file")
        elif _is_temporary(target, path):
            yield finding("audit_not_durable", at, f"{shown} does not outlast a restart")

        # A name that is filled in later is not looked at.
        is_usable = "{" in str(path) or os.access(
            path if exists else path.parent, os.W_OK
        )
        if strangers(path) & _WRITE:
            message = f"{shown} may be written by others (mode {mode(path)})"
            yield finding("audit_writable", at, message)
        elif not is_usable:
            message = f"{shown} cannot be written by this user"
            yield finding("audit_unwritable", at, message)


def _is_temporary(target: Target, path: Path) -> bool:
    """Tell whether a file does not outlast a restart of the machine."""
    # A configuration that lies in a temporary folder itself is only being tried out.
    configuration = target.file.absolute()
    file = Path(os.path.abspath(path))
    return any(
        file.is_relative_to(folder) and not configuration.is_relative_to(folder)
        for folder in ("/dev", "/proc", "/run", "/var/run", "/tmp")  # noqa: S108
    )


def shared(target: Target) -> Iterator[Finding]:
    """Find an audit file that two processes write."""
    consumers = target.options.consumers
    settings = target.settings.audit
    # In containers each process has the number 1.
    is_distinct = settings is None or any(
        name in str(settings.file) for name in ("{host}", "{instance}")
    )
    if consumers > 1 and not is_distinct:
        message = f"{consumers} consumers, and a name that two of them may share"
        yield finding("audit_shared", ("audit", "file"), message)

    files = [os.path.abspath(path) for _, path in target.audit_files]
    if len(files) > 1 and len(set(files)) == 1:
        message = "the consumer and the authority of this file write one"
        yield finding("audit_shared", ("authority", "audit"), message)


@on("dead_letters")
def dead_letters(target: Target, settings: DeadLettersSettings) -> Iterator[Finding]:
    """Find dead letters that the consumer would receive again."""
    consumer = target.settings.consumer
    if consumer is None:
        return

    at = ("dead_letters", "name")
    name = settings.name
    letters = (destination.kafka(name), destination.rabbitmq("", name))
    destinations = [allowed for rule in consumer.allow for allowed in rule.destinations]
    if name == consumer.scope or set(letters) & set(destinations):
        message = f"{name} is what the consumer reads from"
        yield finding("dead_letters_source", at, message)
    elif any(matches(allowed, letter) for allowed in destinations for letter in letters):
        message = f"a rule lets a producer publish to {name}"
        yield finding("dead_letters_reachable", at, message)


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
