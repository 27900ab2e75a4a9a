"""The audit record of a verdict, and the hash-chained file it is made durable in.

What an attacker may have written is bounded, escaped and stands under ``claimed`` until the signature
holds. Never a token, a body or a key. Schema version 1.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from mqauth.wire import strict_json as strictjson
from mqauth.wire.claims import Claims
from mqauth.wire.message import Message

SCHEMA_VERSION: Final = 1
MAX_TEXT: Final = 256
MAX_SOURCE: Final = 512
"""Characters of a ``source``: the longest name of a topic is 249, of a queue 255, and more follows it."""
GENESIS: Final = "0" * 64
_UNPRINTABLE = re.compile(
    r"[^\x20-\x7e\xa0-\u061b\u061d-\u200a\u2010-\u2027\u2030-\u205f\u2070-\ud7ff\uf900-\ufefe\uff00-\uffef]"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One verdict, in the form both brokers share; ``as_dict`` is what sinks write."""

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
    """Where records go; ``write`` returns only once the record is durable."""

    def write(self, record: AuditRecord, /) -> Awaitable[None] | None:
        """Make one record durable.

        Raises:
            Unavailable: ``audit_unavailable``; the message is then neither dead-lettered nor settled.
        """
        ...


def harmless(text: str, limit: int = MAX_TEXT) -> str:
    """Return text with everything a terminal or viewer might act on escaped, cut off at a number of characters."""
    escaped = _UNPRINTABLE.sub(_escape, text[: limit + 1])
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "\u2026"


def iso_time(seconds: float) -> str:
    """Return UTC seconds as RFC 3339 with milliseconds."""
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
    """Return the ``token`` member: what it says, under ``claimed`` or ``verified``, and its thumbprint."""
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
    """Return where the broker had the message; names a publisher may choose are made harmless."""
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
    """Return the hash of a record that follows ``previous``: SHA-256 over both."""
    return hashlib.sha256(previous.encode("ascii") + strictjson.dumps(members)).hexdigest()


def _escape(match: re.Match[str]) -> str:
    """Return a character as an escape."""
    return match.group().encode("unicode_escape", "backslashreplace").decode("ascii")
