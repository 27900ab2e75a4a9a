"""Audit records: what is recorded of a verdict, in schema version 1.

A record never holds a token, a body or a key. Whatever an attacker may have written is cut to a bounded length and
escaped, and it stands under ``claimed`` until the token's signature has been verified. ``query`` reads records.

What was seen below ``enforce`` is counted in bounded memory: how much would be refused, why, and from whom. At
first *every* message of a destination is unsigned, and whoever publishes chooses what it says of itself. So
messages have no records of their own: they are counted by group, in at most ``CAPACITY`` groups, and in
``other`` where there is no room for another group. No count is lost: groups and ``other`` add up to all that was
seen.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Awaitable, Hashable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol

from mqauth.errors import Reason
from mqauth.logs import harmless
from mqauth.wire import strict_json
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


def record_of_process(
    verdict: str, facts: Mapping[str, Any], **common: Any
) -> AuditRecord:
    """Return what a process tells of itself, and not of a message.

    Args:
        verdict: the kind of record; the facts stand under its name.
        facts: JSON values.
        common: the other members that such a record has: id, time, scope, policy and instance.
    """
    return AuditRecord(
        verdict=verdict,
        reason=None,
        detail=None,
        broker={},
        token={},
        body_sha256=None,
        body_size=None,
        key_set=None,
        dead_letter=None,
        extra={verdict: facts},
        **common,
    )


def iso_time(seconds: float) -> str:
    """Return UTC seconds as an RFC 3339 time with milliseconds."""
    return (
        datetime.fromtimestamp(seconds, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


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
            **{
                name: harmless(getattr(claims, name))
                for name in ("iss", "sub", "aud", "jti")
            },
            "iat": claims.iat,
            "exp": claims.exp,
            **({} if index is None else {"index": index}),
        }
    who = (
        {}
        if identity is None
        else {
            "kid": harmless(identity.kid),
            "jkt": identity.jkt,
            "exp": identity.expires,
            "jti": None if identity.jti is None else harmless(identity.jti),
            "iss": None if identity.iss is None else harmless(identity.iss),
        }
    )
    return {
        "verified" if verified else "claimed": fields
        | ({"identity": who} if who else {}),
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


CAPACITY: Final = 1000
"""Groups at most."""
MAX_BYTES: Final = 44 * 1024
"""Bytes of all groups of a record; smaller groups that have no room count as ``other``."""
FIRST: Final = 3
"""Messages of a group that are recorded with their coordinates, each hour."""
MOST: Final = 100
"""Such records a minute."""
HOUR: Final = 3600.0
MINUTE: Final = 60.0


@dataclass(slots=True)
class Window:
    """Counts keys within a window of time, in bounded memory (Misra and Gries, 1982)."""

    seconds: float
    capacity: int
    counts: dict[Hashable, int] = field(default_factory=dict)
    ends: float = float("-inf")

    def add(self, key: Hashable, now: float) -> int:
        """Count one event, and return how many with its key this window has at least."""
        self._turn(now)
        if key in self.counts or len(self.counts) < self.capacity:
            self.counts[key] = self.counts.get(key, 0) + 1
            return self.counts[key]
        self.counts = {
            held: count - 1 for held, count in self.counts.items() if count > 1
        }
        return 1

    def peek(self, key: Hashable, now: float) -> int:
        """Return how many events with a key this window has at least, and count nothing."""
        self._turn(now)
        return self.counts.get(key, 0)

    def _turn(self, now: float) -> None:
        """Begin a new window once this one is over, or once a clock was set back by more than a window."""
        if not self.ends - 2 * self.seconds <= now < self.ends:
            self.counts.clear()
            self.ends = now + self.seconds


_NAMES: Final = ("accepted", "unsigned", "lost")


class Group(NamedTuple):
    """What messages that would be refused have in common; all but ``user`` is what a sender says.

    Args:
        code: the reason or cause, or ``duplicate``.
        destination: where the broker delivered it.
        app: the property ``app-id``.
        user: the AMQP user, which the broker has validated.
        subject: claimed by the token.
        kid: claimed by the token.
        partition: on Kafka.
    """

    code: str
    destination: str
    app: str | None = None
    user: str | None = None
    subject: str | None = None
    kid: str | None = None
    partition: int | None = None

    @property
    def id(self) -> str:
        """A short name for what people accept; it is the same for all partitions."""
        return hashlib.sha256(strict_json.dumps(list(self[:-1]))).hexdigest()[:12]


@dataclass(slots=True)
class _Count:
    number: int
    first: float
    last: float


@dataclass
class Observed:
    """Counts since the last record; safe to share between threads."""

    groups: dict[Group, _Count] = field(default_factory=dict)
    accepted: Counter[str] = field(default_factory=Counter)
    unsigned: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    signed: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    oldest: dict[str, float] = field(default_factory=dict)
    other: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        # The messages that were recorded: by group within an hour, and all of them within a minute.
        self._shown, self._lately = Window(HOUR, CAPACITY), Window(MINUTE, 1)

    def would(self, pattern: str, group: Group, now: float) -> bool:
        """Count a message that would be refused; return whether it is one of the few to be recorded.

        Args:
            pattern: of its destination.
            group: of the message.
            now: UTC seconds.
        """
        with self._lock:
            self.unsigned[pattern] += group.code == Reason.TOKEN_MISSING
            counted = self.groups.get(group)
            if counted is not None:
                counted.number, counted.last = counted.number + 1, now
            elif len(self.groups) < CAPACITY:
                self.groups[group] = _Count(1, now, now)
            else:
                self.other += 1
            # The first messages of a group are shown each hour, and not more than a few of all each minute. Where
            # so many groups were shown there is no room for another one.
            shown = self._shown.peek(group, now)
            full = not shown and len(self._shown.counts) >= CAPACITY
            if shown >= FIRST or full or self._lately.peek((), now) >= MOST:
                return False
            self._shown.add(group, now)
            self._lately.add((), now)
            return True

    def accept(self, pattern: str, issuer: str, subject: str) -> None:
        """Count a verified message of the destinations of a pattern, and who signed it."""
        with self._lock:
            self.accepted[pattern] += 1
            producer = (pattern, issuer, subject)
            # Rules name them, but a policy of one's own may admit any number.
            if producer in self.signed or len(self.signed) < CAPACITY:
                self.signed[producer] += 1

    def appended(self, pattern: str, at: float) -> None:
        """Note when a message of the destinations of a pattern was appended, UTC seconds; the oldest counts."""
        with self._lock:
            self.oldest[pattern] = min(at, self.oldest.get(pattern, at))

    def lose(self, cause: str) -> None:
        """Count what was not waited for."""
        with self._lock:
            self.lost[cause] += 1

    def take(self) -> dict[str, Any]:
        """Return what was counted as JSON values of at most 64 KiB, and begin anew."""
        with self._lock:
            groups, other = self.groups, self.other
            counts = {name: dict(getattr(self, name)) for name in _NAMES}
            self.groups, self.other = {}, 0
            for name in _NAMES:
                setattr(self, name, Counter())
            # As many producers as have room in a record; the others come in the next one.
            counts["signed"] = signed = dict[str, dict[str, dict[str, int]]]()
            # Bytes of all producers that signed; those that have no room come in the next record.
            room = 16 * 1024
            for producer, number in list(self.signed.items()):
                room -= sum(len(strict_json.dumps(text)) for text in producer) + 16
                if room < 0:
                    break
                pattern, issuer, subject = producer
                signed.setdefault(pattern, {}).setdefault(issuer, {})[subject] = number
                del self.signed[producer]
            counts["oldest"] = {
                pattern: iso_time(at) for pattern, at in self.oldest.items()
            }
            self.oldest = {}
        shown, room = [], MAX_BYTES
        for group, counted in sorted(groups.items(), key=lambda item: -item[1].number):
            shown_group = {
                name: harmless(value) if isinstance(value, str) else value
                for name, value in group._asdict().items()
                if value is not None
            }
            times = {
                "count": counted.number,
                "first": iso_time(counted.first),
                "last": iso_time(counted.last),
            }
            facts = {"id": group.id, **shown_group, **times}
            room -= len(strict_json.dumps(facts))
            if room > 0:
                shown.append(facts)
            else:
                other += counted.number
        return {**counts, "groups": shown, "other": other}


def group_of(facts: Mapping[str, Any]) -> Group:
    """Return the group of a record's member; what is no text is left out, since a log may hold anything."""
    texts = {
        name: facts[name] for name in Group._fields if isinstance(facts.get(name), str)
    }
    partition = facts.get("partition") if type(facts.get("partition")) is int else None
    return Group(**{"code": "", "destination": "", **texts, "partition": partition})
