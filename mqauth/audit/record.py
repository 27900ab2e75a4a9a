"""Audit records: what is recorded of a verdict, in schema version 1.

A record never holds a token, a body or a key. Whatever an attacker may have written is cut to a bounded length and
escaped, and it stands under ``claimed`` until the token's signature has been verified. ``query`` reads records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from mqauth.logs import harmless
from mqauth.wire.claims import Claims
from mqauth.wire.identity import Identity
from mqauth.wire.message import Message

SCHEMA_VERSION: Final = 1
MAX_SOURCE: Final = 512
"""Characters of a ``source``: the name of a topic has up to 249, of a queue up to 255, and more follows it."""


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
    fields: dict[str, Any] = {} if kid is None else {"kid": harmless(kid), "alg": alg}
    if claims is not None:
        fields |= {
            **{name: harmless(getattr(claims, name)) for name in ("iss", "sub", "aud", "jti")},
            "iat": claims.iat,
            "exp": claims.exp,
            **({} if index is None else {"index": index}),
        }
    who = {} if identity is None else {
        "kid": harmless(identity.kid), "jkt": identity.jkt, "exp": identity.expires,
        "jti": None if identity.jti is None else harmless(identity.jti),
        "iss": None if identity.iss is None else harmless(identity.iss),
    }  # fmt: skip
    return {
        "verified" if verified else "claimed": fields | ({"identity": who} if who else {}),
        "thumbprint": None if token is None else sha256(token),
    }


def broker_fields(message: Message) -> dict[str, Any]:
    """Return where the broker had the message; a publisher may choose some of the names, so they are escaped."""
    origin = message.origin
    members = {
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
        for name, value in members.items()
        if value is not None
    }
