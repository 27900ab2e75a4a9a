"""Whose fault it is that a queue waits, how much room is beside the window, and when the window falls to 1."""

from __future__ import annotations

import pytest

from mqauth.delivery.hold import MAX_BYTES, HoldCapacity
from mqauth.delivery.window import RESTORE_AFTER, STEADY, Window
from mqauth.errors import Cause
from mqauth.testing import FakeClock
from tests.delivery_parts import held, hold

OURS, DEAD = "https://ours", "https://dead"


def put(
    capacity: HoldCapacity, number: int, cause: Cause, party: str | None = None, *, tag: str = "t", size: int = 1
) -> None:
    """Hold so many deliveries more."""
    start = sum(capacity.by_cause().values())
    for key in range(start, start + number):
        capacity.put(key, tag=tag, cause=cause, party=party, size=size)


@pytest.mark.parametrize(
    ("cause", "party", "everyones"),
    [
        (Cause.CLAIM_HELD, None, False),
        (Cause.HANDLER_DEFERRED, None, False),
        (Cause.APPEND_TIME_UNAVAILABLE, None, False),
        (Cause.KEY_PENDING, DEAD, False),
        (Cause.KEYS_UNAVAILABLE, DEAD, False),
        (Cause.KEYS_UNAVAILABLE, None, True),
        (Cause.REPLAY_STORE_UNAVAILABLE, None, True),
        (Cause.POLICY_UNAVAILABLE, None, True),
        (Cause.AUDIT_UNAVAILABLE, None, True),
        (Cause.DEAD_LETTER_UNAVAILABLE, None, True),
    ],
)
def test_whose_fault_it_is(cause: Cause, party: str | None, *, everyones: bool) -> None:
    """A cause of one message or of one issuer is not everybody's; one of a dependency of all is."""
    assert HoldCapacity(issuers=[OURS, DEAD]).concerns_everyone(cause, party) is everyones


def test_no_issuer_that_can_serve_is_everybodys() -> None:
    """Where each configured issuer is without keys there is nothing to let pass; a pending key is not that."""
    capacity = HoldCapacity(issuers=[OURS, DEAD])
    put(capacity, 1, Cause.KEYS_UNAVAILABLE, DEAD)
    put(capacity, 1, Cause.KEY_PENDING, OURS)
    assert not capacity.concerns_everyone(Cause.KEYS_UNAVAILABLE, DEAD)
    put(capacity, 1, Cause.KEYS_UNAVAILABLE, OURS)
    assert capacity.concerns_everyone(Cause.KEYS_UNAVAILABLE, DEAD)
    assert not capacity.wants_another("t", 2, 0)
    capacity.take(2)
    assert not capacity.concerns_everyone(Cause.KEYS_UNAVAILABLE, DEAD)


def test_room_beside_the_window() -> None:
    """Once half the window is held, and no more than half at work, others may pass; never with a window of 1."""
    capacity = HoldCapacity(20, issuers=[OURS, DEAD])
    put(capacity, 4, Cause.HANDLER_DEFERRED)
    assert not capacity.wants_another("t", 10, 0)
    put(capacity, 1, Cause.KEYS_UNAVAILABLE, DEAD)
    assert capacity.wants_another("t", 10, 5)
    assert not capacity.wants_another("t", 10, 6)
    assert not capacity.wants_another("another tag", 10, 0)
    assert not capacity.wants_another("t", 1, 0)


def test_room_is_bounded() -> None:
    """Beyond so many deliveries, or bytes of their bodies, the queue waits, and it is known whose fault it is."""
    capacity = HoldCapacity(20, issuers=[OURS, DEAD])
    put(capacity, 3, Cause.HANDLER_DEFERRED)
    put(capacity, 17, Cause.KEYS_UNAVAILABLE, DEAD, tag="u")
    assert not capacity.has_room()
    assert capacity.is_full("u", 17)
    assert not capacity.is_full("u", 18)
    assert capacity.by_cause() == {f"keys_unavailable of {DEAD}": 17, "handler_deferred": 3}
    heavy = HoldCapacity(20)
    put(heavy, 1, Cause.HANDLER_DEFERRED, size=MAX_BYTES)
    assert not heavy.has_room()
    heavy.take(0)
    assert (heavy.has_room(), heavy.by_cause()) == (True, {})


def test_a_cause_of_all_takes_no_room() -> None:
    """It suspends the queue: nothing passes what waits for it, and no more is taken meanwhile."""
    capacity = HoldCapacity(20, issuers=[OURS])
    put(capacity, 10, Cause.REPLAY_STORE_UNAVAILABLE)
    assert not capacity.wants_another("t", 10, 0)


class Deaths:
    """A window whose connections are lost."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.window = Window("q", self.clock, hold(self.clock), 10)

    def die(self, after: float, *, channel_alone: bool = False) -> int:
        """Lose the connection so many seconds after it was opened; return the window."""
        self.window.opens()
        self.clock.advance(after)
        self.window.lost("gone", channel_alone=channel_alone)
        return self.window.prefetch

    def counted(self) -> int:
        """Return how many deaths health tells of."""
        return self.window.health(in_flight=0, unsettled=0, blocked=False).connection_deaths


def test_window_falls_after_three_deaths_in_a_row() -> None:
    """The third death within a minute of its start narrows the window; calm opens it again."""
    deaths = Deaths()
    assert [deaths.die(STEADY - 1) for _ in range(4)] == [10, 10, 1, 1]
    assert (deaths.counted(), deaths.window.calm()) == (4, RESTORE_AFTER)
    deaths.window.widen()
    assert (deaths.die(STEADY - 1), deaths.window.calm()) == (10, None)


def test_window_steady_deaths_are_not_in_a_row() -> None:
    """A connection that lived a minute, one closed by ourselves, or a refused channel is no death in a row."""
    deaths = Deaths()
    for _ in range(5):
        assert [deaths.die(STEADY), deaths.die(0, channel_alone=True)] == [10, 10]
    assert deaths.counted() == 10
    deaths.window.opens()
    deaths.window.suspend(held(Cause.REPLAY_STORE_UNAVAILABLE))
    deaths.window.lost("gone", channel_alone=False)
    assert deaths.counted() == 10
