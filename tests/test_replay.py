"""Replay told from redelivery: the claim table row by row, leases, and a bounded memory."""

from __future__ import annotations

import gc
import hashlib
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from integration.scale import nightly
from mqauth import (
    Cause,
    ConfigurationError,
    MemoryReplayStore,
    Pipeline,
    Unavailable,
    Verdict,
)
from mqauth.flow import run
from mqauth.replay.rules import ClaimRequest, ClaimStatus, Entry, batch_id, judge
from mqauth.testing import FakeClock, Forge
from mqauth.wire.message import Message, Place

NOW = 1_900_000_000.0
REQUEST = ClaimRequest(
    scope="billing",
    id=b"1",
    owner="me",
    place=None,
    redelivered=False,
    lease=60.0,
    expires=NOW + 65,
)
IN_BATCH = replace(REQUEST, id=batch_id(b"1", 7), index=7)
LIVE = replace(REQUEST, expires=NOW + 1000)
HERE, THERE = ("", "t", 0, 1), ("", "t", 0, 2)
HELD = Entry("another", None, 10.0)
ENOUGH = 12  # seconds within which an expired id is forgotten: ids expire in buckets


def copied(request: ClaimRequest) -> ClaimRequest:
    """Return the claim of a copy: another delivery, not redelivered."""
    return replace(request, owner="copy")


def heir(request: ClaimRequest) -> ClaimRequest:
    """Return the claim of a redelivery, by another process."""
    return replace(request, owner="heir", redelivered=True)


@pytest.mark.parametrize(
    ("entry", "place", "now", "status"),
    [
        (HELD, HERE, 0, ClaimStatus.REPLAYED), (Entry("me", HERE, 10.0), HERE, 0, ClaimStatus.FRESH),
        (HELD, None, 9.999, ClaimStatus.HELD), (HELD, None, 10, ClaimStatus.FRESH),
    ],
)  # fmt: skip
def test_the_claim_table_at_its_edges(
    entry: Entry, place: Place | None, now: float, status: ClaimStatus
) -> None:
    """Without a place once, and just before and at the end of a lease; the contract has the other rows."""
    assert (
        judge(entry, replace(REQUEST, place=place, redelivered=place is None), now)
        is status
    )


def test_without_a_store_every_copy_is_handled() -> None:
    """``replay=None`` takes each claim for a first one, in its words; to leave it out is an error."""
    forge, handled = Forge(FakeClock(NOW)), list[bytes | None]()
    settings: dict[str, Any] = {
        "verifier": forge.verifier(),
        "policy": forge.policy("rabbitmq:shop/orders"),
    }
    guard = Pipeline(replay=None, clock=forge.clock, **settings)
    message = forge.seal(Message(destination="rabbitmq:shop/orders", body=b"order"))
    for _ in range(3):
        outcome = run(
            guard.process(
                guard.receive(message),
                lambda verified: handled.append(verified.body),
                None,
            )
        )
        assert outcome.verdict is Verdict.ACCEPTED
    assert handled == [b"order"] * 3
    with pytest.raises(TypeError, match="replay"):
        Pipeline(**settings)


def test_a_store_holds_at_least_one_id() -> None:
    """A capacity of nothing would defer for ever."""
    with pytest.raises(ConfigurationError):
        MemoryReplayStore(0)


def test_a_stepped_wall_clock_moves_no_lease() -> None:
    """Leases run on monotonic time."""
    clock = FakeClock(NOW)
    store = MemoryReplayStore(clock=clock)
    store.claim(LIVE)
    clock.step(300)
    assert store.claim(heir(LIVE)) is ClaimStatus.HELD


@pytest.mark.parametrize(
    "steps", [(300, -300), (-300, 300), (3000, -3000), (-3000, 3000)]
)
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


@pytest.mark.parametrize("index", [None, 8], ids=["single", "batch"])
@pytest.mark.parametrize(
    "story",
    [(300, 500, -300, 415, 500), (-300, 200, 100, 505, 400), (-300, 200, 100, 525, 400)],
    ids=[
        "forward first",
        "back first",
        "back first, and past the second life on the monotonic clock",
    ],
)
def test_a_longer_life_counts_on_both_clocks(
    index: int | None, story: tuple[int, int, int, int, int]
) -> None:
    """What is claimed again, or a sibling of it, across steps of the wall clock is kept by the later of both."""
    step, life, back, wait, end = story
    clock = FakeClock(NOW)
    store = MemoryReplayStore(clock=clock)
    first = replace(REQUEST if index is None else IN_BATCH, expires=NOW + 400)
    second = replace(
        first, id=_identity(first.id[:-2], index) if index else first.id, index=index
    )
    store.claim(first)
    clock.step(step)
    assert store.claim(replace(second, expires=NOW + life)) is ClaimStatus.FRESH
    clock.step(back)
    clock.advance(wait)
    assert clock.now() < NOW + end
    for one in (first, second):
        assert (
            store.claim(copied(replace(one, expires=NOW + end))) is ClaimStatus.REPLAYED
        )


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


def _identity(token: bytes, index: int | None) -> bytes:
    """Return the id of a single message, or of one in a batch."""
    return token if index is None else batch_id(token, index)


class Small(RuleBasedStateMachine):
    """A small memory store beside the pure table, which never forgets; no id is claimed past its life."""

    CAPACITY = 3
    LEASE = 20.0

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(NOW)
        self.store = MemoryReplayStore(self.CAPACITY, clock=self.clock)
        self.model: dict[bytes, Entry] = {}
        self.ends: dict[bytes, float] = {}
        self.attempts: list[ClaimRequest] = []

    @rule(
        number=st.integers(0, 4), index=st.sampled_from([None, None, 0, 3, 900]),
        place=st.sampled_from([None, HERE, THERE]), redelivered=st.booleans(),
        life=st.sampled_from([30, 60, 90]),
    )  # fmt: skip
    def claim(
        self,
        number: int,
        index: int | None,
        place: Place | None,
        redelivered: bool,
        life: int,
    ) -> None:
        """A new owner claims."""
        now = self.clock.now()
        token = bytes([number]) * 16
        while self.ends.setdefault(identity := _identity(token, index), now + life) < now:
            token = hashlib.sha256(token).digest()[:16]
        request = ClaimRequest(
            scope="s", id=identity, owner=str(len(self.attempts)), place=place, redelivered=redelivered,
            lease=self.LEASE, expires=self.ends[identity], index=index,
        )  # fmt: skip
        self.attempts.append(request)
        self.attempt(request)

    @rule(index=st.integers(0, 30), renew=st.booleans())
    def again(self, index: int, renew: bool) -> None:
        """An earlier owner claims again, or renews."""
        live = [
            request for request in self.attempts if request.expires >= self.clock.now()
        ]
        if live:
            self.attempt(replace(live[index % len(live)], renew=renew))

    def attempt(self, request: ClaimRequest) -> None:
        """Claim, compare with the table, and let the model follow; a full store has no room for another id."""
        known, now = self.model.get(request.id), self.clock.monotonic()
        live = sum(self.ends[key] >= self.clock.now() for key in self.model)
        try:
            status = self.store.claim(request)
        except Unavailable:
            assert known is None
            assert len(self.store) == self.CAPACITY
            return
        assert known is not None or request.renew or live < self.CAPACITY
        assert status is judge(known, request, now)
        if status is ClaimStatus.FRESH:
            place = request.place if known is None else known.place
            self.model[request.id] = Entry(request.owner, place, now + self.LEASE)

    @rule(index=st.integers(0, 30), end=st.sampled_from(["confirm", "release"]))
    def end(self, index: int, end: str) -> None:
        """Confirm and release count for the present owner alone."""
        if not self.attempts:
            return
        request = self.attempts[index % len(self.attempts)]
        getattr(self.store, end)(request)
        known = self.model.get(request.id)
        if known is not None and known.owner == request.owner:
            if end == "confirm":
                self.model[request.id] = known._replace(owner=None)
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


TestSmall = Small.TestCase
TestSmall.settings = settings(
    max_examples=nightly(100, otherwise=40), stateful_step_count=40
)


@pytest.mark.slow
@pytest.mark.parametrize("index", [None, 1023], ids=["single", "last of a batch"])
def test_one_claim_costs_little(index: int | None) -> None:
    """An id claimed alone of its batch, and the last one of the largest, takes hundreds of bytes, held or done."""
    store = MemoryReplayStore(clock=FakeClock(NOW))
    tokens = [hashlib.sha256(n.to_bytes(4, "big")).digest()[:16] for n in range(5_000)]
    requests = [
        replace(
            LIVE,
            id=_identity(token, index),
            index=index,
            owner=str(n),
            place=("", "t", 0, n),
        )
        for n, token in enumerate(tokens)
    ]
    tracemalloc.start()
    try:
        store.claim_many(requests)
        held, _ = tracemalloc.get_traced_memory()
        for request in requests:
            store.confirm(request)
        done, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / len(tokens) < 850
    assert done / len(tokens) < 450


@pytest.mark.slow
@pytest.mark.parametrize(
    ("offset", "most"), [(lambda n: n, 450), (lambda n: 2**40 + n * 7919 % 65_537, 450), (None, 350)],
    ids=["one after another", "scattered", "without places"],
)  # fmt: skip
def test_a_batch_costs_little(offset: Callable[[int], int] | None, most: int) -> None:
    """A done id in batches of 64 takes at most 16 bytes with its place, wherever that is, and six without."""
    store = MemoryReplayStore(clock=FakeClock(NOW))
    requests = []
    for n in range(64 * 75):
        token = hashlib.sha256((n // 64).to_bytes(4, "big")).digest()[:16]
        place = None if offset is None else ("", "t", n % 5, offset(n))
        requests.append(
            replace(
                LIVE, id=batch_id(token, n % 64), index=n % 64, owner=str(n), place=place
            )
        )
    tracemalloc.start()
    try:
        store.claim_many(requests)
        for request in requests:
            store.confirm(request)
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size / len(store) < most
