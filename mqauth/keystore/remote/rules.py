"""The rules of a remote key cache, as pure functions of its state, an answer and the time.

All times are monotonic seconds, so that a wall clock that is set forward or back makes no set older or younger.
The age of an answer counts from the moment at which it was asked for: that is the earliest moment for which it
speaks.

An answer may be a mishap of the issuer, or an old copy, if it is empty, lacks most of the keys, or is dated
before the answer in use. The keys and cut-offs that it adds are believed. A key or cut-off that it lacks goes when
the next answer lacks it, too. This protects honest messages from a slip of the issuer: ``key_unknown`` is final.

``answer_on`` holds for a file, too. While the newest read of a source has failed nobody knows which keys it has by
now: a kid that the last good set lacks is undecided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, Literal

from mqauth.clock import Backoff
from mqauth.errors import Cause, Unavailable, require
from mqauth.wire.keys import KeySet

COOLDOWN: Final = 30.0
"""Seconds between the beginnings of two attempts for the sake of unknown kids, also during an outage."""
RETRIES: Final = Backoff(first=2.0, longest=COOLDOWN)
"""Seconds between the attempts of a cache that never had a set."""
MAX_STALE: Final = 7 * 86400
MAX_PUBLISH_DELAY: Final = 7 * 86400.0
ABSENT_KIDS: Final = 128
NEVER: Final = -math.inf
MISREAD: Final = "its mqauth_cutoff cannot be read"
EMPTIED: Final = "it has no key any more: every message of it is key_unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one cache, in seconds.

    Args:
        max_stale: how long the last good set may be used after it was asked for.
        publish_delay: how long the issuer publishes a key before it signs with it.
        fresh: how long a set is fresh without a ``Cache-Control``; with one, it is fresh between a fifth and
            three times as long.
        wait: how long a caller waits for one attempt.

    Raises:
        ConfigurationError: a bound is not finite, not in range, or contradicts another.
    """

    max_stale: float = 3600
    publish_delay: float = 30
    fresh: float = 300
    wait: float = 2

    def __post_init__(self) -> None:
        bounds = {
            "fresh": (COOLDOWN, 86400),
            "max_stale": (COOLDOWN, MAX_STALE),
            "publish_delay": (0, MAX_PUBLISH_DELAY),
            "wait": (0, 2),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            require(
                number and low <= value <= high,
                f"{name} is {low:g} to {high:g} seconds, not {value!r}",
            )

    def freshness(self, max_age: float | None, age: float) -> float:
        """Return the seconds for which an answer is fresh (RFC 9111, section 4.2), within our bounds."""
        seconds = self.fresh if max_age is None else max_age - age
        return min(max(seconds, self.fresh / 5), 3 * self.fresh, self.max_stale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One good answer of an issuer.

    Args:
        keys: the keys of the document, ``None`` where the issuer said that nothing changed (304).
        publish_delay: the publish delay that the document announces, seconds.
        max_age: from ``Cache-Control``, seconds; 0 for ``no-cache`` and ``no-store``.
        age: seconds that the answer spent in caches.
        date: UTC seconds at which the issuer made it, where it says so.
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
    """The state of one cache. It never changes; a new state takes its place as a whole.

    Args:
        keys: the last good set, however old.
        asked: when the answer with this set was asked for.
        origin: the latest moment at which the issuer itself can have made that answer.
        fresh_until: when the set becomes stale.
        publish_delay: the publish delay that the issuer announced, seconds.
        etag: the entity tag of the answer that equals the set.
        date: the issuer's date of that answer, UTC seconds.
        suspects: the kids of which the next answer has to confirm that they are gone or have other terms.
        seen_empty: whether the first answer held no key; a second one like it counts.
        attempt: when the last attempt began.
        in_flight: whether that attempt has not ended yet.
        due: when the next attempt is to begin.
        failing_since: when the first failed attempt of the present outage began.
        failures: the number of failed attempts in a row.
        failure: the reason why the last attempt failed.
        announced: the state that an event announced last.
    """

    keys: KeySet | None = None
    asked: float = NEVER
    origin: float = NEVER
    fresh_until: float = NEVER
    publish_delay: float = 0
    etag: str | None = None
    date: float | None = None
    suspects: Set[str] = frozenset()
    seen_empty: bool = False
    attempt: float = NEVER
    in_flight: bool = False
    due: float = NEVER
    failing_since: float | None = None
    failures: int = 0
    failure: str | None = None


Note = tuple[str, str]
"""What is logged and counted, and a detail, which never holds a key.

``refreshed`` is a good answer, with the keys that it added, removed or changed; the others are ``failed``,
``loss_held``, ``emptied``, ``key_skipped`` and ``snapshot_failed``."""
Step = tuple[Cache, tuple[Note, ...]]


def usable(cache: Cache, now: float, limits: Limits) -> KeySet | None:
    """Return the set that may be used now, if there is one."""
    return cache.keys if now - cache.asked <= limits.max_stale else None


def answer_on(cache: Cache, kid: str, now: float, limits: Limits) -> KeySet:
    """Return the set that decides about a kid, with or without it.

    Raises:
        Unavailable: ``keys_unavailable``, no set may be used; ``key_pending``, the newest read has failed, and the
            last good set lacks the kid.
    """
    keys = usable(cache, now, limits)
    if keys is None:
        raise unavailable(cache)
    if cache.failing_since is not None and keys.get(kid) is None:
        raise Unavailable(
            Cause.KEY_PENDING, cache.failure or "the key set cannot be read"
        )
    return keys


def unavailable(cache: Cache) -> Unavailable:
    """Return the error of a cache without a set that may be used."""
    return Unavailable(
        Cause.KEYS_UNAVAILABLE, cache.failure or "no key set was fetched yet"
    )


def begin(cache: Cache, now: float) -> Cache:
    """Return the state after the beginning of an attempt."""
    return replace(cache, attempt=now, in_flight=True, due=now + COOLDOWN)


def answered(cache: Cache, answer: Answer, *, limits: Limits, jitter: float) -> Step:
    """Return the state after a good answer to the attempt in flight, and the notes.

    Args:
        cache: the state before.
        answer: the answer of the issuer.
        limits: the bounds.
        jitter: 0 to 1; spreads the refreshes of many consumers.
    """
    asked, current = cache.attempt, cache.keys or KeySet([])
    if answer.keys is None:
        merged = Merged(current, cache.suspects, (("refreshed", "unchanged"),))
    elif cache.keys is not None or answer.keys.keys or cache.seen_empty:
        outdated = (
            cache.date is not None
            and answer.date is not None
            and answer.date < cache.date
        )
        merged = merge(current, answer.keys, cache.suspects, outdated=outdated)
    else:
        return failed(
            replace(cache, seen_empty=True),
            "the first set holds no usable key",
            jitter=jitter,
        )
    # The keys count. But whom the issuer has cut off by now is not known, for at most as long as in an outage.
    if answer.keys is not None and answer.keys.misread:
        kept = None if cache.keys is None else merged.keys
        unread = replace(cache, keys=kept, suspects=merged.suspects)
        after, notes = failed(unread, MISREAD, jitter=jitter)
        return after, (*merged.notes, *notes)
    fresh = limits.freshness(answer.max_age, answer.age)
    settled = not merged.suspects
    # Ahead of time, so that the set does not become stale; at once, where something is to be confirmed.
    ahead = fresh * (0.8 + 0.1 * jitter) if settled else 0
    unchanged = answer.keys is None
    result = replace(
        cache,
        keys=merged.keys,
        asked=asked,
        origin=asked - answer.age,
        fresh_until=asked + fresh,
        # A document without a publish delay takes the one before back.
        publish_delay=cache.publish_delay if unchanged else answer.publish_delay or 0,
        # A suspicious answer sets no date, which could make honest answers look outdated.
        date=answer.date if settled and answer.date is not None else cache.date,
        etag=(cache.etag if unchanged else answer.etag) if settled else None,
        suspects=merged.suspects,
        in_flight=False,
        due=asked + max(ahead, COOLDOWN),
        failing_since=None,
        failures=0,
        failure=None,
        seen_empty=False,
    )
    return result, merged.notes


def failed(cache: Cache, failure: str, *, jitter: float) -> Step:
    """Return the state after the attempt in flight failed, and the notes; the set serves until ``max_stale``."""
    # Without any set the first attempts follow each other faster.
    pause = COOLDOWN if cache.keys is not None else RETRIES.step(1 + cache.failures)
    result = replace(
        cache,
        in_flight=False,
        due=cache.attempt + pause * (1 + 0.25 * jitter),
        failing_since=cache.attempt
        if cache.failing_since is None
        else cache.failing_since,
        failures=cache.failures + 1,
        failure=failure,
    )
    return result, (("failed", failure),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of a key cache. Ages are in seconds, ``None`` where the event never happened.

    Args:
        source: the URL of the key set, without its query; or its file.
        state: ``"fresh"``; ``"stale"``, old but in use; or ``"unavailable"``, no set may be used.
        version: the version of the set in use.
        keys: the number of keys in it.
        age: the time since the last good answer was asked for.
        serves_for: the time until the set may no longer be used, unless a good answer comes.
        attempt_age: the time since the last attempt.
        failing_for: the time since the first failed attempt of the present outage.
        last_failure: the failure of the last attempt, ``None`` after a good answer.
        held: kids that are kept only because their loss or change was seen just once.
        skipped: the keys of the last document that cannot be used, one line each.
        counters: since the start, the ``attempts`` and what came of them, by the first word of each ``Note``.
    """

    source: str
    state: Literal["fresh", "stale", "unavailable"]
    version: str | None
    keys: int
    age: float | None
    serves_for: float | None
    attempt_age: float | None
    failing_for: float | None
    last_failure: str | None
    held: tuple[str, ...]
    skipped: tuple[str, ...]
    counters: Mapping[str, int]


def health_of(
    cache: Cache, *, source: str, now: float, limits: Limits, counters: Mapping[str, int]
) -> Health:
    """Return the state of a cache as its users see it."""
    keys = usable(cache, now, limits)
    state: Literal["fresh", "stale", "unavailable"] = "unavailable"
    if keys is not None:
        state = "fresh" if now < cache.fresh_until else "stale"
    return Health(
        source=source,
        state=state,
        version=None if keys is None else keys.version,
        keys=0 if keys is None else len(keys.keys),
        age=None if cache.keys is None else now - cache.asked,
        serves_for=None if keys is None else cache.asked + limits.max_stale - now,
        attempt_age=None if cache.attempt == NEVER else now - cache.attempt,
        failing_for=None if cache.failing_since is None else now - cache.failing_since,
        last_failure=cache.failure,
        held=tuple(sorted(cache.suspects)),
        skipped=() if cache.keys is None else cache.keys.skipped,
        counters=dict(counters),
    )


class Ruling(Enum):
    """What happens to a message with a kid that the set in use may lack."""

    ANSWER = "answer"
    """The set in use answers. If it lacks the kid, the kid is unknown."""
    ASK = "ask"
    """An attempt is to begin, and is waited for."""
    WAIT = "wait"
    """The attempt in flight is waited for."""
    PENDING = "pending"
    """The message is deferred: the issuer cannot answer now, or there is no set at all."""


def rule(
    cache: Cache,
    kid: str,
    *,
    received: float,
    now: float,
    limits: Limits,
    absent: Mapping[str, float],
) -> Ruling:
    """Decide about a kid that the set in use may lack.

    Args:
        cache: the state.
        kid: the key id in the token of a message.
        received: when the message was received.
        now: the present time.
        limits: the bounds.
        absent: when the issuer was asked in vain for a kid; without them a producer with one wrong kid would cause
            a request every half minute, for ever.
    """
    keys = usable(cache, now, limits)
    # While the newest attempt has failed no set is young enough: an outage makes no kid unknown.
    down = cache.failing_since is not None
    # A key that signs now has been published for the delay, so that a set younger than that would have it.
    young = now - cache.origin < max(limits.publish_delay, cache.publish_delay)
    # For a minute: a producer that signed a little before its key was published is heard again soon.
    settled = not down and (
        young or now - absent.get(kid, NEVER) < 60 or asked_in_vain(cache, kid, received)
    )
    if keys is not None and (settled or keys.get(kid) is not None):
        return Ruling.ANSWER
    if cache.in_flight:
        # Counted from the attempt and not from each message: behind an issuer that hangs, many forged kids
        # together cost a consumer ``wait`` seconds.
        if now < cache.attempt + limits.wait:
            return Ruling.WAIT
    elif now >= cache.attempt + COOLDOWN:
        return Ruling.ASK
    # Without a failure the answer is only late, or a live issuer was asked a moment ago.
    if keys is None or down or cache.in_flight:
        return Ruling.PENDING
    return Ruling.ANSWER


def asked_in_vain(cache: Cache, kid: str, received: float) -> bool:
    """Tell whether the issuer has answered since the message came, and without its kid."""
    return (
        min(cache.asked, cache.origin) >= received
        and cache.keys is not None
        and cache.keys.get(kid) is None
    )


def publish_delay_of(document: Mapping[str, object]) -> float | None:
    """Return the publish delay that a JWK Set announces, in seconds; ``None`` if there is no valid one."""
    value = document.get("mqauth_publish_delay")
    return (
        float(value) if type(value) is int and 0 <= value <= MAX_PUBLISH_DELAY else None
    )


@dataclass(frozen=True, slots=True)
class Merged:
    """The set to use from now on, the kids that the next answer has to confirm, and the notes."""

    keys: KeySet
    suspects: Set[str]
    notes: tuple[Note, ...]


def merge(
    current: KeySet, answer: KeySet, suspects: Set[str], *, outdated: bool
) -> Merged:
    """Merge an answer into the set in use.

    Args:
        current: the set in use, empty at first.
        answer: the keys of a good answer.
        suspects: the kids that the last answer left to be confirmed.
        outdated: whether the answer is dated before the one in use.
    """
    # A revocation and other new terms count at once, but not those of an old copy.
    missing = {key.kid for key in current if answer.get(key.kid) is None}
    others = {key.kid for key in current if answer.get(key.kid) not in (None, key)}
    mishap = outdated or 2 * len(missing) > len(current.keys)
    held = ((missing if mishap else set()) | (others if outdated else set())) - suspects
    cutoffs = answer.cutoffs
    if answer.misread or outdated:
        cutoffs = current.cutoffs
    elif held:
        # Whoever answers with half a set by mistake has left out cut-offs, too: only later ones count already.
        later = {
            subject: cutoff
            for subject, cutoff in answer.cutoffs.items()
            if subject not in current.cutoffs
            or cutoff.before > current.cutoffs[subject].before
        }
        cutoffs = {**current.cutoffs, **later}
    keys = KeySet(
        [
            *(key for key in answer if key.kid not in held),
            *(key for key in current if key.kid in held),
        ],
        answer.skipped,
        cutoffs,
    )
    # What the answer changed, what it cannot take away yet, and which of its keys cannot be used.
    before, after = current.by_kid, keys.by_kid
    changed = {kid for kid in before.keys() & after.keys() if before[kid] != after[kid]}
    revoked = {
        kid
        for kid in changed
        if after[kid].revocation not in (None, before[kid].revocation)
    }
    told = {
        "added": after.keys() - before.keys(),
        "removed": before.keys() - after.keys(),
        "revoked": revoked,
        "changed": changed - revoked,
    }
    detail = "; ".join(
        f"{what} {', '.join(sorted(kids))}" for what, kids in told.items() if kids
    )
    notes = [("refreshed", detail or "unchanged")]
    if held:
        notes.append(
            ("loss_held", f"{len(held)} keys missing or older, kept until seen twice")
        )
    if current.keys and not keys.keys:
        notes.append(("emptied", EMPTIED))
    notes += [
        ("key_skipped", line) for line in keys.skipped if line not in current.skipped
    ]
    # The very same object tells everybody that nothing has changed.
    if keys.version == current.version and keys.skipped == current.skipped:
        keys = current
    return Merged(keys, held, tuple(notes))
