"""Audit records: what is recorded of a verdict, in schema version 1, and how a record is read back.

A record never holds a token, a body or a key. Whatever an attacker may have written is cut to a bounded length and
escaped, and it stands under ``claimed`` until the token's signature has been verified.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from mqauth.wire import strict_json
from mqauth.wire.claims import Claims
from mqauth.wire.message import Message

SCHEMA_VERSION: Final = 1
MAX_TEXT: Final = 256
MAX_SOURCE: Final = 512
"""Characters of a ``source``: the name of a topic has up to 249, of a queue up to 255, and more follows it."""
GENESIS: Final = "0" * 64
"""The hash that the first record of a chain follows."""
Record = Mapping[str, Any]
"""A record as it was read back; an edited log may hold anything."""
# Printable ASCII, and of Unicode what is not a control, a mark of direction, a separator or for private use.
_UNPRINTABLE = re.compile(
    r"[^\x20-\x7e\xa0-\u061b\u061d-\u200a\u2010-\u2027\u2030-\u205f\u2070-\ud7ff\uf900-\ufefe\uff00-\uffef]"
)


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


def harmless(text: str, limit: int = MAX_TEXT) -> str:
    """Return text of at most ``limit`` characters, with those escaped that a terminal or viewer might act on."""
    # Cut before it is escaped too, so that a huge text costs no more than its beginning.
    escaped = _UNPRINTABLE.sub(
        lambda found: found.group().encode("unicode_escape", "backslashreplace").decode("ascii"), text[: limit + 1]
    )
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "\u2026"


def iso_time(seconds: float) -> str:
    """Return UTC seconds as an RFC 3339 time with milliseconds."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


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
) -> dict[str, Any]:
    """Return the ``token`` member: the token's claims under ``claimed`` or ``verified``, and its thumbprint."""
    said: dict[str, Any] = {} if kid is None else {"kid": harmless(kid), "alg": alg}
    if claims is not None:
        texts = {"iss": claims.iss, "sub": claims.sub, "aud": claims.aud, "jti": claims.jti}
        said |= {name: harmless(value) for name, value in texts.items()}
        said |= {"iat": claims.iat, "exp": claims.exp} | ({} if index is None else {"index": index})
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


def chain_hash(previous: str, members: Mapping[str, Any]) -> str:
    """Return the hash of the record that follows ``previous`` in a chain: SHA-256 over both."""
    return hashlib.sha256(previous.encode("ascii") + strict_json.dumps(members)).hexdigest()


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
    try:
        return datetime.fromisoformat(record.get("time", "")).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
