"""Rules on exposure: connections that others can read or answer, and files that others can read or write.

Kafka has no URLs of its own. Here ``kafka://host:port?name=value`` has kafka-python's keyword arguments as its
query. Hosts are never looked up: only ``localhost`` and the loopback addresses are this machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

from mqauth.check.findings import Finding, finding
from mqauth.check.target import Path, Target, mode, strangers
from mqauth.keystore.remote.connection import is_loopback

_READ: Final = 0o044
_WRITE: Final = 0o022
_WORLD_READ: Final = 0o004
_ENCRYPTED: Final = frozenset(("SSL", "SASL_SSL"))
_AMQP_TLS: Final = frozenset(
    ("ssl", "ssl_options", "ssl_context", "cafile", "capath", "cadata", "certfile", "keyfile", "no_verify_ssl")
)
_PASSWORDS: Final = frozenset(("password", "sasl_plain_password"))
_END: Final = re.compile("[/?#]")
_YES: Final = frozenset(("true", "t", "yes", "y", "1"))


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
        """Whether the connection is encrypted; kafka-python's default is not."""
        if self.scheme == "kafka":
            return set(self.options.get("security_protocol", ["PLAINTEXT"])) <= _ENCRYPTED
        return self.scheme in ("amqps", "rediss")

    @property
    def is_unverified(self) -> bool:
        """Whether an encrypted connection is made with anyone who answers."""
        if self.scheme in ("amqp", "amqps"):
            # aio-pika verifies only without this option or with 0: even ``=false`` turns verification off.
            return any(value != "0" for value in self.options.get("no_verify_ssl", ()))
        lax = any(value != "required" for value in self.options.get("ssl_cert_reqs", ()))
        checked = {value.lower() for value in self.options.get("ssl_check_hostname", ())} <= _YES
        return self.scheme != "redis" and (lax or not checked)


def connections(target: Target) -> Iterator[Finding]:
    """Find connections to brokers or Redis that are in the clear, or encrypted with anyone who answers."""
    for path, url in _urls(target):
        ignored = sorted(_AMQP_TLS & url.options.keys())
        replay = url.scheme in ("redis", "rediss")
        if url.scheme == "amqp" and ignored:
            yield finding("broker_tls_ignored", path, f"{url} with {', '.join(ignored)}")
        elif not url.is_encrypted and not all(map(is_loopback, url.hosts)):
            yield finding("replay_plaintext" if replay else "broker_plaintext", path, f"{url} is plaintext")
        elif url.is_unverified:
            name = "replay_unverified" if replay else "broker_unverified"
            yield finding(name, path, f"{url} turns verification off")


def writable(target: Target) -> Iterator[Finding]:
    """Find files that decide whom the consumer trusts, and that others may change."""
    for path, place in _trusted(target):
        if strangers(path) & _WRITE:
            yield finding(
                "trust_writable", place, f"{target.shown(path)} may be written by others (mode {mode(path)})"
            )


def readable(target: Target) -> Iterator[Finding]:
    """Find secrets that others may read."""
    producer, file = target.settings.producer, target.file
    passphrase, place = None if producer is None else producer.passphrase_file, ("producer", "passphrase_file")
    if passphrase is not None and strangers(passphrase):
        yield finding(
            "secret_readable", place, f"{target.shown(passphrase)} is open to others (mode {mode(passphrase)})"
        )
    if passphrase is not None and strangers(file) & _WORLD_READ:
        yield finding(
            "config_readable", place, f"{file.name} may be read by everybody and names a passphrase_file"
        )
    if strangers(file) & _READ:
        for where, url in _urls(target):
            if url.has_password:
                yield finding(
                    "secret_readable",
                    where,
                    f"a password for {url} in a file that others may read (mode {mode(file)})",
                )


def _trusted(target: Target) -> Iterator[tuple[FilePath, Path]]:
    """Yield each file that trust rests on, and where it is named."""
    yield target.file, ()
    for source in target.sources:
        for key, path in (("file", source.file), ("ca", source.ca), ("snapshot", source.snapshot)):
            if path is not None:
                yield path, (*source.table.path, key)


def _urls(target: Target) -> Iterator[tuple[Path, _URL]]:
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
    place = _END.split(rest, maxsplit=1)[0]
    servers = place.split(",") if scheme == "kafka" else [place]
    options = parse_qs(text.partition("#")[0].partition("?")[2], keep_blank_values=True)
    return _URL(
        scheme=scheme,
        hosts=[urlsplit(f"{scheme}://{server}").hostname or "" for server in servers],
        options=options,
        has_password=any(":" in one.rpartition("@")[0] for one in servers) or bool(_PASSWORDS & options.keys()),
    )


RULES: Final = (writable, readable, connections)
