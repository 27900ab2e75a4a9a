"""The rules of the remote key cache, pure: every bound at the second before and the second after."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from mqauth.errors import ConfigurationError
from mqauth.keystore.remote import rules
from mqauth.keystore.remote.rules import ABSENT_KIDS, Answer, Cache, Limits, Ruling, merge
from mqauth.wire.keys import Cutoff, Key, KeySet, Revocation
from mqauth.wire.memo import Recent

KEYS = [Key.generate() for _ in range(6)]
A, B, C, D, E, F = KEYS
LIMITS = Limits()
NOBODY = "nobody"


def fetched(
    *keys: Key, at: float = 0.0, limits: Limits = LIMITS, before: Cache | None = None, **said: Any
) -> Cache:
    """Return a cache after a good answer asked for at a time."""
    return step(before or Cache(), Answer(keys=KeySet(keys), **said), at=at, limits=limits)[0]


def step(cache: Cache, answer: Answer | str, *, at: float, limits: Limits = LIMITS) -> rules.Step:
    """Make one attempt with a known end, without jitter."""
    begun = rules.begin(cache, at)
    if isinstance(answer, str):
        return rules.failed(begun, answer, asked=at, now=at, limits=limits, jitter=0)
    return rules.answered(begun, answer, asked=at, limits=limits, jitter=0)


def ruling(
    cache: Cache, *, now: float, received: float | None = None, kid: str = NOBODY, **changes: Any
) -> Ruling:
    """Rule on a kid of a message received now, unless told otherwise."""
    absent, limits = changes.pop("absent", Recent[str, float](ABSENT_KIDS)), changes.pop("limits", LIMITS)
    since = now if received is None else received
    return rules.rule(cache, kid, received=since, now=now, limits=limits, absent=absent)


def kinds(notes: tuple[rules.Note, ...]) -> list[str]:
    """Return the kinds of notes."""
    return [kind for kind, _ in notes]


def kids(cache: Cache) -> set[str]:
    """Return the kids in use."""
    assert cache.keys is not None
    return set(cache.keys.by_kid)


# Serving


def test_an_older_answer_never_replaces_a_newer() -> None:
    """An answer to any attempt but the latest, and a second answer to that one, change nothing."""
    cache = fetched(A, at=100)
    late = Answer(keys=KeySet([B]))
    assert rules.answered(cache, late, asked=50, limits=LIMITS, jitter=0) == (cache, ())
    assert rules.answered(rules.begin(cache, 200), late, asked=100, limits=LIMITS, jitter=0)[0].keys is cache.keys
    assert rules.failed(cache, "late", asked=50, now=101, limits=LIMITS, jitter=0) == (cache, ())


def test_not_modified_renews_the_set_in_use() -> None:
    """A 304 keeps set, version, entity tag and announced delay, and makes them fresh again."""
    cache = fetched(A, etag='"1"', publish_delay=600)
    after, events = step(cache, Answer(keys=None, etag='"1"'), at=250)
    assert after.keys is cache.keys
    assert (after.etag, after.publish_delay, after.fresh_until) == ('"1"', 600, 550)
    assert events == (("refreshed", "unchanged"),)


# Unknown kids


def test_waiting_for_an_attempt_ends_two_seconds_after_it_began() -> None:
    """Whoever comes during an attempt waits until 2 s after its beginning; who comes later does not wait."""
    cache = rules.begin(fetched(A), 100)
    assert ruling(cache, now=101.999) is Ruling.WAIT
    assert ruling(cache, now=102) is Ruling.PENDING


@pytest.mark.parametrize("outage", [False, True])
def test_a_flood_of_random_kids_costs_the_issuer_one_attempt_in_half_a_minute(outage: bool) -> None:
    """100 random kids a second for ten minutes cause at most 21 attempts, with the issuer up and down."""
    cache, attempts, absent = fetched(A), 0, Recent[str, float](ABSENT_KIDS)
    for tick in range(60_000):
        now = 30 + tick / 100
        if ruling(cache, now=now, kid=str(tick), absent=absent) is Ruling.ASK:
            attempts += 1
            cache, _ = step(cache, "down" if outage else Answer(keys=KeySet([A])), at=now)
    assert 18 <= attempts <= 21


# Shrink guard


@pytest.mark.parametrize("answered", [(), (A,)], ids=["empty", "a third"])
def test_what_an_answer_lacks_by_mishap_it_lacks_of_cutoffs_too(answered: tuple[Key, ...]) -> None:
    """A cut-off stays until the next answer lacks it, too; a new or later one counts at once."""
    cut = {"thief": Cutoff(before=100), "late": Cutoff(before=5)}
    said = {"late": Cutoff(before=9), "new": Cutoff(before=1)}
    first = merge(KeySet([A, B, C], (), cut), KeySet(answered, (), said), frozenset(), outdated=False)
    assert first.keys.cutoffs == cut | said
    earlier = merge(first.keys, KeySet([A], (), {"late": Cutoff(before=8)}), frozenset(), outdated=False)
    assert earlier.keys.cutoffs == first.keys.cutoffs
    again = merge(first.keys, KeySet(answered, (), said), first.suspects, outdated=False)
    assert (again.keys.cutoffs, set(again.keys.by_kid)) == (said, {key.kid for key in answered})


def test_a_first_set_that_is_empty_must_be_seen_twice() -> None:
    """A cold cache takes an empty answer for a failure, and for a set when it is repeated."""
    cache, events = step(Cache(), Answer(keys=KeySet([])), at=0)
    assert cache.keys is None
    assert kinds(events) == ["failed"]
    assert kids(fetched(at=2, before=cache)) == set()


def test_a_revocation_counts_at_once() -> None:
    """The same public key under new terms is taken from the first answer, and told of."""
    revoked = replace(A.public_only, revocation=Revocation(reason="stolen"))
    cache, events = step(fetched(A), Answer(keys=KeySet([revoked])), at=240)
    assert cache.keys is not None
    assert cache.keys.get(A.kid) == revoked
    assert events == (("refreshed", f"revoked {A.kid}"),)


def test_an_answer_dated_before_the_one_in_use_takes_nothing_away() -> None:
    """An old copy neither removes a newer key nor takes a revocation back, until it is seen twice."""
    revoked = replace(B.public_only, revocation=Revocation())
    cache = fetched(A, revoked, C, date=1000)
    cache = fetched(A, B, date=900, at=240, before=cache)
    assert cache.keys is not None
    assert (kids(cache), cache.keys.get(B.kid)) == ({A.kid, B.kid, C.kid}, revoked)
    cache = fetched(A, B, date=900, at=270, before=cache)
    assert cache.keys is not None
    assert (kids(cache), cache.keys.get(B.kid)) == ({A.kid, B.kid}, B.public_only)


def test_skipped_keys_are_told_of_once() -> None:
    """A key that cannot be used is an event when it first appears, and not at each refresh."""
    line = "key 1: its kty or crv is not one of this profile"
    first = merge(KeySet([A]), KeySet([A], [line]), frozenset(), outdated=False)
    again = merge(first.keys, KeySet([A], [line]), frozenset(), outdated=False)
    assert [detail for _, detail in first.notes] == ["unchanged", line]
    assert [detail for _, detail in again.notes] == ["unchanged"]


# Settings


@pytest.mark.parametrize("name", ["max_stale", "publish_delay", "fresh", "max_hold", "wait"])
@pytest.mark.parametrize("value", [math.inf, math.nan, -1, True, "60", None])
def test_no_bound_may_be_infinite(name: str, value: Any) -> None:
    """Every bound is a finite number of seconds; nothing serves, holds or waits for ever."""
    with pytest.raises(ConfigurationError, match=name):
        Limits(**{name: value})
