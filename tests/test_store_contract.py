"""The store contract on the memory store, and what only that one promises: room, forgetting, threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from integration.scale import nightly
from mqauth import MemoryReplayStore
from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.testing.clock import START, FakeClock
from mqauth.testing.store_contract import (
    FRESH,
    REPLAYED,
    REREAD,
    BatchStoreContract,
    sibling,
    wish,
)
from tests.kit.store_machine import machine

STEPS = settings(
    max_examples=nightly(150, otherwise=50), stateful_step_count=40, deadline=None
)


@pytest.fixture
def store(clock: FakeClock) -> MemoryReplayStore:
    return MemoryReplayStore(clock=clock)


class TestMemory(BatchStoreContract):
    """The memory store."""


def test_machine() -> None:
    """The memory store answers as the pure table does, whatever the order of calls."""
    run_state_machine_as_test(
        machine(lambda clock: MemoryReplayStore(clock=clock)), settings=STEPS
    )


class _Forgetful(MemoryReplayStore):
    """Releases for anybody."""

    def release(self, request: ClaimRequest, /) -> None:
        for owner in ("a", "b", "c"):
            super().release(replace(request, owner=owner))


class _Eager(MemoryReplayStore):
    """Renews what is another's."""

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        return super().claim(replace(request, renew=False))


class _Placeless(MemoryReplayStore):
    """Forgets places when done."""

    def confirm(self, request: ClaimRequest, /) -> None:
        super().confirm(request)
        if super().claim(replace(request, owner="x", renew=False)) is REREAD:
            self._done.update(dict.fromkeys(self._done))


@pytest.mark.parametrize("broken", [_Forgetful, _Eager, _Placeless])
def test_machine_bites(broken: type[MemoryReplayStore]) -> None:
    """A store that breaks a rule of owners or places is found out by the machine."""
    brief = settings(
        STEPS,
        max_examples=300,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            machine(lambda clock: broken(clock=clock)), settings=brief
        )


@pytest.mark.parametrize("done", [True, False], ids=["done", "held"])
def test_kept_until_expiry(
    store: MemoryReplayStore, clock: FakeClock, done: bool
) -> None:
    """An id is known to its last second and forgotten soon after, done or not."""
    store.claim(wish())
    if done:
        store.confirm(wish())
    clock.advance(3600)
    assert store.claim(wish("second")) is REPLAYED
    clock.advance(20)
    assert store.claim(wish("second", id=b"\x01" * 16, expires=START + 9999)) is FRESH
    assert len(store) == 1


@pytest.mark.parametrize("one", [wish(), sibling(7)], ids=["single", "batch"])
def test_released_leaves_nothing(store: MemoryReplayStore, one: ClaimRequest) -> None:
    """A released claim, in a batch the last one of its token, leaves nothing to be forgotten later."""
    for n in range(100):
        store.claim(replace(one, owner=f"{n}"))
        store.release(replace(one, owner=f"{n}"))
    assert len(store) == 0
    assert not any(bucket.keys for bucket in store._buckets.values())
    assert not (*store._done, *store._held)


def test_forgets_a_few_at_a_time(clock: FakeClock) -> None:
    """Ten thousand ids that expire together are forgotten over many claims, none of which waits for all."""
    store = MemoryReplayStore(clock=clock)
    store.claim_many(
        [wish(id=n.to_bytes(16, "big"), expires=START + 60) for n in range(10_000)]
    )
    clock.advance(100)
    sizes = []
    for n in range(10_000, 11_000):
        store.claim(wish(id=n.to_bytes(16, "big")))
        sizes.append(len(store))
    steps = [before - after for before, after in pairwise(sizes)]
    assert 0 < max(steps) < 100
    assert sizes[-1] == 1000


def test_threads() -> None:
    """Of eight threads that claim the same thousand copies, each copy at its own place, one gets each."""
    store, start = MemoryReplayStore(), threading.Barrier(8)

    def race(thread: int) -> list[bool]:
        start.wait()
        copies = (
            wish(f"{thread}", id=n.to_bytes(16, "big"), place=("c", "t", thread, n))
            for n in range(1000)
        )
        return [store.claim(replace(copy, expires=9e9)) is FRESH for copy in copies]

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))
    assert [sum(copy) for copy in zip(*won, strict=True)] == [1] * 1000
