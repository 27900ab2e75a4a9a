"""Misuse detectors: they read audit records and notice what no single rejection shows.

Time comes from the records, so the same log gives the same alerts, live or years later. Memory is bounded,
although an attacker can vary kids, jtis and subjects without end: events are counted in windows of time by the
Misra-Gries summary. It never holds more than its capacity, and never misses a key that makes up more than
1/capacity of a window.

Of a rollout: a rung that was lowered, and unsigned messages that are back after a day without. A message without
a token after a day in which each had one is a token that was stripped, or an old producer that came back. Whoever
can forge a token can strip it, so nothing but such a change shows it below ``enforce``.

Of an authority: a key that two subjects have, since somebody enrolled another's key, or one process has two names.
A subject with more identities alive than it has instances, since somebody else asks for them, too. A subject that
comes by another credential than ever: a thief has found another way in, or somebody has moved a service.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from mqauth.audit.query import (
    RUNGS,
    Record,
    claims_of,
    is_verified,
    member,
    rungs_of,
    time_of,
)
from mqauth.audit.record import Window
from mqauth.errors import Reason, T, require
from mqauth.wire.memo import Recent

DAY: Final = 86_400.0
INSTANCES: Final = 64
"""Identities of a subject that are alive at once, beyond which an alert is given; a process has two at a time."""
_TEXT: Final = 256
# These are no misuse, or have a detector of their own: a backlog is no burst.
_BURST_EXEMPT: Final = frozenset(
    (
        Reason.HANDLER_FAILED,
        Reason.EXPIRED,
        Reason.QUEUE_AGE_EXCEEDED,
        Reason.APPEND_TIME_MISSING,
    )
)
AT_ONCE: Final = {
    Reason.KEY_REVOKED: ("resurrected_key", "iss", "kid", "reason"),
    Reason.KEY_EXPIRED: ("resurrected_key", "iss", "kid", "reason"),
    Reason.PRODUCER_FORBIDDEN: ("new_destination", "iss", "sub", "destination"),
    Reason.SUBJECT_MISMATCH: ("shared_key", "iss", "kid", "sub"),
}
"""Reasons of which a single rejection is an alert: the alert's kind, and the values it is about."""
Key = tuple[str, ...]
Found = tuple[str, int, Mapping[str, str]]
"""The kind of an alert, a count, and what it is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When the detectors give an alert.

    Args:
        window: seconds over which events are counted.
        quiet: seconds before the same alert is given again.
        burst: rejections of one reason for one issuer, kid, subject or destination in a window.
        replays: copies of one token in a window.
        expired: expired tokens in a window.
        skewed_producers: producers of expired tokens that make it a wrong clock, and not a thief.
        unknown_kids: different unknown kids of one issuer in a window.
        learn: seconds in which new pairs of subject and destination, and of kid and subject, are learned.
        capacity: entries that each detector holds at most.
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
            least = {"learn": 0.0, "window": 1e-3, "quiet": 1e-3}.get(name, 1)
            # NaN, which is neither smaller nor larger, is refused too.
            require(
                getattr(self, name) >= least,
                f"misuse threshold {name} is too small: it is at least {least:g}",
            )


NUMBERS: Final = tuple(
    each.name for each in fields(Thresholds) if each.name != "authorities"
)
"""The thresholds that are numbers; ``window``, ``quiet`` and ``learn`` may be fractions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert.

    Args:
        kind: which detector gave it.
        about: the values of the records that it is about.
        count: how often the event was seen.
        time: UTC seconds of the record that completed it.
        verified: whether the signature of that record's token was verified; if not, ``about`` is a sender's claim.
    """

    kind: str
    about: Mapping[str, str]
    count: int
    time: float
    verified: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the alert as JSON values, without its time."""
        return {
            "kind": self.kind,
            "about": dict(self.about),
            "count": self.count,
            "verified": self.verified,
        }


class Detector:
    """Reads audit records in order and gives alerts; for one thread at a time.

    Args:
        thresholds: when it gives one.
        instances: identities of one subject that may be alive at once, of an authority.
    """

    def __init__(
        self, thresholds: Thresholds = Thresholds(), *, instances: int = INSTANCES
    ) -> None:
        self.thresholds = thresholds
        self._windows = {
            name: Window(thresholds.window, thresholds.capacity)
            for name in (
                "bursts",
                "replays",
                "expired",
                "expired by producer",
                "unknown kids",
                "kids by issuer",
            )
        }
        self._silent = Recent[Key, float](thresholds.capacity)
        self._pairs: set[Key] = set()
        self._subjects: dict[Key, set[str]] = {}
        self._started: float | None = None
        # By scope the rungs of a rollout, and since when each message of a destination has a token.
        self._rungs = Recent[str, dict[str, int]](thresholds.capacity)
        self._signed_since = Recent[tuple[str, str], float](thresholds.capacity)
        self._instances = min(instances, 1024)
        self._owners = Recent[str, str](4 * thresholds.capacity)
        self._alive = Recent[str, list[int]](thresholds.capacity)
        self._credentials = Recent[str, str](thresholds.capacity)

    def observe(self, members: Record) -> list[Alert]:
        """Read one record, as ``AuditRecord.as_dict`` returns it, and return the alerts it completes.

        Records with the verdict ``alert`` are ignored, so that a log can be read again.
        """
        reason, verdict, now = (
            members.get("reason"),
            members.get("verdict"),
            time_of(members),
        )
        judged = verdict in ("accepted", "rejected", "would_reject") and isinstance(
            reason, str | None
        )
        # What is unsigned has a report of its own, and an outage is no misuse.
        if not judged or (
            verdict == "would_reject" and reason in (None, Reason.TOKEN_MISSING)
        ):
            found, verified = (
                (*self._of_rollout(members, now), *self._of_identity(members, now)),
                True,
            )
        else:
            found, verified = (
                tuple(self._of_verdict(members, reason, now)),
                is_verified(members),
            )
        told = [
            Alert(kind=kind, about=about, count=count, time=now, verified=verified)
            for kind, count, about in found
        ]
        return list(filter(self._is_new, told))

    def _of_verdict(
        self, record: Record, reason: str | None, now: float
    ) -> Iterator[Found]:
        """Notice what acceptances and rejections show."""
        claims = claims_of(record)
        named = {name: claims.get(name) for name in ("iss", "kid", "sub", "jti")}
        named |= {
            "reason": reason,
            "destination": member(record, "broker").get("destination"),
        }
        values = {
            name: value[:_TEXT]
            for name, value in named.items()
            if isinstance(value, str) and value
        }
        if type(index := claims.get("index")) is int:
            values["index"] = str(index)[:_TEXT]
        self._started = now if self._started is None else self._started
        yield from (
            self._habits(values, now)
            if reason is None
            else self._faults(reason, values, now)
        )

    def _faults(
        self, reason: str, values: Mapping[str, str], now: float
    ) -> Iterator[Found]:
        """Notice what rejections show, alone or together."""
        limits = self.thresholds
        if reason not in _BURST_EXEMPT:
            for dimension in filter(
                values.__contains__, ("iss", "kid", "sub", "destination")
            ):
                count = self._windows["bursts"].add(
                    (reason, dimension, values[dimension]), now
                )
                if count >= limits.burst:
                    yield "burst", count, _about(values, "reason", dimension)
        if reason == Reason.REPLAYED:
            # In a batch all messages share one token, so that the place in the batch is part of the key.
            count = self._windows["replays"].add(
                _key(values, "iss", "sub", "jti", "index"), now
            )
            if count >= limits.replays:
                yield (
                    "repeated_replay",
                    count,
                    _about(values, "iss", "jti", "index", "sub"),
                )
        elif reason == Reason.EXPIRED:
            # Expired tokens of many producers come from a wrong clock; of one from that producer or a thief.
            self._windows["expired by producer"].add(_key(values, "iss", "sub"), now)
            count = self._windows["expired"].add((), now)
            if count >= limits.expired:
                if (
                    len(self._windows["expired by producer"].counts)
                    >= limits.skewed_producers
                ):
                    yield "clock_skew", count, _about(values, "destination")
                else:
                    yield "expired_burst", count, _about(values, "iss", "sub")
        elif (
            reason == Reason.KEY_UNKNOWN
            and self._windows["kids by issuer"].add(_key(values, "iss", "kid"), now) == 1
        ):
            count = self._windows["unknown kids"].add(_key(values, "iss"), now)
            if count >= limits.unknown_kids:
                yield "unknown_keys", count, _about(values, "iss")
        elif reason in AT_ONCE:
            kind, *about = AT_ONCE[Reason(reason)]
            yield kind, 1, _about(values, *about)

    def _habits(self, values: Mapping[str, str], now: float) -> Iterator[Found]:
        """Notice a producer at a new destination, and a key that signs for a second producer."""
        learned = now - (self._started or now) >= self.thresholds.learn
        pair = _key(values, "iss", "sub", "destination")
        if pair not in self._pairs and len(self._pairs) < self.thresholds.capacity:
            self._pairs.add(pair)
            if learned:
                yield "new_destination", 1, _about(values, "iss", "sub", "destination")
        issuer, subject = _key(values, "iss", "sub")
        key = _key(values, "iss", "kid")
        room = key in self._subjects or len(self._subjects) < self.thresholds.capacity
        if issuer not in self.thresholds.authorities and room:
            seen = self._subjects.setdefault(key, set())
            if subject not in seen and len(seen) < 2:
                seen.add(subject)
                if len(seen) == 2:
                    yield "shared_key", 2, _about(values, "iss", "kid", "sub")

    def _is_new(self, alert: Alert) -> bool:
        """Tell whether an alert was not given within its quiet time."""
        key = (
            alert.kind,
            *(f"{name}={value}" for name, value in sorted(alert.about.items())),
        )
        until = self._silent.get(key, float("-inf"))
        # An alert from long before the quiet time means that the clock was set back.
        if until - 2 * self.thresholds.quiet <= alert.time < until:
            return False
        self._silent.keep(key, alert.time + self.thresholds.quiet)
        return True

    def _of_rollout(self, record: Record, now: float) -> Iterator[Found]:
        """Notice a rung that was lowered, and unsigned messages that are back."""
        scope = str(record.get("scope"))[:_TEXT]
        if record.get("verdict") == "rollout":
            rungs = rungs_of(member(record, "rollout"))
            before = self._rungs.get(scope, rungs)
            self._rungs.keep(scope, rungs)
            for destination, rung in rungs.items():
                if rung < before.get(destination, RUNGS.index("enforce")):
                    yield (
                        "rung_lowered",
                        1,
                        {"destination": destination, "rung": RUNGS[rung]},
                    )
        elif record.get("verdict") == "observed":
            seen = member(record, "observed")
            unsigned = member(seen, "unsigned")
            for destination in {*member(seen, "accepted"), *unsigned}:
                key, count = (scope, destination), unsigned.get(destination, 0)
                since = self._signed_since.get(key)
                if count:
                    self._signed_since.drop(key)
                    if since is not None and now - since >= DAY:
                        yield (
                            "unsigned_again",
                            int(count),
                            {"destination": str(destination)[:_TEXT]},
                        )
                elif since is None:
                    self._signed_since.keep(key, now)

    def _of_identity(self, record: Record, now: float) -> Iterator[Found]:
        """Notice keys, numbers and credentials of a subject that are not as before."""
        if record.get("verdict") != "identity_issued":
            return
        claims = claims_of(record)
        subject, jkt = (
            str(claims.get("sub"))[:_TEXT],
            str(member(claims, "identity").get("jkt"))[:_TEXT],
        )
        if _remember(self._owners, jkt, subject) != subject:
            yield "shared_identity_key", 2, {"sub": subject, "jkt": jkt}
        ends = claims.get("exp")
        alive = [end for end in _remember(self._alive, subject, []) if end > now]
        alive = [*alive, ends if type(ends) is int else 0][-self._instances - 1 :]
        self._alive[subject] = alive
        if len(alive) > self._instances:
            yield "many_identities", len(alive), {"sub": subject}
        # A credential of another issuer or another name than the one before.
        credential = member(member(record, "asked"), "credential")
        came_by = (
            " ".join(str(credential.get(name))[:_TEXT] for name in ("name", "sub"))
            if credential
            else "command"
        )
        if _remember(self._credentials, subject, came_by) != came_by:
            self._credentials[subject] = came_by
            yield "new_credential", 1, {"sub": subject}


def _about(values: Mapping[str, str], *names: str) -> dict[str, str]:
    """Return those of a record's values that an alert is about."""
    return {name: values[name] for name in names if name in values}


def _key(values: Mapping[str, str], *names: str) -> Key:
    """Return some of a record's values, empty where there is none."""
    return tuple(values.get(name, "") for name in names)


def _remember(held: Recent[str, T], key: str, value: T) -> T:
    """Return what is held under a key, the given value where there is nothing; it is the newest now."""
    known = held.get(key, value)
    held.keep(key, known)
    return known
