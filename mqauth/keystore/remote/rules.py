"""The rules of a remote key cache, pure: state, answer and time in, state and ruling out.

All times are monotonic seconds, so that a stepped wall clock neither ages nor rejuvenates a set. A request
counts from when it was *asked*: what an answer says was true no earlier.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, Literal

from mqauth.errors import ConfigurationError
from mqauth.keystore.remote import merge as jwks_merge
from mqauth.keystore.remote.events import Event, EventKind
from mqauth.keystore.remote.merge import Suspects
from mqauth.wire.keys import KeySet

COOLDOWN: Final = 30.0
"""Seconds between two attempts on account of unknown kids, counted from the attempt, also in an outage."""
LADDER: Final = 2.0
"""Seconds before the second attempt of a cache that never had a set; doubles up to ``COOLDOWN``."""
MAX_STALE: Final = 7 * 86400
MAX_PUBLISH_DELAY: Final = 7 * 86400.0
ABSENT_KIDS: Final = 128
ABSENT_SECONDS: Final = 60.0
"""Short, for a producer that signed a little before its key was published is to be heard again soon."""
NEVER: Final = -math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one cache, in seconds.

    Args:
        max_stale: how long the last good set may serve after it was asked for.
        publish_delay: how long the issuer publishes a key before it signs with it.
        fresh: how long a set is fresh where ``Cache-Control`` does not say; with it, between a fifth
            and three times that.
        max_hold: how long messages with unknown kids are held for an issuer out of reach.
        wait: how long anybody waits for one attempt.

    Raises:
        ConfigurationError: a bound is not finite, not in range, or contradicts another.
    """

    max_stale: float = 3600
    publish_delay: float = 30
    fresh: float = 300
    max_hold: float = 60
    wait: float = 2

    def __post_init__(self) -> None:
        _check("fresh", self.fresh, COOLDOWN, 86400)
        _check("max_stale", self.max_stale, COOLDOWN, MAX_STALE)
        _check("publish_delay", self.publish_delay, 0, MAX_PUBLISH_DELAY)
        _check("max_hold", self.max_hold, 0, 3600)
        _check("wait", self.wait, 0, 2)

    def freshness(self, max_age: float | None, age: float) -> float:
        """Return the seconds an answer stays fresh (RFC 9111, section 4.2), within this cache's bounds."""
        wished = self.fresh if max_age is None else max_age - age
        return min(max(wished, self.fresh / 5), 3 * self.fresh, self.max_stale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One good answer of an issuer.

    Args:
        keys: the keys of the document, ``None`` where the issuer said that nothing changed (304).
        publish_delay: what the document announces, seconds.
        max_age: from ``Cache-Control``, seconds; 0 for ``no-cache`` and ``no-store``.
        age: seconds the answer lay in caches on the way.
        date: when the issuer made it, UTC seconds, where it says.
        etag: its entity tag.
    """

    keys: KeySet | None
    publish_delay: float | None = None
    max_age: float | None = None
    age: float = 0
    date: float | None = None
    etag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """All that one cache knows; immutable, and swapped whole.

    Args:
        keys: the last good set, however old.
        asked: when the answer it came from was asked for.
        origin: when the issuer itself can have made that answer at the latest.
        fresh_until: from then on the set is stale.
        publish_delay: what the issuer announced, seconds.
        etag: of the answer the set equals.
        date: the issuer's own date of it, UTC seconds.
        suspects: what the next answer has to confirm.
        seen_empty: a first answer held no key; it counts when seen again.
        attempt: when the last attempt began.
        in_flight: it has not ended.
        due: when the next one is to begin.
        failing_since: when the first failed attempt of the present outage began.
        failures: attempts failed in a row.
        failure: how the last one failed.
        told: the state last announced by an event.
    """

    keys: KeySet | None = None
    asked: float = NEVER
    origin: float = NEVER
    fresh_until: float = NEVER
    publish_delay: float = 0
    etag: str | None = None
    date: float | None = None
    suspects: Suspects = field(default_factory=dict)
    seen_empty: bool = False
    attempt: float = NEVER
    in_flight: bool = False
    due: float = NEVER
    failing_since: float | None = None
    failures: int = 0
    failure: str | None = None
    told: str = "fresh"


Step = tuple[Cache, tuple[Event, ...]]


def usable(cache: Cache, now: float, limits: Limits) -> KeySet | None:
    """Return the set that may serve now, if there is one."""
    return cache.keys if now - cache.asked <= limits.max_stale else None


def condition(cache: Cache, now: float, limits: Limits) -> Literal["fresh", "stale", "unavailable"]:
    """Return ``fresh``, ``stale`` or ``unavailable``."""
    if usable(cache, now, limits) is None:
        return "unavailable"
    return "fresh" if now < cache.fresh_until else "stale"


def begin(cache: Cache, now: float) -> Cache:
    """Note that an attempt begins."""
    return replace(cache, attempt=now, in_flight=True, due=now + COOLDOWN)


def restored(keys: KeySet, asked: float, publish_delay: float) -> Cache:
    """Return the cache of a snapshot: old, serving, and to be refreshed at once."""
    return Cache(keys=keys, asked=asked, origin=asked, fresh_until=asked, publish_delay=publish_delay)


def validator(cache: Cache) -> str | None:
    """Return the entity tag to ask with; none where a full answer has to confirm something."""
    return cache.etag if cache.keys is not None and not cache.suspects else None


def answered(cache: Cache, answer: Answer, *, asked: float, limits: Limits, jitter: float) -> Step:
    """Take a good answer in.

    Args:
        cache: the state.
        answer: what the issuer said.
        asked: when the attempt began; the answer of any but the latest attempt is dropped.
        limits: the bounds.
        jitter: 0 to 1, so that many consumers do not ask at once.
    """
    if asked != cache.attempt or not cache.in_flight:
        return cache, ()  # an older answer never replaces a newer
    merged = _merged(cache, answer)
    if merged is None:
        held = replace(cache, seen_empty=True)
        why = "the first set holds no usable key"
        return failed(held, why, asked=asked, now=asked, limits=limits, jitter=jitter)
    fresh = limits.freshness(answer.max_age, answer.age)
    settled = not merged.suspects
    ahead = fresh * (0.8 + 0.1 * jitter) if settled else 0
    result = replace(
        cache,
        keys=merged.keys, asked=asked, origin=asked - answer.age, fresh_until=asked + fresh,
        publish_delay=_announced(cache, answer), date=_date(cache, answer, settled), suspects=merged.suspects,
        etag=(cache.etag if answer.keys is None else answer.etag) if settled else None,
        in_flight=False, due=asked + max(ahead, COOLDOWN),
        failing_since=None, failures=0, failure=None, seen_empty=False, told="fresh",
    )  # fmt: skip
    unchanged = cache.keys is not None and merged.keys.version == cache.keys.version
    return result, (Event(kind=EventKind.REFRESHED, detail="unchanged" if unchanged else ""), *merged.events)


def failed(cache: Cache, failure: str, *, asked: float, now: float, limits: Limits, jitter: float) -> Step:
    """Take a failed attempt in; the set in use serves on, as long as it may."""
    if asked != cache.attempt or not cache.in_flight:
        return cache, ()
    state = condition(cache, now, limits)
    result = replace(
        cache,
        in_flight=False, due=asked + _pause(cache) * (1 + 0.25 * jitter),
        failing_since=asked if cache.failing_since is None else cache.failing_since,
        failures=cache.failures + 1, failure=failure, told=state,
    )  # fmt: skip
    events = [Event(kind=EventKind.FAILED, detail=failure)]
    if state != cache.told:
        events.append(Event(kind=EventKind(state)))
    return result, tuple(events)


@dataclass(frozen=True, slots=True)
class Wish:
    """A kid that a message's token named, and when the message was received, in the cache's own seconds."""

    kid: str
    received: float


class Ruling(Enum):
    """What to do with a message whose kid is asked about."""

    ANSWER = "answer"
    """The set in use answers; if it lacks the kid, the kid is unknown."""
    ASK = "ask"
    """Begin an attempt and wait for it."""
    WAIT = "wait"
    """Wait for the attempt in flight."""
    OUTLIVED = "outlived"
    """The kid counts as unknown: the issuer has been out of reach for longer than messages are held."""
    PENDING = "pending"
    """Deferred: the issuer cannot say now."""
    UNAVAILABLE = "unavailable"
    """Deferred: there is no set at all."""


def rule(cache: Cache, wish: Wish, *, now: float, limits: Limits, absent: AbsentKids) -> Ruling:
    """Decide about a kid that the set in use may lack.

    Args:
        cache: the state.
        wish: who asks for what.
        now: the time.
        limits: the bounds.
        absent: the kids that issuers were asked for in vain.
    """
    keys = usable(cache, now, limits)
    if keys is not None and (absent.has(wish.kid, now) or _settled(cache, keys, wish, now, limits)):
        return Ruling.ANSWER
    if cache.in_flight:
        if now < cache.attempt + limits.wait:
            return Ruling.WAIT
    elif now >= cache.attempt + COOLDOWN:
        return Ruling.ASK
    if keys is None:
        return Ruling.UNAVAILABLE
    if cache.failing_since is None:  # an answer is late; or a live issuer was asked a moment ago
        return Ruling.PENDING if cache.in_flight else Ruling.ANSWER
    return Ruling.PENDING if now - cache.failing_since < limits.max_hold else Ruling.OUTLIVED


def in_vain(cache: Cache, wish: Wish) -> bool:
    """Tell whether the issuer answered after the wish came up, and without its kid."""
    answered_since = min(cache.asked, cache.origin) >= wish.received
    return answered_since and cache.keys is not None and cache.keys.get(wish.kid) is None


class AbsentKids:
    """Kids an issuer was asked for in vain, so that one bad producer does not make us ask on and on; bounded.

    Args:
        capacity: the oldest is forgotten beyond it.
        seconds: how long one is remembered.
    """

    def __init__(self, capacity: int = ABSENT_KIDS, seconds: float = ABSENT_SECONDS) -> None:
        self._capacity = capacity
        self._seconds = seconds
        self._kids: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kids)

    def add(self, kid: str, now: float) -> None:
        """Remember that an answer asked for on its account lacks a kid."""
        self._kids[kid] = now
        self._kids.move_to_end(kid)
        if len(self._kids) > self._capacity:
            self._kids.popitem(last=False)

    def has(self, kid: str, now: float) -> bool:
        """Tell whether a kid was asked for in vain a moment ago."""
        return now - self._kids.get(kid, NEVER) < self._seconds

    def clear(self) -> None:
        """Forget all: the set has changed."""
        self._kids.clear()


def _settled(cache: Cache, keys: KeySet, wish: Wish, now: float, limits: Limits) -> bool:
    """Tell whether the set in use says all there is to say about a kid."""
    if keys.get(wish.kid) is not None or in_vain(cache, wish):
        return True
    return now - cache.origin < max(limits.publish_delay, cache.publish_delay)


def _merged(cache: Cache, answer: Answer) -> jwks_merge.Merged | None:
    """Return the set from now on; ``None`` where a first answer is empty and was not seen before."""
    if answer.keys is None:
        return jwks_merge.Merged(cache.keys or KeySet([]), cache.suspects, ())
    if cache.keys is None:
        return jwks_merge.first(answer.keys) if answer.keys.keys or cache.seen_empty else None
    outdated = None not in (cache.date, answer.date) and (answer.date or 0) < (cache.date or 0)
    return jwks_merge.merge(cache.keys, answer.keys, cache.suspects, outdated=outdated)


def _announced(cache: Cache, answer: Answer) -> float:
    """Return the issuer's own publish delay; a document without one takes it back."""
    return cache.publish_delay if answer.keys is None else answer.publish_delay or 0


def _date(cache: Cache, answer: Answer, settled: bool) -> float | None:
    """Return the issuer's date of the set from now on; a suspicious answer does not set it."""
    return answer.date if settled and answer.date is not None else cache.date


def _pause(cache: Cache) -> float:
    """Return the seconds between a failed attempt and the next; short at first where there is no set yet."""
    return COOLDOWN if cache.keys is not None else min(COOLDOWN, LADDER * 2.0 ** min(cache.failures, 10))


def _check(name: str, value: float, low: float, high: float) -> None:
    """Refuse a bound that is no number in its range; none is infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigurationError(f"{name} is {low:g} to {high:g} seconds")


def publish_delay_of(document: Mapping[str, object]) -> float | None:
    """Return the publish delay a JWK Set document announces, seconds, if it is one."""
    value = document.get("mqauth_publish_delay")
    if type(value) is int and 0 <= value <= MAX_PUBLISH_DELAY:
        return float(value)
    return None
