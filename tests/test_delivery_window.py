"""What a consumer of a queue asks for, and when for nothing: each rule by facts alone."""

from __future__ import annotations

import logging
import random
from dataclasses import replace
from pathlib import Path

import pytest

from mqauth import AuditFile, Cause, MemoryReplayStore, Message, Pipeline, Unavailable
from mqauth.delivery.hold import HeldDelivery
from mqauth.delivery.queue_work import OVERHEAD, Progress
from mqauth.delivery.window import (
    DEATHS_IN_A_ROW,
    OUTAGE_AFTER,
    PROBES,
    RESTORE_AFTER,
    STEADY,
    Window,
)
from mqauth.judging.pipeline import Delivery, Outcome, Step, Verdict
from mqauth.testing import FakeClock, Forge
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

    def put(
        self, cause: Cause, step: Step = Step.JUDGE, *, tag: str = "tag", since: float = 0
    ) -> HeldDelivery:
        """Hold a delivery."""
        found = held(cause, step, said=Said(tag=tag), since=since)
        self.hold.put(found)
        return found

    def health(self, *, blocked: bool = False) -> tuple[bool, Cause | None]:
        """Return whether it consumes, and what is wrong."""
        found = self.window.health(in_flight=0, unsettled=0, blocked=blocked)
        return found.consuming, found.cause


@pytest.fixture
def stand() -> Stand:
    """A window on facts."""
    return Stand()


def test_what_waits_for_itself_is_passed_by(stand: Stand) -> None:
    """Half a window of those, and no more than half of it at work, have the consumer consume anew."""
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


def test_the_first_that_goes_back_suspends(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    """It says why, and is probed with; those after it change nothing, and a stop suspends no more."""
    first, second = stand.put(ALL), stand.put(ALL)
    assert (stand.window.suspend(first), stand.window.suspend(second)) == (False, False)
    assert stand.window.stalled is first
    assert caplog.messages == ["q is stalled: replay_store_unavailable"]
    stand.window.go_on()
    assert stand.window.stalled is None
    stand.window.stopping = True
    stand.window.suspend(second)
    assert stand.window.stalled is None


@pytest.mark.parametrize(
    ("step", "stays"),
    [(Step.RECORD, True), (Step.BURY, True), (Step.JUDGE, False), (Step.HANDLE, False)],
)
def test_what_only_trying_can_tell_stays(
    stand: Stand, step: Step, *, stays: bool
) -> None:
    """One delivery that waits for its record or letter stays unacked while the queue is suspended."""
    first, second = stand.put(ALL, step), stand.put(ALL, step)
    assert (stand.window.suspend(first), stand.window.suspend(second)) == (stays, False)
    assert (first.stays, second.stays) == (stays, False)


def test_what_was_handled_stays(stand: Stand) -> None:
    """Each delivery whose handler has ended waits for its confirm, unacked, while the queue is suspended."""
    first, second = stand.put(ALL, Step.CONFIRM), stand.put(ALL, Step.CONFIRM)
    assert (stand.window.suspend(first), stand.window.suspend(second)) == (True, True)


def test_one_delivery_finds_out_after_an_outage_that_told_nothing(stand: Stand) -> None:
    """Where what stayed had to go back, one is taken at a time, until a rejection was settled."""
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


@pytest.mark.parametrize(
    ("step", "last"), [(Step.RECORD, REJECTED), (Step.JUDGE, deferred(ALL))]
)
def test_an_outage_that_is_over_narrows_nothing(
    stand: Stand, step: Step, last: Outcome
) -> None:
    """What stayed and was settled shows that all is well, and so does a probe with what went back."""
    first = stand.put(ALL, step)
    stand.window.suspend(first)
    stand.hold.attempted(first, last)
    first.end()
    stand.window.go_on()
    assert stand.window.prefetch == 10


def test_stalls_in_a_row_are_probed_ever_more_slowly(stand: Stand) -> None:
    """Until something is settled; what is deferred settles nothing."""
    waits = []
    for _ in range(3):
        stand.window.suspend(stand.put(ALL))
        waits.append(stand.window.probe_wait)
        stand.window.go_on()
        stand.window.settled(deferred(ALL))
    assert waits == [2 * PROBES.first, 4 * PROBES.first, 8 * PROBES.first]
    stand.window.settled(ACCEPTED)
    assert stand.window.probe_wait == PROBES.first


def test_three_deaths_in_a_row_narrow_the_window(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    """A message may kill the reader: it takes no neighbours with it. A long calm opens the window again."""
    for _ in range(DEATHS_IN_A_ROW):
        assert (stand.window.prefetch, stand.window.calm()) == (10, None)
        stand.window.lost("gone", channel_alone=False)
        stand.consume()
    assert (stand.window.prefetch, stand.window.calm()) == (1, RESTORE_AFTER)
    assert "a message may be poison" in caplog.text
    stand.window.widen()
    stand.window.lost("gone", channel_alone=False)
    assert stand.window.prefetch == 10


@pytest.mark.parametrize(
    ("why", "deaths"), [("channel", 3), ("steady", 3), ("suspended", 0), ("stopping", 0)]
)
def test_what_is_no_death_in_a_row(stand: Stand, why: str, deaths: int) -> None:
    """A channel closed alone, a connection that lived a minute, one lost in a suspension or at a stop."""
    for _ in range(DEATHS_IN_A_ROW):
        if why == "steady":
            stand.clock.advance(STEADY)
        if why == "suspended":
            stand.window.suspend(stand.put(ALL))
        if why == "stopping":
            stand.window.stopping = True
            stand.window.opens()
        stand.window.lost("gone", channel_alone=why == "channel")
        stand.consume()
    found = stand.window.health(in_flight=0, unsettled=0, blocked=False)
    assert (stand.window.prefetch, found.connection_deaths) == (10, deaths)


def test_only_its_own_cancel_counts(stand: Stand) -> None:
    """A cancel of an earlier tag says nothing of the one that consumes now."""
    stand.consume("second")
    assert not stand.window.cancelled("tag")
    assert stand.window.cancelled("second")
    assert (stand.window.consumer, stand.window.leave()) == (None, None)


def test_one_consumer_is_cancelled_once() -> None:
    """Who leaves gets the tag, and nobody after him."""
    window = Stand().window
    assert (window.leave(), window.leave()) == ("tag", None)


def test_what_is_wrong(stand: Stand) -> None:
    """Held ones first, the longest first; then what ended the consumer, an alarm, and a long absence."""
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
        waiting.append(
            stand.put(chance.choice((ALL, ONE)), chance.choice((Step.JUDGE, Step.RECORD)))
        )

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


# What is kept of deliveries that come again is bounded in bytes, the oldest dropped first.


BODY = 1000
PLACE = "rabbitmq:shop/orders.created"


@pytest.fixture
def guard(tmp_path: Path) -> Pipeline:
    """Return a pipeline."""
    forge = Forge()
    return Pipeline(
        verifier=forge.verifier(), policy=forge.policy(PLACE), replay=MemoryReplayStore(),
        audit=AuditFile(tmp_path / "audit.jsonl", fsync=False),
    )  # fmt: skip


def message(number: int, *, headers: int = 0) -> Message:
    """Return one of different messages."""
    return Message(
        destination=PLACE,
        body=number.to_bytes(4, "big") * (BODY // 4),
        headers=(("many", (b"x" * headers,)),),
    )


def again(progress: Progress, given_back: Message) -> Delivery:
    """Return the delivery of what the broker delivers again."""
    return progress.receive(
        replace(given_back, origin=replace(given_back.origin, redelivered=True))
    )


def keep(progress: Progress, guard: Pipeline, *messages: Message) -> list[Delivery]:
    """Give deliveries back."""
    found = [guard.receive(each) for each in messages]
    for each in found:
        progress.keep(each)
    return found


def test_the_oldest_are_dropped(guard: Pipeline) -> None:
    """A bound for three bodies keeps three; what came before them is as new."""
    progress = Progress(guard, lambda _: True, max_bytes=3 * (BODY + OVERHEAD + 4))
    given_back = [message(number) for number in range(5)]
    kept = keep(progress, guard, *given_back)
    known = [again(progress, each).deferred for each in given_back]
    assert known == [False, False, True, True, True]
    assert progress._bytes == 0
    assert len(kept) == 5


def test_copies_of_one_content_count_each(guard: Pipeline) -> None:
    """A thousand deliveries of one content take no more than any others."""
    progress = Progress(guard, lambda _: True, max_bytes=10 * (BODY + OVERHEAD + 4))
    keep(progress, guard, *[message(1)] * 1000)
    assert sum(map(len, progress._kept.values())) == 10
    assert progress._bytes <= 10 * (BODY + OVERHEAD + 4)


def test_headers_count(guard: Pipeline) -> None:
    """What stands in headers, however deep, is as large as in a body."""
    progress = Progress(guard, lambda _: True, max_bytes=50_000)
    keep(progress, guard, *(message(number, headers=20_000) for number in range(10)))
    assert len(progress._kept) == 2


def test_the_latest_is_always_kept(guard: Pipeline) -> None:
    """A message larger than the bound is known when it comes again."""
    progress = Progress(guard, lambda _: True, max_bytes=1)
    keep(progress, guard, message(1), message(2))
    assert [again(progress, message(number)).deferred for number in (1, 2)] == [
        False,
        True,
    ]


def test_what_was_handled_is_not_judged_anew(guard: Pipeline) -> None:
    """Of two deliveries of one content the one that was handled is known first, however late it was given back."""
    progress = Progress(guard, lambda _: True)
    unjudged, handled = (guard.receive(message(1)) for _ in range(2))
    handled.step = Step.SETTLE
    for each in (unjudged, handled):
        progress.keep(each)
    assert again(progress, message(1)) is handled
    assert again(progress, message(1)).owner == unjudged.owner


def test_a_copy_that_waits_hides_no_handler(guard: Pipeline) -> None:
    """Of two lost deliveries of one content the one that is handled holds back what comes again."""
    progress = Progress(guard, lambda _: True)
    waiting, handled = (guard.receive(message(1)) for _ in range(2))
    handled.step = Step.HANDLE
    for each in (waiting, handled):
        progress.begin(each)
    fence = progress.fenced(redelivered := again(progress, message(1)), lambda _: None)
    with pytest.raises(Unavailable):
        fence(redelivered)
    progress.end(handled)
    assert fence(redelivered) is None


def test_what_was_confirmed_is_not_judged_anew(guard: Pipeline) -> None:
    """What comes again while its confirm is missing is settled with it, even where a copy took the claim over."""
    progress = Progress(guard, lambda _: True)
    progress.begin(handled := guard.receive(message(1)))
    handled.step = Step.CONFIRM
    redelivered = again(progress, message(1))
    handled.step = Step.SETTLE
    progress.keep(handled)
    progress.end(handled)
    assert (redelivered.step, redelivered.verdict) == (Step.RECORD, Verdict.DUPLICATE)
    assert progress._bytes == 0


def test_each_copy_waits_for_the_one_that_goes_on(guard: Pipeline) -> None:
    """Of two copies that wait for one handler, one confirms what it did and the other waits for that, too."""
    progress = Progress(guard, lambda native: native is None)
    progress.begin(handled := guard.receive(message(1)))
    handled.step = Step.CONFIRM
    copies = [again(progress, replace(message(1), native=number)) for number in range(2)]
    fences = [progress.fenced(each, lambda _: None) for each in copies]
    for each in copies:
        progress.begin(each)
    progress.keep(handled)
    progress.end(handled)
    assert [each.step for each in copies] == [Step.JUDGE, Step.CONFIRM]
    with pytest.raises(Unavailable):
        fences[0](copies[0])
    copies[1].step = Step.SETTLE
    progress.end(copies[1])
    assert (copies[0].step, copies[0].verdict) == (Step.RECORD, Verdict.DUPLICATE)
    progress.end(copies[0])
    assert not progress._followers
    assert not progress._keys


def test_what_is_here_again_is_in_flight(guard: Pipeline) -> None:
    """A delivery that came again before the task that gave it back has ended stays known when its channel ends."""
    ends: list[bool] = []
    progress = Progress(guard, lambda _: bool(ends))
    progress.begin(failed := guard.receive(message(1)))
    failed.step = Step.BURY
    progress.keep(failed)
    progress.begin(here_again := again(progress, message(1)))
    assert here_again is failed
    ends.append(True)
    assert not progress.end(failed)
    waiting = again(progress, message(1))
    with pytest.raises(Unavailable):
        progress.fenced(waiting, lambda _: None)(waiting)
    assert progress.end(here_again)
    assert not progress._in_flight


def test_those_that_wait_are_bounded_by_a_channel(guard: Pipeline) -> None:
    """A long handler keeps nothing of the copies whose channels ended before the latest came."""
    ended: set[object] = {None}
    progress = Progress(guard, ended.__contains__)
    progress.begin(handled := guard.receive(message(1)))
    handled.step = Step.HANDLE
    for number in range(5):
        again(progress, replace(message(1), native=number))
        ended.add(number)
    assert [len(each) for each in progress._followers.values()] == [1]


def test_a_copy_that_waits_hides_nothing_that_was_given_back(guard: Pipeline) -> None:
    """What was handled and given back is known before a lost copy that was not judged."""
    progress = Progress(guard, lambda _: True)
    waiting, handled = (guard.receive(message(1)) for _ in range(2))
    progress.begin(waiting)
    handled.step = Step.CONFIRM
    progress.keep(handled)
    assert again(progress, message(1)) is handled
    assert again(progress, message(1)).received == waiting.received
