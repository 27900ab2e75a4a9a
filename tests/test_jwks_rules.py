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
    *keys: Key,
    at: float = 0.0,
    limits: Limits = LIMITS,
    before: Cache | None = None,
    **said: Any,
) -> Cache:
    """Return a cache after a good answer asked for at a time."""
    return step(
        before or Cache(), Answer(keys=KeySet(keys), **said), at=at, limits=limits
    )[0]


def step(
    cache: Cache, answer: Answer | str, *, at: float, limits: Limits = LIMITS
) -> rules.Step:
    """Make one attempt with a known end, without jitter."""
    begun = rules.begin(cache, at)
    if isinstance(answer, str):
        return rules.failed(begun, answer, jitter=0)
    return rules.answered(begun, answer, limits=limits, jitter=0)


def ruling(
    cache: Cache,
    *,
    now: float,
    received: float | None = None,
    kid: str = NOBODY,
    **changes: Any,
) -> Ruling:
    """Rule on a kid of a message received now, unless told otherwise."""
    absent, limits = (
        changes.pop("absent", Recent[str, float](ABSENT_KIDS)),
        changes.pop("limits", LIMITS),
    )
    since = now if received is None else received
    return rules.rule(cache, kid, received=since, now=now, limits=limits, absent=absent)


def kinds(notes: tuple[rules.Note, ...]) -> list[str]:
    """Return the kinds of notes."""
    return [kind for kind, _ in notes]


def kids(cache: Cache) -> set[str]:
    """Return the kids in use."""
    return set(cache.keys.by_kid)


# Serving


def test_a_set_serves_until_max_stale_and_no_longer() -> None:
    """The last good set serves for ``max_stale`` seconds after it was asked for, and not a moment longer."""
    cache = fetched(A)
    assert rules.usable(cache, 3600, LIMITS) is cache.keys
    assert rules.usable(cache, 3600.001, LIMITS) is None


@pytest.mark.parametrize(
    ("max_age", "age", "expected"),
    [
        (None, 0, 300),
        (600, 0, 600),
        (600, 100, 500),
        (0, 0, 60),
        (59, 0, 60),
        (86400, 0, 900),
        (60, 9999, 60),
    ],
)
def test_cache_control_is_followed_within_bounds(
    max_age: float | None, age: float, expected: float
) -> None:
    """``max-age`` less ``Age`` decides freshness, between a fifth and three times ``fresh``."""
    assert fetched(A, max_age=max_age, age=age).fresh_until == expected


def test_freshness_never_outlasts_max_stale() -> None:
    """A long ``max-age`` does not keep a set fresh past the time it may serve."""
    assert Limits(max_stale=60).freshness(86400, 0) == 60


@pytest.mark.parametrize(("jitter", "due"), [(0.0, 240.0), (1.0, 270.0)])
def test_a_set_is_refreshed_ahead_of_time_with_jitter(jitter: float, due: float) -> None:
    """The next attempt begins between 80 and 90 % of the freshness, wherever jitter puts it."""
    begun = rules.begin(Cache(), 0)
    cache, _ = rules.answered(
        begun, Answer(keys=KeySet([A])), limits=LIMITS, jitter=jitter
    )
    assert cache.due == pytest.approx(due)


def test_not_modified_renews_the_set_in_use() -> None:
    """A 304 keeps set, version, entity tag and announced delay, and makes them fresh again."""
    cache = fetched(A, etag='"1"', publish_delay=600)
    after, events = step(cache, Answer(keys=None, etag='"1"'), at=250)
    assert after.keys is cache.keys
    assert (after.etag, after.publish_delay, after.fresh_until) == ('"1"', 600, 550)
    assert events == (("refreshed", "unchanged"),)


def test_an_equal_set_is_the_same_object() -> None:
    """An answer with the same keys leaves the very set in use, so that nobody is told of a change."""
    cache = fetched(A, B)
    assert fetched(B, A, at=250, before=cache).keys is cache.keys


# Outage


def test_an_outage_leaves_the_set_and_is_counted_from_the_first_failure() -> None:
    """Failures keep the set, remember when the outage began, and are forgotten with the next good answer."""
    cache = fetched(A)
    for at in (240, 270, 300):
        cache, _ = step(cache, "down", at=at)
    assert (cache.failing_since, cache.failures, cache.failure, kids(cache)) == (
        240,
        3,
        "down",
        {A.kid},
    )
    cache = fetched(A, at=330, before=cache)
    assert (cache.failing_since, cache.failures, cache.failure) == (None, 0, None)


def test_attempts_in_an_outage_are_half_a_minute_apart() -> None:
    """With a set in hand, the next attempt comes 30 s after the last began, up to a quarter later by jitter."""
    begun = rules.begin(fetched(A), 240)
    due = [rules.failed(begun, "x", jitter=j)[0].due for j in (0, 1)]
    assert due == [270, 277.5]


def test_a_cache_that_never_had_a_set_tries_again_sooner_at_first() -> None:
    """Cold attempts follow each other after 2, 4, 8, 16 and then 30 s."""
    cache, at, pauses = Cache(), 0.0, []
    for _ in range(6):
        cache, _ = step(cache, "down", at=at)
        pauses.append(cache.due - at)
        at = cache.due
    assert pauses == [2, 4, 8, 16, 30, 30]


def test_keys_that_are_gone_go_at_the_first_good_answer() -> None:
    """After an outage a removed key is purged at once, and told of."""
    cache, _ = step(fetched(A, B, C), "down", at=240)
    cache, events = step(cache, Answer(keys=KeySet([A, B])), at=270)
    assert kids(cache) == {A.kid, B.kid}
    assert events == (("refreshed", f"removed {C.kid}"),)


# Unknown kids


ANSWER, ASK, PENDING, WAIT = Ruling.ANSWER, Ruling.ASK, Ruling.PENDING, Ruling.WAIT


def down(cache: Cache, *times: float) -> Cache:
    """Return a cache after attempts that failed."""
    for at in times:
        cache, _ = step(cache, "down", at=at)
    return cache


@pytest.mark.parametrize(
    ("cache", "rulings"),
    [
        pytest.param(rules.begin(down(fetched(A), 3000), 3031), [({"now": 3032, "kid": A.kid}, ANSWER)],
                     id="a kid of the set is answered in an outage, during an attempt, however old the set is"),
        pytest.param(fetched(A, at=100), [({"now": 1000, "received": 100}, ANSWER),
                                          ({"now": 1000, "received": 100.001}, ASK)],
                     id="an unknown kid is unknown at once where the set was asked for at or after the receipt"),
        pytest.param(fetched(A, at=100, age=50), [({"now": 1000, "received": 50}, ANSWER),
                                                  ({"now": 1000, "received": 51}, ASK),
                                                  ({"now": 131, "received": 131}, ASK)],
                     id="Age makes an answer older: it is silent on what was received after its issuer made it"),
        pytest.param(fetched(A, at=0), [({"now": 29.999}, ANSWER), ({"now": 30}, ASK)],
                     id="an unknown kid is unknown at once while the set is younger than publish_delay"),
        pytest.param(fetched(A, publish_delay=600), [({"now": 200}, ANSWER), ({"now": 601}, ASK)],
                     id="what the document announces counts where it is longer than the setting"),
        pytest.param(fetched(A, publish_delay=1), [({"now": 29}, ANSWER)],
                     id="what the document announces does not count where it is shorter"),
        pytest.param(down(fetched(A), 100), [({"now": 129.999}, PENDING), ({"now": 130}, ASK)],
                     id="after an attempt that failed the next for unknown kids is 30 s after it began"),
        pytest.param(fetched(A, at=100, limits=Limits(publish_delay=0)),
                     [({"now": 110, "limits": Limits(publish_delay=0)}, ANSWER),
                      ({"now": 130, "limits": Limits(publish_delay=0)}, ASK)],
                     id="a live issuer that was just asked makes a kid unknown, never pending"),
        pytest.param(rules.begin(fetched(A), 100), [({"now": 101.999}, WAIT), ({"now": 102}, PENDING)],
                     id="whoever comes during an attempt waits until 2 s after its beginning, and not later"),
        pytest.param(down(fetched(A), 100, 3135), [({"now": 3164.999}, PENDING), ({"now": 3165}, ASK)],
                     id="an outage makes no kid unknown, however long it lasts"),
        pytest.param(down(fetched(A, at=90), 100), [({"now": 101, "received": received}, PENDING)
                                                    for received in (80, 101)],
                     id="nor does a set that was asked for a moment before it, or after the receipt"),
        pytest.param(Cache(), [({"now": 0}, ASK)], id="a cold cache asks"),
        pytest.param(rules.begin(Cache(), 0), [({"now": 1}, WAIT), ({"now": 2}, PENDING)],
                     id="a cold cache waits, and is unavailable; it never says that a kid is unknown"),
        pytest.param(down(Cache(), 0), [({"now": now, "received": 0}, told) for now, told in (
            (1, PENDING), (29, PENDING), (30, ASK))], id="nor does one whose first attempt failed"),
        pytest.param(fetched(A), [({"now": 3601, "kid": A.kid}, ASK)],
                     id="beyond max_stale a known kid makes us ask"),
        pytest.param(down(fetched(A), 3601), [({"now": 3602, "kid": A.kid}, PENDING)],
                     id="beyond max_stale a known kid is otherwise unavailable"),
    ],
)  # fmt: skip
def test_what_is_ruled_of_a_kid(
    cache: Cache, rulings: list[tuple[dict[str, Any], Ruling]]
) -> None:
    """Each bound of the rules is held at the moment before and the moment after."""
    assert [ruling(cache, **asked) for asked, _ in rulings] == [
        told for _, told in rulings
    ]


def test_kids_asked_for_in_vain_are_remembered_for_a_minute() -> None:
    """An unknown kid that an answer lacked is not asked for again within 60 s; another kid is."""
    cache, absent = fetched(A), Recent[str, float](ABSENT_KIDS)
    absent.keep(NOBODY, 40)
    assert ruling(cache, now=99.999, absent=absent) is Ruling.ANSWER
    assert ruling(cache, now=100, absent=absent) is Ruling.ASK
    assert ruling(cache, now=50, kid="other", absent=absent) is Ruling.ASK


@pytest.mark.parametrize("outage", [False, True])
def test_a_flood_of_random_kids_costs_the_issuer_one_attempt_in_half_a_minute(
    outage: bool,
) -> None:
    """100 random kids a second for ten minutes cause at most 21 attempts, with the issuer up and down."""
    cache, attempts, absent = fetched(A), 0, Recent[str, float](ABSENT_KIDS)
    for tick in range(60_000):
        now = 30 + tick / 100
        if ruling(cache, now=now, kid=str(tick), absent=absent) is Ruling.ASK:
            attempts += 1
            cache, _ = step(cache, "down" if outage else Answer(keys=KeySet([A])), at=now)
    assert 18 <= attempts <= 21


# Shrink guard


def test_an_empty_set_must_be_seen_twice() -> None:
    """An empty answer leaves the keys in use with an alarm and is asked again in 30 s; the second one counts."""
    cache, events = step(
        fetched(A, B, etag='"1"'), Answer(keys=KeySet([]), etag='"2"'), at=240
    )
    assert kids(cache) == {A.kid, B.kid}
    assert kinds(events) == ["refreshed", "loss_held"]
    assert (cache.due, cache.etag) == (270, None)
    cache, events = step(cache, Answer(keys=KeySet([])), at=270)
    assert kids(cache) == set()
    assert events == (
        ("refreshed", f"removed {', '.join(sorted((A.kid, B.kid)))}"),
        ("emptied", rules.EMPTIED),
    )


def test_losing_most_keys_must_be_seen_twice_and_what_is_new_counts_at_once() -> None:
    """Three of four keys gone stay until confirmed, while the new key of that answer is used at once."""
    cache, _ = step(fetched(A, B, C, D), Answer(keys=KeySet([A, E])), at=240)
    assert kids(cache) == {key.kid for key in (A, B, C, D, E)}
    assert kids(fetched(A, E, at=270, before=cache)) == {A.kid, E.kid}


@pytest.mark.parametrize("answered", [(), (A,)], ids=["empty", "a third"])
def test_what_an_answer_lacks_by_mishap_it_lacks_of_cutoffs_too(
    answered: tuple[Key, ...],
) -> None:
    """A cut-off stays until the next answer lacks it, too; a new or later one counts at once."""
    cut = {"thief": Cutoff(before=100), "late": Cutoff(before=5)}
    said = {"late": Cutoff(before=9), "new": Cutoff(before=1)}
    first = merge(
        KeySet([A, B, C], (), cut),
        KeySet(answered, (), said),
        frozenset(),
        outdated=False,
    )
    assert first.keys.cutoffs == cut | said
    earlier = merge(
        first.keys,
        KeySet([A], (), {"late": Cutoff(before=8)}),
        frozenset(),
        outdated=False,
    )
    assert earlier.keys.cutoffs == first.keys.cutoffs
    again = merge(first.keys, KeySet(answered, (), said), first.suspects, outdated=False)
    assert (again.keys.cutoffs, set(again.keys.by_kid)) == (
        said,
        {key.kid for key in answered},
    )


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


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (named(E, A.kid), "changed"),
        (replace(A.public_only, revocation=Revocation(reason="stolen")), "revoked"),
    ],
    ids=[
        "an issuer that may add keys may exchange one",
        "the same public key under new terms",
    ],
)
def test_a_key_that_changed_under_its_kid_counts_at_once(other: Key, told: str) -> None:
    """What the first answer has under a kid that was known is used, and told of."""
    cache, events = step(fetched(A, B), Answer(keys=KeySet([other, B])), at=240)
    assert cache.keys.get(A.kid) == other
    assert events == (("refreshed", f"{told} {A.kid}"),)


def test_an_answer_dated_before_the_one_in_use_takes_nothing_away() -> None:
    """An old copy neither removes a newer key nor takes a revocation back, until it is seen twice."""
    revoked = replace(B.public_only, revocation=Revocation())
    cache = fetched(A, revoked, C, date=1000)
    cache = fetched(A, B, date=900, at=240, before=cache)
    assert (kids(cache), cache.keys.get(B.kid)) == ({A.kid, B.kid, C.kid}, revoked)
    cache = fetched(A, B, date=900, at=270, before=cache)
    assert (kids(cache), cache.keys.get(B.kid)) == ({A.kid, B.kid}, B.public_only)


def test_undated_answers_are_taken_in_the_order_they_were_asked_for() -> None:
    """Where either answer has no date, a later answer removes a key at once."""
    assert kids(fetched(A, B, at=240, before=fetched(A, B, C, date=1000))) == {
        A.kid,
        B.kid,
    }
    assert kids(fetched(A, B, date=900, at=240, before=fetched(A, B, C))) == {
        A.kid,
        B.kid,
    }


def test_skipped_keys_are_told_of_once() -> None:
    """A key that cannot be used is an event when it first appears, and not at each refresh."""
    line = "key 1: its kty or crv is not one of this profile"
    first = merge(KeySet([A]), KeySet([A], [line]), frozenset(), outdated=False)
    again = merge(first.keys, KeySet([A], [line]), frozenset(), outdated=False)
    assert [detail for _, detail in first.notes] == ["unchanged", line]
    assert [detail for _, detail in again.notes] == ["unchanged"]


# Settings


@pytest.mark.parametrize(
    "settings",
    [
        *({name: value} for value in (math.inf, math.nan, -1, True, "60", None)
          for name in ("max_stale", "publish_delay", "fresh", "wait")),
        {"fresh": 29}, {"max_stale": 29}, {"wait": 2.1}, {"max_stale": 604801},
    ],
    ids=str,
)  # fmt: skip
def test_bounds_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    """Every bound is a finite number of seconds: nothing serves, holds or waits for ever, nobody over 2 s.

    A set neither serves nor is fresh for less than the pause between attempts.
    """
    with pytest.raises(ConfigurationError, match=rf"{next(iter(settings))}.*seconds"):
        Limits(**settings)


@pytest.mark.parametrize(
    ("announced", "expected"),
    [(600, 600), (0, 0), (-1, None), (True, None), (1.5, None), ("9", None), (1e9, None)],
)
def test_only_a_sound_announcement_counts(
    announced: object, expected: float | None
) -> None:
    """A publish delay is announced as whole seconds, at most a week; anything else is no announcement."""
    assert rules.publish_delay_of({"mqauth_publish_delay": announced}) == expected
