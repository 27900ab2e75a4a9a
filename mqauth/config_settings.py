"""What ``mqauth.toml`` may say, table by table: parsed, bounded, and held against itself; nothing is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

from mqauth import destination
from mqauth.auditfile import MIN_BYTES
from mqauth.batching import DEFAULT_LINGER, MAX_LINGER, Batching
from mqauth.claims import MAX_BATCH, is_name
from mqauth.config_table import Table, is_broker_url, is_url
from mqauth.errors import ConfigurationError, MalformedMessage, Reason
from mqauth.flood import DEFAULT_FLOOD_AFTER
from mqauth.keys import MAX_KID
from mqauth.misuse import NUMBERS, Thresholds
from mqauth.policy import Rule
from mqauth.release import WAIVABLE
from mqauth.signer import MAX_LIFETIME
from mqauth.stores.memory import DEFAULT_CAPACITY
from mqauth.times import MAX_LEEWAY

_SOURCES: Final = ("file", "jwks", "discovery")
_REMOTE_KEYS: Final = ("max_stale", "ca", "snapshot", "unsafe_http_loopback")
_SOURCE_KEYS: Final = ("issuer", *_SOURCES, *_REMOTE_KEYS, "publish_delay")
_PRODUCER: Final = (
    "issuer", "subject", "audience", "audiences", "keys", "lifetime", "batch", "linger", "passphrase_env",
    "passphrase_file",
)  # fmt: skip
_HEAD_KEYS: Final = (
    "heads", "heads_key", "heads_every", "heads_seconds", "heads_passphrase_env", "heads_passphrase_file",
)  # fmt: skip
_CONSUMER: Final = (
    "scope", "audience", "max_lifetime", "leeway", "at", "max_queue_age", "append_evidence", "unsigned_headers",
    "require_headers", "user_id", "issuers", "allow",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerSettings:
    """``[producer]``; the arguments of ``Signer``, where its key is, and what broker wrappers batch."""

    table: Table
    issuer: str
    subject: str
    audience: str
    audiences: Mapping[str, str]
    keys: Path
    lifetime: int
    batching: Batching
    passphrase_env: str | None
    passphrase_file: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """Where the keys of an issuer come from: exactly one of ``file``, ``jwks`` and ``discovery``."""

    table: Table
    issuer: str
    file: Path | None
    jwks: str | None
    discovery: bool
    max_stale: int | None
    publish_delay: int | None
    ca: Path | None
    snapshot: Path | None
    unsafe_http_loopback: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerSettings:
    """One of ``[[consumer.issuers]]``."""

    source: SourceSettings
    subjects: Mapping[str, frozenset[str]] | None
    vouches: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSettings:
    """``[consumer]``; the arguments of ``Verifier``, the rules of ``Allow``, and the scope."""

    table: Table
    scope: str | None
    audience: tuple[str, ...]
    max_lifetime: int
    leeway: int
    at: Literal["consume", "append"]
    max_queue_age: int | None
    append_evidence: Literal["interceptor"] | None
    unsigned_headers: Literal["hide", "reject"]
    require_headers: tuple[str, ...]
    user_id: Literal["subject"] | Mapping[str, str] | None
    issuers: tuple[IssuerSettings, ...]
    allow: tuple[Rule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """``[replay]``; ``redis`` is ``None`` for the store in memory."""

    table: Table
    redis: str | None
    capacity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSettings:
    """The keys of ``[audit]`` that begin with ``heads``: where heads are signed, with which key, how often."""

    table: Table
    file: Path
    key: Path
    every: int
    seconds: int
    passphrase_env: str | None
    passphrase_file: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings:
    """``[audit]``."""

    table: Table
    file: Path
    record: Literal["rejections", "all"]
    max_bytes: int | None
    flood_after: int
    unsafe_no_fsync: bool
    heads: HeadSettings | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthoritySettings:
    """One of ``[[release.authorities]]``."""

    source: SourceSettings
    waive: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """``[check]``: what ``mqauth check`` cannot read from the other tables; nothing else uses it.

    Args:
        table: where it stands, ``None`` where it is absent.
        brokers: their URLs, without user and password; nothing connects to them.
        consumers: processes that share the consumer's scope.
        rate: messages a second, all consumers together; 0 for unknown.
        rotation: seconds after which a key is to be replaced.
        accept: codes of findings that are known and wanted.
    """

    table: Table | None = None
    brokers: tuple[str, ...] = ()
    consumers: int = 1
    rate: int = 0
    rotation: int = 90 * 86_400
    accept: tuple[str, ...] = ()


def producer(table: Table) -> ProducerSettings:
    """Parse ``[producer]``."""
    if "passphrase_env" in table.members and "passphrase_file" in table.members:
        raise table.refuse("passphrase_file", "contradicts passphrase_env: one passphrase has one place")
    return ProducerSettings(
        table=table,
        issuer=table.name_of("issuer"),
        subject=table.name_of("subject"),
        audience=_audience(table, "audience", table.name_of("audience")),
        audiences=_audiences(table.table("audiences")),
        keys=table.file_path("keys"),
        lifetime=table.integer("lifetime", 60, least=1, most=MAX_LIFETIME),
        batching=Batching(
            batch=table.integer("batch", 1, least=1, most=MAX_BATCH),
            linger=table.number("linger", DEFAULT_LINGER, least=0, most=MAX_LINGER),
        ),
        passphrase_env=table.optional_name("passphrase_env"),
        passphrase_file=table.optional_file_path("passphrase_file"),
    )


def consumer(table: Table) -> ConsumerSettings:
    """Parse ``[consumer]`` with its issuers and rules."""
    issuers = _issuers(table)
    at = cast(Literal["consume", "append"], table.choice("at", ("consume", "append"), "consume"))
    _check_times(table, at)
    return ConsumerSettings(
        table=table,
        scope=table.optional_name("scope"),
        audience=tuple(_audience(table, "audience", name) for name in table.name_or_names("audience")),
        max_lifetime=table.integer("max_lifetime", 3600, least=1),
        leeway=table.integer("leeway", 5, least=0, most=MAX_LEEWAY),
        at=at,
        max_queue_age=table.optional_integer("max_queue_age", least=1),
        append_evidence=cast(
            Literal["interceptor"] | None, table.choice("append_evidence", ("interceptor",), None)
        ),
        unsigned_headers=cast(
            Literal["hide", "reject"], table.choice("unsigned_headers", ("hide", "reject"), "hide")
        ),
        require_headers=table.names("require_headers", least=0),
        user_id=_user_id(table),
        issuers=issuers,
        allow=tuple(_rule(rule, [issuer.source.issuer for issuer in issuers]) for rule in _rules(table)),
    )


def replay(table: Table) -> ReplaySettings:
    """Parse ``[replay]``."""
    store = table.members.get("store", "memory")
    if store != "memory" and not (isinstance(store, str) and is_url(store, ("redis", "rediss"))):
        raise table.refuse("store", 'must be "memory", redis://... or rediss://...')  # it may hold a password
    capacity = table.integer("capacity", DEFAULT_CAPACITY, least=1)
    return ReplaySettings(table=table, redis=None if store == "memory" else store, capacity=capacity)


def audit(table: Table) -> AuditSettings:
    """Parse ``[audit]``."""
    record = table.choice("record", ("rejections", "all"), "rejections")
    return AuditSettings(
        table=table,
        file=table.file_path("file"),
        record=cast(Literal["rejections", "all"], record),
        max_bytes=table.optional_integer("max_bytes", least=MIN_BYTES),
        flood_after=table.integer("flood_after", DEFAULT_FLOOD_AFTER, least=1),
        unsafe_no_fsync=table.flag("unsafe_no_fsync"),
        heads=_heads(table),
    )


def misuse(table: Table) -> Thresholds:
    """Parse ``[misuse]``; what is left out has its default."""
    default = Thresholds()
    numbers: dict[str, Any] = {
        name: table.integer(name, int(getattr(default, name)), least=0 if name == "learn" else 1)
        for name in NUMBERS
    }
    return Thresholds(**numbers, authorities=frozenset(table.names("authorities", least=0)))


def authorities(release: Table) -> tuple[AuthoritySettings, ...]:
    """Parse ``[[release.authorities]]``."""
    found = release.tables("authorities", (*_SOURCE_KEYS, "waive"))
    settings = tuple(AuthoritySettings(source=_source(table), waive=_waive(table)) for table in found)
    for number, one in enumerate(settings):
        if one.source.issuer in [earlier.source.issuer for earlier in settings[:number]]:
            raise one.source.table.refuse("issuer", "is configured twice")
    return settings


def check(table: Table) -> CheckSettings:
    """Parse ``[check]``."""
    default = CheckSettings()
    return CheckSettings(
        table=table,
        brokers=_brokers(table),
        consumers=table.integer("consumers", default.consumers, least=1),
        rate=table.integer("rate", default.rate, least=1) if "rate" in table.members else default.rate,
        rotation=table.integer("rotation", default.rotation, least=1),
        accept=table.names("accept", least=0),
    )


TABLES: Final = {
    "producer": _PRODUCER,
    "consumer": _CONSUMER,
    "replay": ("store", "capacity"),
    "audit": ("file", "record", "max_bytes", "flood_after", "unsafe_no_fsync", *_HEAD_KEYS),
    "misuse": (*NUMBERS, "authorities"),
    "dead_letters": ("name",),
    "release": ("authorities",),
    "check": ("brokers", "consumers", "rate", "rotation", "accept"),
}
"""Every table a file may have, and the keys it may hold."""


def _heads(table: Table) -> HeadSettings | None:
    """Return where heads are signed, ``None`` where ``heads`` is absent."""
    if "heads" not in table.members:
        for key in _HEAD_KEYS:
            if key in table.members:
                raise table.refuse(key, "only with heads")
        return None
    if "heads_passphrase_env" in table.members and "heads_passphrase_file" in table.members:
        raise table.refuse("heads_passphrase_file", "contradicts heads_passphrase_env")
    return HeadSettings(
        table=table,
        file=table.file_path("heads"),
        key=table.file_path("heads_key"),
        every=table.integer("heads_every", 1000, least=1),
        seconds=table.integer("heads_seconds", 60, least=1),
        passphrase_env=table.optional_name("heads_passphrase_env"),
        passphrase_file=table.optional_file_path("heads_passphrase_file"),
    )


def _brokers(table: Table) -> tuple[str, ...]:
    """Return URLs of brokers; one may hold a password and is not repeated."""
    urls = table.names("brokers", least=0)
    if not all(is_broker_url(url) for url in urls):
        raise table.refuse("brokers", "must be amqp://..., amqps://... or kafka://host:port")
    return urls


def _audience(table: Table, key: str, name: str) -> str:
    """Return an audience, which is never a wildcard."""
    if "*" in name:
        raise table.refuse(key, "must be a name, never a wildcard")
    return name


def _audiences(table: Table | None) -> dict[str, str]:
    """Return the audiences by destination, each destination canonical."""
    if table is None:
        return {}
    for place in table.members:
        try:
            destination.parse(place)
        except MalformedMessage as error:
            raise table.refuse(place, str(error)) from error
    return {place: _audience(table, place, table.name_of(place)) for place in table.members}


def _issuers(table: Table) -> tuple[IssuerSettings, ...]:
    """Return the issuers, at least one, none twice."""
    found = table.tables("issuers", (*_SOURCE_KEYS, "subjects", "vouches"))
    if not found:
        raise table.refuse("issuers", "required: at least one [[consumer.issuers]]")
    issuers = tuple(_issuer(issuer) for issuer in found)
    for number, issuer in enumerate(issuers):
        if issuer.source.issuer in [earlier.source.issuer for earlier in issuers[:number]]:
            raise issuer.source.table.refuse("issuer", "is configured twice")
    return issuers


def _issuer(table: Table) -> IssuerSettings:
    """Return one issuer; it vouches for all its subjects or pins them."""
    subjects, vouches = _subjects(table.table("subjects")), table.flag("vouches")
    if vouches and subjects is not None:
        raise table.refuse("vouches", "contradicts subjects: an issuer vouches for all or pins them")
    return IssuerSettings(source=_source(table), subjects=subjects, vouches=vouches)


def _subjects(table: Table | None) -> dict[str, frozenset[str]] | None:
    """Return the pinned subjects by kid or ``"*"``."""
    if table is None:
        return None
    if not table.members:
        raise table.refuse("", 'names no kid; "*" stands for all')
    for kid in table.members:
        if not is_name(kid, 1, MAX_KID):
            raise table.refuse(kid, f'must be a kid of at most {MAX_KID} characters, or "*"')
    return {kid: frozenset(table.names(kid)) for kid in table.members}


def _source(table: Table) -> SourceSettings:
    """Return where keys come from: exactly one source, and only what belongs to it."""
    named = [key for key in _SOURCES if key in table.members]
    if len(named) != 1:
        raise table.refuse("", f"needs one of file, jwks and discovery, not {' and '.join(named) or 'none'}")
    for key in _REMOTE_KEYS:
        if key in table.members and named == ["file"]:
            raise table.refuse(key, "belongs to jwks and discovery, not to file")
    if "discovery" in table.members and not table.flag("discovery"):
        raise table.refuse("discovery", "must be true or left out")
    return SourceSettings(
        table=table,
        issuer=table.name_of("issuer"),
        file=table.optional_file_path("file"),
        jwks=table.optional_url("jwks", ("https", "http")),
        discovery=table.flag("discovery"),
        max_stale=table.optional_integer("max_stale", least=1),
        publish_delay=table.optional_integer("publish_delay", least=0),
        ca=table.optional_file_path("ca"),
        snapshot=table.optional_file_path("snapshot"),
        unsafe_http_loopback=table.flag("unsafe_http_loopback"),
    )


def _check_times(table: Table, at: Literal["consume", "append"]) -> None:
    """Refuse settings of one clock beside the other."""
    if at == "append" and "max_queue_age" not in table.members:
        raise table.refuse("max_queue_age", 'required with at = "append"')
    for key in ("max_queue_age", "append_evidence"):
        if at == "consume" and key in table.members:
            raise table.refuse(key, 'only with at = "append"')


def _user_id(table: Table) -> Literal["subject"] | dict[str, str] | None:
    """Return how the AMQP user is held against the subject."""
    found: Any = table.members.get("user_id")
    if found is None or found == "subject":
        return cast(Literal["subject"] | None, found)
    if not isinstance(found, dict):
        raise table.refuse("user_id", 'must be "subject" or a table of user to subject')
    users = cast(Table, table.table("user_id"))
    return {user: users.name_of(user) for user in users.members}


def _rules(table: Table) -> list[Table]:
    """Return the tables of the rules."""
    return table.tables("allow", ("subject", "issuer", "destinations"))


def _rule(table: Table, issuers: list[str]) -> Rule:
    """Return one rule, of an issuer that is configured."""
    issuer = table.optional_name("issuer")
    if issuer is None and len(issuers) > 1:
        raise table.refuse("issuer", "required where several issuers are configured")
    if issuer is not None and issuer not in issuers:
        raise table.refuse("issuer", "is not among [[consumer.issuers]]")
    subject, destinations = table.name_of("subject"), table.names("destinations")
    try:
        return Rule(subject=subject, destinations=destinations, issuer=issuer)
    except ConfigurationError as error:
        raise table.refuse("destinations", str(error)) from error


def _waive(table: Table) -> tuple[Reason, ...]:
    """Return the reasons an authority may waive."""
    waived = table.names("waive", least=0)
    for name in waived:
        if name not in WAIVABLE:
            raise table.refuse("waive", f"may hold {', '.join(WAIVABLE)}")
    return tuple(Reason(name) for name in waived)
