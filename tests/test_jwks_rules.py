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


def named(key: Key, kid: str) -> Key:
    """Return a key under another's kid."""
    return replace(key.public_only, kid=kid)


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


def test_a_set_serves_until_max_stale_and_no_longer() -> None:
    """The last good set serves for ``max_stale`` seconds after it was asked for, and not a moment longer."""
    cache = fetched(A)
    assert rules.usable(cache, 3600, LIMITS) is cache.keys
    assert rules.usable(cache, 3600.001, LIMITS) is None


# Shrink guard


def test_an_empty_set_must_be_seen_twice() -> None:
    """An empty answer leaves the keys in use with an alarm and is asked again in 30 s; the second one counts."""
    cache, events = step(fetched(A, B, etag='"1"'), Answer(keys=KeySet([]), etag='"2"'), at=240)
    assert kids(cache) == {A.kid, B.kid}
    assert kinds(events) == ["refreshed", "loss_held"]
    assert (cache.due, cache.etag) == (270, None)
    cache, events = step(cache, Answer(keys=KeySet([])), at=270)
    assert kids(cache) == set()
    assert [detail for _, detail in events] == [f"removed {', '.join(sorted((A.kid, B.kid)))}"]


def test_losing_most_keys_must_be_seen_twice_and_what_is_new_counts_at_once() -> None:
    """Three of four keys gone stay until confirmed, while the new key of that answer is used at once."""
    cache, _ = step(fetched(A, B, C, D), Answer(keys=KeySet([A, E])), at=240)
    assert kids(cache) == {key.kid for key in (A, B, C, D, E)}
    assert kids(fetched(A, E, at=270, before=cache)) == {A.kid, E.kid}


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


def test_losing_half_is_no_mishap() -> None:
    """A rotation of two keys to one purges at once."""
    assert kids(fetched(B, at=240, before=fetched(A, B))) == {B.kid}


def test_a_loss_that_was_not_repeated_is_forgotten() -> None:
    """After a whole answer in between, a second loss is a first one again."""
    cache = fetched(at=240, before=fetched(A, B))
    cache = fetched(A, B, at=270, before=cache)
    assert cache.suspects == frozenset()
    assert kids(fetched(at=510, before=cache)) == {A.kid, B.kid}


def test_a_failed_attempt_does_not_confirm_a_loss() -> None:
    """A failure between two empty answers neither confirms the first nor forgets it."""
    cache, _ = step(fetched(at=240, before=fetched(A)), "down", at=270)
    assert kids(cache) == {A.kid}
    assert kids(fetched(at=300, before=cache)) == set()


def test_a_first_set_that_is_empty_must_be_seen_twice() -> None:
    """A cold cache takes an empty answer for a failure, and for a set when it is repeated."""
    cache, events = step(Cache(), Answer(keys=KeySet([])), at=0)
    assert cache.keys is None
    assert kinds(events) == ["failed"]
    assert kids(fetched(at=2, before=cache)) == set()


def test_the_same_kid_with_another_key_counts_at_once() -> None:
    """An issuer that may add keys may exchange one, too: the new one is used and told of."""
    other = named(E, A.kid)
    cache, events = step(fetched(A, B), Answer(keys=KeySet([other, B])), at=240)
    assert cache.keys is not None
    assert cache.keys.get(A.kid) == other
    assert events == (("refreshed", f"changed {A.kid}"),)


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


def test_undated_answers_are_taken_in_the_order_they_were_asked_for() -> None:
    """Where either answer has no date, a later answer removes a key at once."""
    assert kids(fetched(A, B, at=240, before=fetched(A, B, C, date=1000))) == {A.kid, B.kid}
    assert kids(fetched(A, B, date=900, at=240, before=fetched(A, B, C))) == {A.kid, B.kid}


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


@pytest.mark.parametrize(
    "settings", [{"fresh": 29}, {"max_stale": 29}, {"wait": 2.1}, {"max_stale": 604801}, {"max_hold": 3601}]
)
def test_bounds_out_of_range_are_refused(settings: dict[str, float]) -> None:
    """A set neither serves nor is fresh for less than the pause between attempts; nobody waits over 2 s."""
    with pytest.raises(ConfigurationError, match="seconds"):
        Limits(**settings)


@pytest.mark.parametrize(
    ("announced", "expected"),
    [(600, 600), (0, 0), (-1, None), (True, None), (1.5, None), ("9", None), (1e9, None)],
)
def test_only_a_sound_announcement_counts(announced: object, expected: float | None) -> None:
    """A publish delay is announced as whole seconds, at most a week; anything else is no announcement."""
    assert rules.publish_delay_of({"mqauth_publish_delay": announced}) == expected
