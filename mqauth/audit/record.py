"""Audit records: what is recorded of a verdict, in schema version 1, and how a log of records is queried.

A record never holds a token, a body or a key. Whatever an attacker may have written is cut to a bounded length and
escaped, and it stands under ``claimed`` until the token's signature has been verified. Queries read the files of a
log as a stream: which records there are, how many of what, what a key signed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from mqauth.audit.chain import MAX_LINE, raw_lines
from mqauth.errors import refusing, require
from mqauth.logs import harmless
from mqauth.wire import strict_json
from mqauth.wire.claims import Claims
from mqauth.wire.identity import Identity
from mqauth.wire.message import Message

SCHEMA_VERSION: Final = 1
MAX_SOURCE: Final = 512
"""Characters of a ``source``: the name of a topic has up to 249, of a queue up to 255, and more follows it."""
Record = Mapping[str, Any]
"""A record as it was read back; an edited log may hold anything."""
_CLAIMS: Final = {"kid": "kid", "subject": "sub", "issuer": "iss", "jti": "jti"}
TIMES: Final = {"time": 13, "day": 10, "hour": 13, "minute": 16}
"""How many characters of a record's time name the span it lies in; ``time`` counts by the hour."""
DIMENSIONS: Final = ("reason", "verdict", "issuer", "kid", "subject", "destination", "alert", *TIMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One verdict, in the form that both brokers share; sinks write ``as_dict``."""

    id: str
    time: float
    verdict: str
    reason: str | None
    detail: str | None
    scope: str
    broker: Mapping[str, Any]
    token: Mapping[str, Any]
    body_sha256: str | None
    body_size: int | None
    key_set: str | None
    policy: str | None
    dead_letter: str | None
    instance: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON values, without ``prev`` and ``hash``."""
        return {
            "v": SCHEMA_VERSION,
            "id": self.id,
            "time": iso_time(self.time),
            "verdict": self.verdict,
            "reason": self.reason,
            "detail": None if self.detail is None else harmless(self.detail),
            "scope": harmless(self.scope),
            "broker": dict(self.broker),
            "token": dict(self.token),
            "body": {"sha256": self.body_sha256, "size": self.body_size},
            "key_set": self.key_set,
            "policy": self.policy,
            "dead_letter": self.dead_letter,
            "instance": harmless(self.instance),
            **self.extra,
        }


class AuditSink(Protocol):
    """A place for records; ``write`` returns only once the record is durable."""

    def write(self, record: AuditRecord, /) -> Awaitable[None] | None:
        """Make one record durable.

        Raises:
            Unavailable: ``audit_unavailable``; the message is then neither dead-lettered nor settled.
        """


def iso_time(seconds: float) -> str:
    """Return UTC seconds as an RFC 3339 time with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def sha256(raw: bytes) -> str:
    """Return hex SHA-256."""
    return hashlib.sha256(raw).hexdigest()


def token_fields(
    token: bytes | None,
    kid: str | None,
    alg: str | None,
    claims: Claims | None,
    *,
    verified: bool,
    index: int | None = None,
    identity: Identity | None = None,
) -> dict[str, Any]:
    """Return the ``token`` member: the token's claims under ``claimed`` or ``verified``, and its thumbprint."""
    said: dict[str, Any] = {} if kid is None else {"kid": harmless(kid), "alg": alg}
    if claims is not None:
        said |= {name: harmless(getattr(claims, name)) for name in ("iss", "sub", "aud", "jti")}
        said |= {"iat": claims.iat, "exp": claims.exp} | ({} if index is None else {"index": index})
    if identity is not None:
        said["identity"] = {
            "kid": harmless(identity.kid), "jkt": identity.jkt, "exp": identity.expires,
            "jti": None if identity.jti is None else harmless(identity.jti),
            "iss": None if identity.iss is None else harmless(identity.iss),
        }  # fmt: skip
    return {
        "verified" if verified else "claimed": said,
        "thumbprint": None if token is None else sha256(token),
    }


def broker_fields(message: Message) -> dict[str, Any]:
    """Return where the broker had the message; a publisher may choose some of the names, so they are escaped."""
    origin = message.origin
    found = {
        "destination": message.destination,
        "queue": origin.queue,
        "exchange": origin.exchange,
        "routing_key": origin.routing_key,
        "cluster": origin.cluster,
        "topic": origin.topic,
        "topic_id": origin.topic_id,
        "partition": origin.partition,
        "offset": origin.offset,
    }
    return {
        name: harmless(value) if isinstance(value, str) else value
        for name, value in found.items()
        if value is not None
    }


def member(record: Record, name: str) -> Record:
    """Return a member of a record that is an object, or an empty one."""
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def claims_of(record: Record) -> Record:
    """Return the claims of a record's token, verified or not."""
    token = member(record, "token")
    said = token.get("verified") or token.get("claimed")
    return said if isinstance(said, dict) else {}


def is_verified(record: Record) -> bool:
    """Tell whether the signature of a record's token was verified."""
    return "verified" in member(record, "token")


def time_of(record: Record) -> float:
    """Return the time of a record, UTC seconds, or 0 if it has none."""
    return seconds_of(record.get("time"))


def seconds_of(time: Any) -> float:
    """Return the UTC seconds of a time as ``iso_time`` writes it, or 0 for anything else."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which records to select; ``None`` selects any value.

    Args:
        kid: id of the key that signed the token, or is said to.
        subject: the producer.
        issuer: ``iss``.
        jti: the token's id.
        jkt: thumbprint of a workload's key, in records of consumers and of the authority.
        reason: why it was rejected.
        verdict: ``accepted``, ``rejected``, ``duplicate`` or ``alert``.
        destination: canonical.
        verified: only records whose token's signature was verified.
        since: UTC seconds, inclusive.
        until: UTC seconds, exclusive.
    """

    kid: str | None = None
    subject: str | None = None
    issuer: str | None = None
    jti: str | None = None
    jkt: str | None = None
    reason: str | None = None
    verdict: str | None = None
    destination: str | None = None
    verified: bool = False
    since: float | None = None
    until: float | None = None

    def holds(self, record: Record) -> bool:
        """Tell whether a record is among those selected."""
        wanted = {name: getattr(self, name) for name in (*_CLAIMS, "jkt", "reason", "verdict", "destination")}
        return (
            (not self.verified or is_verified(record))
            and all(value is None or value_of(record, name) == value for name, value in wanted.items())
            and (self.since is None or time_of(record) >= self.since)
            and (self.until is None or time_of(record) < self.until)
        )


def read_records(paths: Iterable[Path]) -> Iterator[Record]:
    """Yield the records of audit files without checking their chain; ``verify_chain`` does that.

    Raises:
        ConfigurationError: a file cannot be read, or a line is no record; a torn last line is ignored.
    """
    for path in paths:
        for number, raw in enumerate(raw_lines(path), 1):
            if not raw.endswith(b"\n") and len(raw) < MAX_LINE:
                continue
            with refusing(ValueError, f"{path}: line {number} is no audit record"):
                record = parse_record(raw)
            yield record


def parse_record(raw: bytes) -> Record:
    """Return the record of one line.

    Raises:
        ValueError: the line is no JSON object.
    """
    members: Record = strict_json.loads(raw, depth=8)
    require(isinstance(members, dict), "no object", ValueError)
    return members


def count(records: Iterable[Record], dimension: str) -> Counter[str]:
    """Return how many records have each value of a dimension; beyond 1,000 values they count as ``(others)``.

    Args:
        records: what to count.
        dimension: one of ``DIMENSIONS``.

    Raises:
        ConfigurationError: there is no such dimension.
    """
    require(dimension in DIMENSIONS, f"counted by {', '.join(DIMENSIONS)}")
    found: Counter[str] = Counter()
    for record in records:
        value = value_of(record, dimension)
        if value is not None:
            found[str(value) if str(value) in found or len(found) < 1000 else "(others)"] += 1
    return found


def value_of(record: Record, name: str) -> Any:
    """Return a record's value for one of ``DIMENSIONS``, ``jti`` or ``jkt``, ``None`` if it has none."""
    if name in _CLAIMS:
        return claims_of(record).get(_CLAIMS[name])
    if name in TIMES:
        return str(record.get("time"))[: TIMES[name]]
    if name == "destination":
        return member(record, "broker").get("destination")
    if name == "alert":
        return member(record, "alert").get("kind")
    if name == "jkt":
        return member(claims_of(record), "identity").get("jkt") or member(record, "asked").get("jkt")
    return record.get(name)
