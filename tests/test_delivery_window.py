"""What a consumer of a queue asks for, and when for nothing: each rule by facts alone."""

from __future__ import annotations

import logging
import random

import pytest

from mqauth.delivery.hold import HeldDelivery
from mqauth.delivery.window import DEATHS_IN_A_ROW, OUTAGE_AFTER, PROBES, RESTORE_AFTER, Window
from mqauth.errors import Cause
from mqauth.judging.pipeline import Outcome, Step
from mqauth.testing import FakeClock
from tests.delivery_parts import ACCEPTED, REJECTED, Said, deferred, held, hold

ALL, ONE = Cause.REPLAY_STORE_UNAVAILABLE, Cause.HANDLER_DEFERRED


class Stand:
    """A window that consumes under ``tag``, and what it holds."""

    def __init__(self, prefetch: int = 10) -> None:
        self.clock = FakeClock()
        self.hold = hold(self.clock)
        self.window = Window("q", self.clock, self.hold, prefetch)
        self.consume()

    def consume(self, tag: str = "tag") -> None:
        """Begin to consume."""
        self.window.begins()
        self.window.opens()
        self.window.consumes(tag)

    def put(self, cause: Cause, step: Step = Step.JUDGE, *, tag: str = "tag", since: float = 0) -> HeldDelivery:
        """Hold a delivery."""
        found = held(cause, step, said=Said(tag=tag), since=since)
        self.hold.put(found)
        return found

    def health(self, *, blocked: bool = False) -> tuple[bool, Cause | None]:
        """Return whether it consumes, and what is wrong."""
        found = self.window.health(in_flight=0, unsettled=0, blocked=blocked)
        return found.consuming, found.cause


def test_what_waits_for_itself_is_passed_by() -> None:
    """Half a window of those, and no more than half of it at work, have the consumer consume anew."""
    stand = Stand()
    for _ in range(4):
        stand.put(ONE)
    assert not stand.window.passes_by(4)
    stand.put(ONE)
    assert stand.window.passes_by(10)
    assert not stand.window.passes_by(11)
    stand.window.leave()
    assert not stand.window.passes_by(5)


def test_a_queue_that_waits_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """With a window of 1 order was asked for: nothing passes, and it is logged whose fault it is."""
    stand = Stand(prefetch=1)
    found = stand.put(ONE)
    for _ in range(3):
        assert not stand.window.passes_by(1)
    assert caplog.messages == ["q waits, since its prefetch is 1: 1 handler_deferred"]
    assert stand.health() == (False, ONE)
    stand.hold.take(found)
    stand.window.passes_by(0)
    assert stand.health() == (True, None)


def test_the_first_that_goes_back_suspends(caplog: pytest.LogCaptureFixture) -> None:
    """It says why, and is probed with; those after it change nothing, and a stop suspends no more."""
    stand = Stand()
    first, second = stand.put(ALL), stand.put(ALL)
    assert (stand.window.suspend(first), stand.window.suspend(second)) == (False, False)
    assert stand.window.stalled is first
    assert caplog.messages == ["q is stalled: replay_store_unavailable"]
    stand.window.go_on()
    assert stand.window.stalled is None
    stand.window.stop()
    stand.window.suspend(second)
    assert stand.window.stalled is None


@pytest.mark.parametrize(
    ("step", "stays"), [(Step.RECORD, True), (Step.BURY, True), (Step.JUDGE, False), (Step.HANDLE, False)]
)
def test_what_only_trying_can_tell_stays(step: Step, *, stays: bool) -> None:
    """One delivery that waits for its record or letter stays unacked while the queue is suspended."""
    stand = Stand()
    first, second = stand.put(ALL, step), stand.put(ALL, step)
    assert (stand.window.suspend(first), stand.window.suspend(second)) == (stays, False)
    assert (first.stays, second.stays) == (stays, False)


def test_what_was_handled_stays() -> None:
    """Each delivery whose handler has ended waits for its confirm, unacked, while the queue is suspended."""
    stand = Stand()
    first, second = stand.put(ALL, Step.CONFIRM), stand.put(ALL, Step.CONFIRM)
    assert (stand.window.suspend(first), stand.window.suspend(second)) == (True, True)


def test_one_delivery_finds_out_after_an_outage_that_told_nothing() -> None:
    """Where what stayed had to go back, one is taken at a time, until a rejection was settled."""
    stand = Stand()
    first = stand.put(ALL, Step.RECORD)
    stand.window.suspend(first)
    first.end()
    stand.window.go_on()
    assert stand.window.prefetch == 1
    assert not stand.window.settled(ACCEPTED)
    assert not stand.window.settled(deferred(ALL))
    assert stand.window.settled(REJECTED)
    assert stand.window.prefetch == 10
    assert not stand.window.settled(REJECTED)


@pytest.mark.parametrize(("step", "last"), [(Step.RECORD, REJECTED), (Step.JUDGE, deferred(ALL))])
def test_an_outage_that_is_over_narrows_nothing(step: Step, last: Outcome) -> None:
    """What stayed and was settled shows that all is well, and so does a probe with what went back."""
    stand = Stand()
    first = stand.put(ALL, step)
    stand.window.suspend(first)
    stand.hold.attempted(first, last)
    first.end()
    stand.window.go_on()
    assert stand.window.prefetch == 10


def test_stalls_in_a_row_are_probed_ever_more_slowly() -> None:
    """Until something is settled; what is deferred settles nothing."""
    stand = Stand()
    waits = []
    for _ in range(3):
        stand.window.suspend(stand.put(ALL))
        waits.append(stand.window.probe_wait)
        stand.window.go_on()
        stand.window.settled(deferred(ALL))
    assert waits == [2 * PROBES.first, 4 * PROBES.first, 8 * PROBES.first]
    stand.window.settled(ACCEPTED)
    assert stand.window.probe_wait == PROBES.first


def test_three_deaths_in_a_row_narrow_the_window(caplog: pytest.LogCaptureFixture) -> None:
    """A message may kill the reader: it takes no neighbours with it. A long calm opens the window again."""
    stand = Stand()
    for _ in range(DEATHS_IN_A_ROW):
        assert (stand.window.prefetch, stand.window.calm()) == (10, None)
        stand.window.lost("gone", channel_alone=False)
        stand.consume()
    assert (stand.window.prefetch, stand.window.calm()) == (1, RESTORE_AFTER)
    assert "a message may be poison" in caplog.text
    stand.window.widen()
    assert stand.window.prefetch == 10


@pytest.mark.parametrize("why", ["channel", "suspended", "stopping"])
def test_what_is_no_death(why: str) -> None:
    """A channel that was closed alone, one lost while the queue is suspended, or while the consumer stops."""
    stand = Stand()
    for _ in range(DEATHS_IN_A_ROW):
        if why == "suspended":
            stand.window.suspend(stand.put(ALL))
        if why == "stopping":
            stand.window.stop()
            stand.window.opens()
        stand.window.lost("gone", channel_alone=why == "channel")
        stand.consume()
    assert stand.window.prefetch == 10


def test_only_its_own_cancel_counts() -> None:
    """A cancel of an earlier tag says nothing of the one that consumes now."""
    stand = Stand()
    stand.consume("second")
    assert not stand.window.cancelled("tag")
    assert stand.window.cancelled("second")
    assert (stand.window.consumer, stand.window.leave()) == (None, None)


def test_one_consumer_is_cancelled_once() -> None:
    """Who leaves gets the tag, and nobody after him."""
    window = Stand().window
    assert (window.leave(), window.leave()) == ("tag", None)


def test_what_is_wrong() -> None:
    """Held ones first, the longest first; then what ended the consumer, an alarm, and a long absence."""
    stand = Stand()
    assert stand.health() == (True, None)
    stand.window.lost("gone", channel_alone=False)
    stand.window.begins()
    stand.clock.advance(OUTAGE_AFTER)
    assert stand.health() == (False, Cause.BROKER_UNAVAILABLE)
    stand.consume()
    assert stand.health(blocked=True) == (True, Cause.BROKER_UNAVAILABLE)
    stand.window.fail(ZeroDivisionError())
    stand.window.fail(KeyError())
    found = stand.window.health(in_flight=0, unsettled=0, blocked=True)
    assert (found.cause, found.detail) == (None, "the consumer ended: ZeroDivisionError")
    stand.put(ONE, since=2)
    stand.put(ALL, since=1)
    assert stand.health() == (True, ALL)


@pytest.mark.parametrize("seed", range(200))
def test_facts_in_any_order(seed: int) -> None:
    """Whatever a client says, and whenever: it suspends for one at most, and goes on; the window is 1 or whole."""
    chance, stand, waiting = random.Random(seed), Stand(), list[HeldDelivery]()
    logging.getLogger("mqauth.delivery").disabled = True

    def waits() -> None:
        waiting.append(stand.put(chance.choice((ALL, ONE)), chance.choice((Step.JUDGE, Step.RECORD))))

    def ends() -> None:
        if waiting:
            found = waiting.pop(chance.randrange(len(waiting)))
            if stand.hold.wants_suspension(found):
                stand.window.suspend(found)
            stand.hold.take(found)
            found.end()

    acts = (
        waits, ends, stand.consume, stand.window.leave, stand.window.go_on, lambda: stand.window.settled(REJECTED),
        lambda: stand.window.lost("gone", channel_alone=chance.random() < 0.5),
        lambda: stand.window.passes_by(len(waiting)), lambda: stand.clock.advance(chance.random() * 100),
    )  # fmt: skip
    for _ in range(200):
        chance.choice(acts)()
        assert stand.window.prefetch in (1, 10)
        assert len(stand.hold) == len(waiting) == sum(stand.hold.by_cause().values())
    while waiting:
        ends()
    stand.window.go_on()
    stand.consume()
    assert stand.health() == (True, None)
    logging.getLogger("mqauth.delivery").disabled = False
