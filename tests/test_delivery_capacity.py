"""Whose fault it is that a queue waits, how much room is beside the window, and when the window falls to 1."""

from __future__ import annotations

import pytest

from mqauth.delivery.hold import MAX_BYTES, HeldDelivery, Hold
from mqauth.delivery.slot import Slot
from mqauth.delivery.window import RESTORE_AFTER, STEADY, Window
from mqauth.errors import Cause
from mqauth.testing import FakeClock
from tests.delivery_parts import Said, deferred, delivery, held, hold

OURS, DEAD = "https://ours", "https://dead"


def put(
    holding: Hold, number: int, cause: Cause, party: str | None = None, *, tag: str = "t", size: int = 1
) -> list[HeldDelivery]:
    """Hold so many deliveries more, and return them."""
    slot = Slot(None, Said(tag=tag, length=size), 0)
    found = [HeldDelivery(slot, delivery(), deferred(cause, party), 0) for _ in range(number)]
    for each in found:
        holding.put(each)
    return found


def both() -> Hold:
    """Return what holds, of a consumer of two issuers."""
    return hold(FakeClock(), issuers=(OURS, DEAD))


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
    assert both().concerns_everyone(cause, party) is everyones


def test_no_issuer_that_can_serve_is_everybodys() -> None:
    """Where each configured issuer is without keys there is nothing to let pass; a pending key is not that."""
    capacity = both()
    put(capacity, 1, Cause.KEYS_UNAVAILABLE, DEAD)
    put(capacity, 1, Cause.KEY_PENDING, OURS)
    assert not capacity.concerns_everyone(Cause.KEYS_UNAVAILABLE, DEAD)
    (last,) = put(capacity, 1, Cause.KEYS_UNAVAILABLE, OURS)
    assert capacity.concerns_everyone(Cause.KEYS_UNAVAILABLE, DEAD)
    assert not capacity.wants_another("t", 2, 0)
    capacity.take(last)
    assert not capacity.concerns_everyone(Cause.KEYS_UNAVAILABLE, DEAD)


def test_room_beside_the_window() -> None:
    """Once half the window is held, and no more than half at work, others may pass; never with a window of 1."""
    capacity = both()
    put(capacity, 4, Cause.HANDLER_DEFERRED)
    assert not capacity.wants_another("t", 10, 0)
    put(capacity, 1, Cause.KEYS_UNAVAILABLE, DEAD)
    assert capacity.wants_another("t", 10, 5)
    assert not capacity.wants_another("t", 10, 6)
    assert not capacity.wants_another("another tag", 10, 0)
    assert not capacity.wants_another("t", 1, 0)


def test_room_is_bounded() -> None:
    """Beyond so many deliveries, or bytes of their bodies, the queue waits, and it is known whose fault it is."""
    capacity = both()
    put(capacity, 3, Cause.HANDLER_DEFERRED)
    put(capacity, 17, Cause.KEYS_UNAVAILABLE, DEAD, tag="u")
    assert not capacity.has_room()
    assert capacity.is_full("u", 17)
    assert not capacity.is_full("u", 18)
    assert capacity.by_cause() == {f"keys_unavailable of {DEAD}": 17, "handler_deferred": 3}
    heavy = both()
    (large,) = put(heavy, 1, Cause.HANDLER_DEFERRED, size=MAX_BYTES)
    assert not heavy.has_room()
    heavy.take(large)
    assert (heavy.has_room(), heavy.by_cause()) == (True, {})


def test_a_cause_of_all_takes_no_room() -> None:
    """It suspends the queue: nothing passes what waits for it, and no more is taken meanwhile."""
    capacity = hold(FakeClock())
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
