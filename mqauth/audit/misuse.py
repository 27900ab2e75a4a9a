"""Misuse noticed: detectors that read audit records and say what no single rejection shows.

Pure and bounded: time comes from the records, so the same log gives the same alerts, live or years later.
What an attacker can vary without end (kids, jtis, subjects) is counted in windows by the Misra-Gries
summary, which never holds more than its capacity and never misses what is more than 1/capacity of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from mqauth.errors import ConfigurationError, Reason

_DIMENSIONS: Final = ("iss", "kid", "sub", "destination")
_TEXT: Final = 256
_BURST_EXEMPT: Final = frozenset(
    (Reason.HANDLER_FAILED.value, Reason.EXPIRED.value, Reason.QUEUE_AGE_EXCEEDED.value)
)
"""No misuse, or told better by a detector of its own: a backlog is no burst."""
_OLD_KEY: Final = frozenset((Reason.KEY_REVOKED.value, Reason.KEY_EXPIRED.value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When a detector fires.

    Args:
        window: seconds over which events are counted.
        quiet: seconds before the same alert is given again.
        burst: rejections of one reason for one issuer, kid, subject or destination in a window.
        replays: copies of one token in a window.
        expired: expired tokens in a window.
        skewed_producers: verified producers among them that make it a clock, not a thief.
        unknown_kids: different unknown kids of one issuer in a window.
        learn: seconds in which new pairs of subject and destination, and of kid and subject, are learned.
        capacity: entries held by each detector at most.
        authorities: issuers whose keys sign for several producers.

    Raises:
        ConfigurationError: a number is not positive.
    """

    window: float = 60
    quiet: float = 600
    burst: int = 100
    replays: int = 3
    expired: int = 20
    skewed_producers: int = 3
    unknown_kids: int = 10
    learn: float = 86_400
    capacity: int = 4096
    authorities: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in NUMBERS:
            number = getattr(self, name)
            if not number >= (0 if name == "learn" else 1e-3 if name in SECONDS else 1):  # NaN is not either
                raise ConfigurationError(f"misuse threshold {name} is too small")


SECONDS: Final = ("window", "quiet", "learn")
NUMBERS: Final = (*SECONDS, "burst", "replays", "expired", "skewed_producers", "unknown_kids", "capacity")
"""The thresholds that are numbers; those of ``SECONDS`` may be fractions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One finding.

    Args:
        kind: which detector.
        about: what of the records it is about.
        count: how often it was seen.
        time: UTC seconds of the record that completed it.
        verified: whether the signature of that record's token held; if not, ``about`` is what a sender claimed.
    """

    kind: str
    about: Mapping[str, str]
    count: int
    time: float
    verified: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        return {"kind": self.kind, "about": dict(self.about), "count": self.count, "verified": self.verified}


@dataclass(slots=True)
class Window:
    """Counts keys within a window of time, in bounded memory (Misra and Gries, 1982)."""

    seconds: float
    capacity: int
    counts: dict[tuple[str, ...], int] = field(default_factory=dict)
    ends: float = float("-inf")

    def add(self, key: tuple[str, ...], now: float) -> int:
        """Count one event and return how many of its kind this window has, at least."""
        self._turn(now)
        if key in self.counts or len(self.counts) < self.capacity:
            self.counts[key] = self.counts.get(key, 0) + 1
            return self.counts[key]
        self.counts = {held: count - 1 for held, count in self.counts.items() if count > 1}
        return 1

    def peek(self, key: tuple[str, ...], now: float) -> int:
        """Return how many of a kind this window has, at least, and count nothing."""
        self._turn(now)
        return self.counts.get(key, 0)

    def _turn(self, now: float) -> None:
        """Begin a new window once this one is over, or a clock was set back."""
        if not self.ends - 2 * self.seconds <= now < self.ends:
            self.counts.clear()
            self.ends = now + self.seconds


class Detector:
    """Reads audit records in order and yields alerts; one thread at a time.

    Args:
        thresholds: when to fire.
    """

    def __init__(self, thresholds: Thresholds = Thresholds()) -> None:
        self.thresholds = thresholds
        capacity, window = thresholds.capacity, thresholds.window
        self._bursts = Window(window, capacity)
        self._replays = Window(window, capacity)
        self._expired = Window(window, capacity)
        self._expired_by = Window(window, capacity)
        self._unknown = Window(window, capacity)
        self._kids = Window(window, capacity)
        self._silent: dict[tuple[str, ...], float] = {}
        self._pairs: dict[tuple[str, ...], None] = {}
        self._subjects: dict[tuple[str, ...], set[str]] = {}
        self._started: float | None = None

    def observe(self, members: Mapping[str, Any]) -> list[Alert]:
        """Read one record, as ``AuditRecord.as_dict`` gives it, and return what it completes.

        Records with verdict ``alert`` are passed over, so that a log can be read again.
        """
        fact = _fact(members)
        if fact is None:
            return []
        if self._started is None:
            self._started = fact.time
        return [alert for alert in self._found(fact) if self._speaks(alert)]

    def _found(self, fact: Fact) -> Iterator[Alert]:
        """Ask every detector."""
        if fact.reason is None:
            yield from self._habits(fact)
            return
        yield from self._burst(fact)
        if fact.reason == Reason.REPLAYED.value:
            yield from self._repeated(fact)
        elif fact.reason == Reason.EXPIRED.value:
            yield from self._expiry(fact)
        elif fact.reason == Reason.KEY_UNKNOWN.value:
            yield from self._strangers(fact)
        elif fact.reason in _OLD_KEY:
            yield fact.alert("resurrected_key", 1, "iss", "kid", "reason")
        elif fact.reason == Reason.PRODUCER_FORBIDDEN.value:
            yield fact.alert("new_destination", 1, "iss", "sub", "destination")
        elif fact.reason == Reason.SUBJECT_MISMATCH.value:
            yield fact.alert("shared_key", 1, "iss", "kid", "sub")

    def _burst(self, fact: Fact) -> Iterator[Alert]:
        """One reason, again and again, for one issuer, kid, subject or destination."""
        if fact.reason in _BURST_EXEMPT:
            return
        for dimension in _DIMENSIONS:
            value = fact.values.get(dimension)
            if value is not None:
                count = self._bursts.add((str(fact.reason), dimension, value), fact.time)
                if count >= self.thresholds.burst:
                    yield fact.alert("burst", count, "reason", dimension)

    def _repeated(self, fact: Fact) -> Iterator[Alert]:
        """One token, or one place of a batch, presented again and again."""
        token = tuple(fact.values.get(name, "") for name in ("iss", "sub", "jti", "index"))
        count = self._replays.add(token, fact.time)
        if count >= self.thresholds.replays:
            yield fact.alert("repeated_replay", count, "iss", "jti", "index", "sub")

    def _expiry(self, fact: Fact) -> Iterator[Alert]:
        """Expired tokens in numbers: of many producers it is a clock, of one it is that producer or a thief."""
        self._expired_by.add((fact.values.get("iss", ""), fact.values.get("sub", "")), fact.time)
        count = self._expired.add(("expired",), fact.time)
        if count < self.thresholds.expired:
            return
        if len(self._expired_by.counts) >= self.thresholds.skewed_producers:
            yield fact.alert("clock_skew", count, "destination")
        else:
            yield fact.alert("expired_burst", count, "iss", "sub")

    def _strangers(self, fact: Fact) -> Iterator[Alert]:
        """Many different unknown kids of one issuer."""
        issuer, kid = fact.values.get("iss", ""), fact.values.get("kid", "")
        if self._kids.add((issuer, kid), fact.time) == 1:
            count = self._unknown.add((issuer,), fact.time)
            if count >= self.thresholds.unknown_kids:
                yield fact.alert("unknown_keys", count, "iss")

    def _habits(self, fact: Fact) -> Iterator[Alert]:
        """A producer where it never published, or a key that speaks for a second producer."""
        learned = fact.time - (self._started or fact.time) >= self.thresholds.learn
        issuer, subject = fact.values.get("iss", ""), fact.values.get("sub", "")
        pair = (issuer, subject, fact.values.get("destination", ""))
        if pair not in self._pairs and len(self._pairs) < self.thresholds.capacity:
            self._pairs[pair] = None
            if learned:
                yield fact.alert("new_destination", 1, "iss", "sub", "destination")
        if issuer not in self.thresholds.authorities:
            yield from self._second_producer(fact, (issuer, fact.values.get("kid", "")), subject)

    def _second_producer(self, fact: Fact, key: tuple[str, ...], subject: str) -> Iterator[Alert]:
        """One key seen from two producers."""
        if key not in self._subjects and len(self._subjects) >= self.thresholds.capacity:
            return
        seen = self._subjects.setdefault(key, set())
        if subject not in seen and len(seen) < 2:
            seen.add(subject)
            if len(seen) == 2:
                yield fact.alert("shared_key", 2, "iss", "kid", "sub")

    def _speaks(self, alert: Alert) -> bool:
        """Tell whether an alert is new, or its quiet time is over; bounded like everything else."""
        key = (alert.kind, *(f"{name}={value}" for name, value in sorted(alert.about.items())))
        until = self._silent.get(key, float("-inf"))
        if until - 2 * self.thresholds.quiet <= alert.time < until:  # further back, the clock was set back
            return False
        if len(self._silent) >= self.thresholds.capacity:
            self._silent = {held: until for held, until in self._silent.items() if until > alert.time}
        if len(self._silent) >= self.thresholds.capacity:
            self._silent.pop(next(iter(self._silent)))
        self._silent[key] = alert.time + self.thresholds.quiet
        return True


@dataclass(frozen=True, slots=True)
class Fact:
    """What the detectors need of one record."""

    time: float
    reason: str | None
    values: Mapping[str, str]
    verified: bool = False

    def alert(self, kind: str, count: int, *about: str) -> Alert:
        """Return an alert about some of the record's values."""
        named = {**self.values, "reason": self.reason or ""}
        return Alert(
            kind=kind, about={name: named[name] for name in about if named.get(name)}, count=count, time=self.time,
            verified=self.verified,
        )  # fmt: skip


def replayed(records: Iterator[Mapping[str, Any]], thresholds: Thresholds) -> Iterator[Alert]:
    """Yield the alerts of an old log, as they would have been given live."""
    detector = Detector(thresholds)
    for members in records:
        yield from detector.observe(members)


def _fact(members: Mapping[str, Any]) -> Fact | None:
    """Return what a record says, ``None`` where it is no verdict; an edited log may hold anything."""
    reason, verdict = members.get("reason"), members.get("verdict")
    if verdict not in ("accepted", "rejected") or not isinstance(reason, str | None):
        return None
    token, broker = _object(members.get("token")), _object(members.get("broker"))
    said = _object(token.get("verified") or token.get("claimed"))
    found = {name: said.get(name) for name in ("iss", "kid", "sub", "jti")} | {
        "destination": broker.get("destination")
    }
    values = {name: value[:_TEXT] for name, value in found.items() if isinstance(value, str) and value}
    if type(index := said.get("index")) is int:
        values["index"] = str(index)[:_TEXT]
    return Fact(seconds(members.get("time")), reason, values, "verified" in token)


def _object(value: Any) -> Mapping[str, Any]:
    """Return a value that is a JSON object, an empty one in place of any other."""
    return value if isinstance(value, dict) else {}


def seconds(text: Any) -> float:
    """Return the UTC seconds of a record's time; 0 where it is none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
