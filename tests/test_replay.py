"""Replay told from redelivery: the claim table row by row, leases, and a bounded memory."""

from __future__ import annotations

import hashlib
import threading
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mqauth.errors import Cause, ConfigurationError, Unavailable
from mqauth.idtable import IdTable
from mqauth.replay import ClaimRequest, ClaimStatus, Entry, MemoryReplayStore, claim_id, judge
from mqauth.testing import FakeClock

NOW = 1_900_000_000.0
REQUEST = ClaimRequest(
    scope="billing", id=b"1", owner="me", place=None, redelivered=False, lease=60.0, expires=NOW + 65
)
LIVE = replace(REQUEST, expires=NOW + 1000)
HELD = Entry("another", None, 10.0, NOW)
DONE = Entry(None, None, 10.0, NOW)
HERE, THERE = "/t/0/1", "/t/0/2"
ENOUGH = 12  # seconds within which an expired id is forgotten: ids expire in buckets


def copied(request: ClaimRequest) -> ClaimRequest:
    """Return the claim of a copy: another delivery, not redelivered."""
    return replace(request, owner="copy")


def heir(request: ClaimRequest) -> ClaimRequest:
    """Return the claim of a redelivery, by another process."""
    return replace(request, owner="heir", redelivered=True)


@pytest.mark.parametrize(
    ("entry", "place", "redelivered", "now", "status"),
    [
        (None, HERE, False, 0, ClaimStatus.FRESH),
        (None, None, False, 0, ClaimStatus.FRESH),
        (None, None, True, 0, ClaimStatus.FRESH),
        (replace(HELD, place=HERE), HERE, False, 0, ClaimStatus.FRESH),
        (replace(HELD, place=HERE), HERE, True, 99, ClaimStatus.FRESH),
        (replace(HELD, place=THERE), HERE, False, 0, ClaimStatus.REPLAYED),
        (replace(HELD, place=THERE), HERE, True, 0, ClaimStatus.REPLAYED),
        (replace(HELD, place=THERE), HERE, False, 99, ClaimStatus.REPLAYED),
        (replace(DONE, place=HERE), HERE, False, 0, ClaimStatus.REREAD),
        (replace(DONE, place=HERE), HERE, True, 99, ClaimStatus.REREAD),
        (replace(DONE, place=THERE), HERE, False, 0, ClaimStatus.REPLAYED),
        (replace(DONE, place=THERE), HERE, True, 99, ClaimStatus.REPLAYED),
        (HELD, HERE, False, 0, ClaimStatus.REPLAYED),
        (HELD, None, False, 0, ClaimStatus.REPLAYED),
        (HELD, None, False, 99, ClaimStatus.REPLAYED),
        (HELD, None, True, 9.999, ClaimStatus.HELD),
        (HELD, None, True, 10, ClaimStatus.FRESH),
        (HELD, None, True, 99, ClaimStatus.FRESH),
        (DONE, None, True, 0, ClaimStatus.DUPLICATE),
        (DONE, None, True, 99, ClaimStatus.DUPLICATE),
        (DONE, None, False, 0, ClaimStatus.REPLAYED),
        (DONE, None, False, 99, ClaimStatus.REPLAYED),
        (replace(HELD, owner="me"), None, False, 0, ClaimStatus.FRESH),
        (replace(HELD, owner="me"), None, True, 99, ClaimStatus.FRESH),
        (replace(HELD, owner="me", place=HERE), HERE, False, 0, ClaimStatus.FRESH),
    ],
)  # fmt: skip
def test_the_claim_table(
    entry: Entry | None, place: str | None, redelivered: bool, now: float, status: ClaimStatus
) -> None:
    """Each row of the table, with the lease before, at and after its end, and hints that must not matter."""
    assert judge(entry, replace(REQUEST, place=place, redelivered=redelivered), now) is status


@pytest.mark.parametrize(
    ("entry", "status"),
    [
        (None, ClaimStatus.LOST), (HELD, ClaimStatus.LOST), (DONE, ClaimStatus.LOST),
        (replace(HELD, owner="me"), ClaimStatus.FRESH),
    ],
)  # fmt: skip
def test_a_renewal_is_for_the_owner_alone(entry: Entry | None, status: ClaimStatus) -> None:
    """Renewing takes nothing that is not held by this owner, not even an unseen id or one whose lease is over."""
    assert judge(entry, replace(REQUEST, renew=True, redelivered=True), 99) is status
    assert judge(entry, replace(REQUEST, renew=True, place=HERE), 0) is status


def test_a_renewal_makes_the_lease_longer() -> None:
    """A renewed lease holds from the renewal on; a lost one cannot be renewed."""
    clock = FakeClock(NOW)
    store = MemoryReplayStore(clock=clock)
    store.claim(LIVE)
    clock.advance(50)
    assert store.claim(replace(LIVE, renew=True)) is ClaimStatus.FRESH
    clock.advance(59)
    assert store.claim(heir(LIVE)) is ClaimStatus.HELD
    clock.advance(1)
    assert store.claim(heir(LIVE)) is ClaimStatus.FRESH
    assert store.claim(replace(LIVE, renew=True)) is ClaimStatus.LOST


def test_a_batch_counts_as_its_wishes_one_by_one() -> None:
    """Of two copies in one batch the first is fresh and the second a replay; confirming ends each."""
    store = MemoryReplayStore(clock=FakeClock(NOW))
    other = replace(LIVE, id=b"2")
    assert store.claim_many([LIVE, copied(LIVE), other]) == [
        ClaimStatus.FRESH, ClaimStatus.REPLAYED, ClaimStatus.FRESH
    ]  # fmt: skip
    store.confirm_many([LIVE, copied(other)])
    assert store.claim(heir(LIVE)) is ClaimStatus.DUPLICATE
    assert store.claim(heir(other)) is ClaimStatus.HELD


def test_an_id_is_of_issuer_and_jti_without_ambiguity() -> None:
    """No two pairs of texts share an id, and surrogates do not raise."""
    pairs = [("a", "bc"), ("ab", "c"), ("", "abc"), ("abc", ""), ("a", "b"), ("\ud800", "a"), ("é", "a")]
    assert len({claim_id(*pair) for pair in pairs}) == len(pairs)
    assert {len(claim_id(*pair)) for pair in pairs} == {16}


def test_a_store_holds_at_least_one_id() -> None:
    """A capacity of nothing would defer for ever."""
    with pytest.raises(ConfigurationError):
        MemoryReplayStore(0)


def test_confirm_makes_a_claim_done() -> None:
    """After confirm a redelivery is a duplicate and a copy a replay, whatever time passes within its life."""
    clock = FakeClock(NOW)
    store = MemoryReplayStore(clock=clock)
    assert store.claim(REQUEST) is ClaimStatus.FRESH
    store.confirm(REQUEST)
    clock.advance(65)
    assert store.claim(replace(REQUEST, redelivered=True)) is ClaimStatus.DUPLICATE
    assert store.claim(copied(REQUEST)) is ClaimStatus.REPLAYED


def test_release_makes_an_id_unseen() -> None:
    """After release the message may be handled again."""
    store = MemoryReplayStore(clock=FakeClock(NOW))
    store.claim(REQUEST)
    store.release(REQUEST)
    assert len(store) == 0
    assert store.claim(copied(REQUEST)) is ClaimStatus.FRESH


@pytest.mark.parametrize("end", ["confirm", "release"])
def test_a_former_owner_changes_nothing(end: str) -> None:
    """Whoever lost the lease can neither finish nor free the new owner's claim."""
    clock = FakeClock(NOW)
    store = MemoryReplayStore(clock=clock)
    store.claim(REQUEST)
    clock.advance(60)
    assert store.claim(replace(REQUEST, owner="heir", redelivered=True)) is ClaimStatus.FRESH
    getattr(store, end)(REQUEST)
    assert store.claim(replace(REQUEST, owner="third", redelivered=True)) is ClaimStatus.HELD


@pytest.mark.parametrize("end", ["confirm", "release"])
def test_ending_an_unknown_or_done_claim_changes_nothing(end: str) -> None:
    """Confirm and release of what is not held do nothing: a done id is never freed."""
    store = MemoryReplayStore(clock=FakeClock(NOW))
    getattr(store, end)(REQUEST)
    assert len(store) == 0
    store.claim(REQUEST)
    store.confirm(REQUEST)
    getattr(store, end)(replace(REQUEST, owner="me"))
    assert store.claim(REQUEST) is ClaimStatus.REPLAYED


def test_a_lease_is_renewed_from_the_new_claim() -> None:
    """The heir holds for a whole lease of its own."""
    clock = FakeClock(NOW)
    store = MemoryReplayStore(clock=clock)
    store.claim(LIVE)
    clock.advance(60)
    assert store.claim(heir(LIVE)) is ClaimStatus.FRESH
    clock.advance(59.9)
    assert store.claim(replace(heir(LIVE), owner="third")) is ClaimStatus.HELD
    clock.advance(0.1)
    assert store.claim(replace(heir(LIVE), owner="third")) is ClaimStatus.FRESH


def test_a_stepped_wall_clock_moves_no_lease() -> None:
    """Leases run on monotonic time."""
    clock = FakeClock(NOW)
    store = MemoryReplayStore(clock=clock)
    store.claim(LIVE)
    clock.step(300)
    assert store.claim(heir(LIVE)) is ClaimStatus.HELD


@pytest.mark.parametrize("steps", [(300, -300), (-300, 300), (3000, -3000), (-3000, 3000)])
def test_a_stepped_wall_clock_lets_no_copy_in(steps: tuple[int, int]) -> None:
    """An id is forgotten only when both clocks agree that its copies are dead."""
    clock = FakeClock(NOW)
    store = MemoryReplayStore(clock=clock)
    clock.step(steps[0])
    store.claim(REQUEST)
    store.claim(copied(REQUEST))
    clock.step(steps[1])
    clock.advance(64)
    assert store.claim(copied(REQUEST)) is ClaimStatus.REPLAYED


def test_scopes_are_apart() -> None:
    """Each consumer group may handle a message once."""
    store = MemoryReplayStore(clock=FakeClock(NOW))
    assert store.claim(REQUEST) is ClaimStatus.FRESH
    assert store.claim(replace(REQUEST, scope="stock")) is ClaimStatus.FRESH


def test_a_full_store_defers_and_expiry_makes_room() -> None:
    """No live id is evicted; one is forgotten only after its last moment."""
    clock = FakeClock(NOW)
    store = MemoryReplayStore(2, clock=clock)
    store.claim(REQUEST)
    store.claim(replace(REQUEST, id=b"2", expires=NOW + 100))
    third = replace(REQUEST, id=b"3", expires=NOW + 200)
    with pytest.raises(Unavailable) as caught:
        store.claim(third)
    assert caught.value.cause is Cause.REPLAY_STORE_FULL
    assert store.claim(copied(REQUEST)) is ClaimStatus.REPLAYED
    clock.advance(65)
    with pytest.raises(Unavailable):
        store.claim(third)
    clock.advance(ENOUGH)
    assert store.claim(third) is ClaimStatus.FRESH
    assert len(store) == 2


def test_claim_and_release_in_turn_do_not_grow_memory() -> None:
    """A message whose handler always fails is claimed and released without end; nothing piles up."""
    store = MemoryReplayStore(clock=FakeClock(NOW))

    def churn(times: int) -> int:
        tracemalloc.start()
        for number in range(times):
            request = replace(REQUEST, id=bytes([number % 7]) * 16)
            store.claim(request)
            store.release(request)
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size

    churn(100)
    assert churn(5_000) < 10_000


def test_an_heir_that_may_live_longer_is_kept_longer() -> None:
    """A delivery that was deferred asks to be remembered beyond exp; taking over a lease counts as asking."""
    clock = FakeClock(NOW)
    store = MemoryReplayStore(clock=clock)
    store.claim(replace(REQUEST, place=HERE))
    store.claim(replace(LIVE, place=HERE, owner="heir"))
    clock.advance(65 + ENOUGH)
    assert store.claim(replace(LIVE, place=THERE, owner="copy")) is ClaimStatus.REPLAYED
    assert len(store) == 1


def test_what_was_released_is_forgotten_with_its_life() -> None:
    """A released and reclaimed id expires like any other, and those held beside it do too."""
    clock = FakeClock(NOW)
    store = MemoryReplayStore(clock=clock)
    for number in range(50):
        store.claim(replace(REQUEST, id=f"kept {number}".encode()))
    for _ in range(20):
        store.claim(REQUEST)
        store.release(REQUEST)
    store.claim(REQUEST)
    assert len(store) == 51
    clock.advance(65 + ENOUGH)
    for _ in range(51):
        store.claim(replace(LIVE, id=b"later"))
    assert len(store) == 1


def test_of_racing_copies_one_is_fresh() -> None:
    """Sixteen threads claim the same hundred ids at once; each id is given out once."""
    store = MemoryReplayStore(clock=FakeClock(NOW))
    fresh: list[bytes] = []
    start = threading.Barrier(16)

    def race() -> None:
        start.wait()
        for number in range(100):
            request = replace(REQUEST, id=str(number).encode(), owner=threading.current_thread().name)
            if store.claim(request) is ClaimStatus.FRESH:
                fresh.append(request.id)

    threads = [threading.Thread(target=race) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fresh) == len(set(fresh)) == 100


class StoreMachine(RuleBasedStateMachine):
    """The memory store beside a model that never forgets; no id is claimed past its life, as in the pipeline."""

    CAPACITY = 3

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(NOW)
        self.store = MemoryReplayStore(self.CAPACITY, clock=self.clock)
        self.model: dict[bytes, dict[str, Any]] = {}
        self.ends: dict[bytes, float] = {}
        self.attempts: list[ClaimRequest] = []

    @rule(
        number=st.integers(0, 4), place=st.sampled_from([None, HERE, THERE]), redelivered=st.booleans(),
        life=st.sampled_from([30, 60, 90]),
    )  # fmt: skip
    def claim(self, number: int, place: str | None, redelivered: bool, life: int) -> None:
        """A new owner's claim answers as the table says, and takes the lease only where it is fresh."""
        now = self.clock.now()
        identity = bytes([number]) * 16
        while self.ends.setdefault(identity, now + life) < now:
            identity = hashlib.sha256(identity).digest()[:16]
        request = ClaimRequest(
            scope="s", id=identity, owner=str(len(self.attempts)), place=place, redelivered=redelivered,
            lease=20.0,
            expires=self.ends[identity],
        )  # fmt: skip
        self.attempts.append(request)
        self.attempt(request)

    @rule(index=st.integers(0, 30), renew=st.booleans())
    def again(self, index: int, renew: bool) -> None:
        """An earlier owner claims again, or renews."""
        live = [request for request in self.attempts if request.expires >= self.clock.now()]
        if live:
            self.attempt(replace(live[index % len(live)], renew=renew))

    def attempt(self, request: ClaimRequest) -> None:
        """Claim, compare with the model, and let the model follow."""
        known = self.model.get(request.id)
        if known is None and not request.renew and self.is_full():
            with pytest.raises(Unavailable):
                self.store.claim(request)
            return
        try:
            status = self.store.claim(request)
        except Unavailable:
            assert known is None
            assert len(self.store) == self.CAPACITY
            return
        assert status is self.expected(known, request)
        if status is ClaimStatus.FRESH:
            known = self.model.setdefault(request.id, {"place": request.place})
            known |= {"owner": request.owner, "until": self.clock.monotonic() + 20.0}

    def is_full(self) -> bool:
        """Tell whether live ids alone fill the store."""
        return sum(self.ends[key] >= self.clock.now() for key in self.model) >= self.CAPACITY

    def expected(self, known: dict[str, Any] | None, request: ClaimRequest) -> ClaimStatus:
        """The table in another form."""
        ours = known is not None and known["owner"] == request.owner
        if request.renew:
            return ClaimStatus.FRESH if ours else ClaimStatus.LOST
        if known is None:
            return ClaimStatus.FRESH
        if ours:
            return ClaimStatus.FRESH
        done = known["owner"] is None
        if request.place is not None:
            same = known["place"] == request.place
            return (ClaimStatus.REREAD if done else ClaimStatus.FRESH) if same else ClaimStatus.REPLAYED
        if not request.redelivered:
            return ClaimStatus.REPLAYED
        if done:
            return ClaimStatus.DUPLICATE
        return ClaimStatus.HELD if self.clock.monotonic() < known["until"] else ClaimStatus.FRESH

    @rule(index=st.integers(0, 30), end=st.sampled_from(["confirm", "release"]))
    def end(self, index: int, end: str) -> None:
        """Confirm and release count for the present owner alone."""
        if not self.attempts:
            return
        request = self.attempts[index % len(self.attempts)]
        getattr(self.store, end)(request)
        known = self.model.get(request.id)
        if known is not None and known["owner"] == request.owner:
            if end == "confirm":
                known["owner"] = None
            else:
                del self.model[request.id]

    @rule(seconds=st.sampled_from([1, 10, 20, 61]))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.clock.advance(seconds)

    @invariant()
    def bounded(self) -> None:
        """The store never holds more than its capacity."""
        assert len(self.store) <= self.CAPACITY


StoreMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestStoreMachine = StoreMachine.TestCase


@pytest.mark.parametrize(
    "place", ["c/t/0/0", "c/t/0/9223372036854775807", "/t/0/1", "t", "", "/", "t/", "t/-1", "t/01", "t/1.5",
    "t/\u0661", "//1"]
)  # fmt: skip
def test_a_done_id_remembers_its_place_exactly(place: str) -> None:
    """However a place is written, the same one is a re-read and any other a replay."""
    store = MemoryReplayStore(clock=FakeClock(NOW))
    found = replace(REQUEST, place=place)
    store.claim(found)
    store.confirm(found)
    again = replace(found, owner="again")
    assert store.claim(again) is ClaimStatus.REREAD
    for other in (place + "0", place + "/", "0" + place, HERE + "x"):
        assert store.claim(replace(again, place=other)) is ClaimStatus.REPLAYED


def test_places_beyond_what_is_packed_are_kept_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """More topics and partitions than the table numbers cost memory and nothing else."""
    monkeypatch.setattr("mqauth.idtable._PREFIXES", 1)
    store = MemoryReplayStore(clock=FakeClock(NOW))
    for number in range(3):
        found = replace(REQUEST, id=bytes([number]), place=f"/t/{number}/7")
        store.claim(found)
        store.confirm(found)
        assert store.claim(replace(found, owner="again")) is ClaimStatus.REREAD


def test_scopes_are_bounded() -> None:
    """More scopes than keys can tell apart are refused, never mixed up."""
    table = IdTable()
    for number in range(1 << 16):
        table.key(str(number), bytes(16))
    with pytest.raises(OverflowError):
        table.key("one more", bytes(16))
