"""How long a deferred delivery is held, and what ends that: each rule by facts alone."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from mqauth.delivery.hold import MAX_BYTES, HeldDelivery, Hold
from mqauth.delivery.queue_work import QueueLeases, QueueWork
from mqauth.delivery.slot import RoundTripQueue, Slot
from mqauth.delivery.window import OUTAGE_AFTER, Window
from mqauth.errors import Cause, Reason, Rejection, StaleDelivery
from mqauth.flow import run
from mqauth.judging.pipeline import Pipeline, Step
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing import FakeClock, Forge
from tests.delivery_parts import ACCEPTED, Said, deferred, delivery, held, hold

ALL, ONE = Cause.REPLAY_STORE_UNAVAILABLE, Cause.HANDLER_DEFERRED


def put(holding: Hold, found: HeldDelivery) -> HeldDelivery:
    """Hold a delivery."""
    holding.put(found)
    return found


def held_since_now(
    cause: Cause, step: Step = Step.JUDGE, **settings: Any
) -> tuple[FakeClock, Hold, HeldDelivery]:
    """Return a clock, what holds, and a delivery that was received and is held from now on."""
    clock = FakeClock()
    holding, found = hold(clock), held(cause, step, **settings)
    found.slot.received = clock.monotonic()
    return clock, holding, put(holding, found)


@pytest.mark.parametrize(("cause", "seconds"), [(ALL, 60), (ONE, 1620)])
def test_for_how_long(cause: Cause, seconds: float) -> None:
    """A cause of all ends it after a minute, one's own a tenth before the broker's timeout."""
    clock, holding, found = held_since_now(cause)
    clock.advance(seconds - 1)
    assert not holding.is_over(found)
    clock.advance(1)
    assert holding.is_over(found)


def test_the_minute_counts_from_the_cause_of_all() -> None:
    """What waited for its own cause before has a minute yet, and again a minute after it did so in between."""
    clock, holding, found = held_since_now(ONE)
    for cause in (ALL, ONE, ALL):
        clock.advance(50)
        holding.attempted(found, deferred(cause))
        assert not holding.is_over(found)
    clock.advance(30)
    holding.attempted(found, deferred(ALL))
    clock.advance(30)
    assert holding.is_over(found)


def test_the_minute_does_not_reach_past_the_timeout() -> None:
    """What begins to wait for a cause of all shortly before the broker's timeout goes back in time."""
    clock, holding, found = held_since_now(ONE)
    clock.advance(1610)
    holding.attempted(found, deferred(ALL))
    assert not holding.is_over(found)
    clock.advance(10)
    assert holding.is_over(found)
    assert holding.wants_suspension(found)


@pytest.mark.parametrize(
    ("step", "over"),
    [
        (Step.JUDGE, True),
        (Step.HANDLE, True),
        (Step.RECORD, True),
        (Step.CONFIRM, False),
        (Step.RELEASE, False),
    ],
)
def test_what_is_not_ours_is_left(step: Step, *, over: bool) -> None:
    """But for a claim that is to be ended, whoever the delivery belongs to."""
    said = Said()
    holding = hold(FakeClock())
    found = put(holding, held(ALL, step, said=said))
    found.slot.received = float("inf")
    assert not holding.is_over(found)
    said.is_ended = True
    assert holding.is_over(found) is over


@pytest.mark.parametrize(
    ("returned", "stays", "over"),
    [(0, False, True), (20, False, False), (0, True, False)],
)
def test_a_suspension_sends_back(returned: int, *, stays: bool, over: bool) -> None:
    """What is held goes back, but for a message's last delivery and one that is tried until the cause is over."""
    holding = hold(FakeClock())
    found = put(holding, held(ALL, said=Said(returned=returned), limit=20))
    found.slot.received = float("inf")
    found.stays = stays
    assert not holding.is_over(found)
    holding.suspended = True
    assert (holding.is_over(found), holding.yields(found)) == (over, over)


@pytest.mark.parametrize("step", [Step.CONFIRM, Step.RELEASE])
def test_a_claim_is_ended_though_the_channel_ended(step: Step) -> None:
    """Beyond the minute and in a suspended queue: else it would bar others until its lease is over."""
    said = Said()
    clock, holding, found = held_since_now(ALL, step, said=said)
    holding.suspended = said.is_ended = True
    clock.advance(1619)
    assert (holding.is_over(found), holding.yields(found)) == (False, False)
    clock.advance(1)
    assert (holding.is_over(found), holding.wants_suspension(found)) == (True, False)


@pytest.mark.parametrize(("step", "over"), [(Step.HANDLE, True), (Step.CONFIRM, False)])
def test_a_stop_ends_it(step: Step, *, over: bool) -> None:
    """Not for one whose handler has ended: it would run again."""
    holding = hold(FakeClock())
    found = put(holding, held(ALL, step))
    found.slot.received = float("inf")
    holding.stopping = True
    assert (holding.is_over(found), holding.stops(found)) == (over, over)


@pytest.mark.parametrize(("cause", "over"), [(ALL, False), (ONE, True)])
def test_the_last_delivery_is_held_on(cause: Cause, *, over: bool) -> None:
    """Whatever timeout is near; but one whose handler asked for another time until then is given up."""
    clock = FakeClock()
    holding = hold(clock)
    found = put(holding, held(cause, said=Said(returned=20), limit=20))
    clock.advance(10_000)
    assert (holding.is_over(found), found.is_given_up, holding.at_limit) == (
        over,
        over,
        1,
    )


def test_what_is_given_up_is_rejected() -> None:
    """As a failure of its handler, with how often and for how long it was put off."""
    holding = hold(FakeClock())
    found = put(holding, held(ONE))
    holding.attempted(found, deferred(ONE)._replace(detail="database"))
    found.give_up(now=90)
    assert found.delivery.rejection.reason is Reason.HANDLER_FAILED
    assert (
        found.delivery.rejection.detail
        == "put off 2 times in its last delivery, in all for 90 s: database"
    )


def test_who_suspends() -> None:
    """A delivery of ours that would go back for a cause of all, where there is a consumer to suspend.

    The last delivery, which is not given back, suspends nothing.
    """
    said = Said()
    for seconds, cause, wanted in ((60, ALL, True), (60, ONE, False), (None, ALL, False)):
        holding = hold(FakeClock(), seconds=seconds)
        found = put(holding, held(cause, said=said))
        assert holding.wants_suspension(found) is wanted
    holding = hold(FakeClock())
    found = put(holding, held(ALL, said=said))
    said.is_ended = True
    assert not holding.wants_suspension(found)
    said.is_ended = False
    holding.attempted(found, ACCEPTED)
    assert not holding.wants_suspension(found)
    assert not holding.wants_suspension(
        put(holding, held(ALL, said=Said(returned=20), limit=20))
    )


@pytest.mark.parametrize("step", [Step.JUDGE, Step.CONFIRM, Step.SETTLE])
def test_what_is_settled_is_not_given_back(step: Step) -> None:
    """It may have been acked, and the broker closes the channel for a tag settled twice; others go back."""
    forge = Forge()
    guard = Pipeline(
        verifier=forge.verifier(),
        policy=forge.policy(),
        replay=MemoryReplayStore(),
        audit=None,
    )
    letters: Any = None
    work = QueueWork(
        "q",
        guard,
        print,
        letters,
        ended=Said().ended,
        decode=None,
        answer=None,
        stops=True,
    )
    assert run(work.let_go(delivery(step))) is (step is not Step.SETTLE)


def test_what_became_of_it() -> None:
    """It told nothing where it was ours and still waited for its record; why it waited last is known then."""
    holding, said = hold(FakeClock()), Said()
    found = put(holding, held(ALL, Step.RECORD, said=said))
    for ours in (True, False, True):
        said.is_ended = not ours
        found.end()
        assert (found.goes_back, found.is_over) == (ours, True)
    holding.attempted(found, ACCEPTED)
    found.end()
    assert (found.goes_back, found.outcome.cause) == (False, ALL)
    holding.take(found)
    assert (len(holding), holding.longest, holding.by_cause()) == (0, None, {})


# Whose a delivery is, and when its verdict may be recorded.


TIME_DEPENDENT = Rejection(Reason.REPLAYED, "seen")
OF_THE_BYTES = Rejection(Reason.SIGNATURE_INVALID, "no")


def test_nothing_is_done_for_what_is_not_ours() -> None:
    """A delivery whose channel ended, or that was given back, takes no step more."""
    said = Said()
    for end in (lambda _: setattr(said, "is_ended", True), Slot.given_back):
        said.is_ended = False
        slot = Slot(None, said, 0)
        assert slot.unproven(delivery()) is None
        end(slot)
        assert not slot.is_ours
        with pytest.raises(StaleDelivery):
            slot.unproven(delivery())


@pytest.mark.parametrize(
    ("rejection", "step", "waits"),
    [
        (TIME_DEPENDENT, Step.RECORD, True),
        (TIME_DEPENDENT, Step.BURY, False),
        (OF_THE_BYTES, Step.RECORD, False),
        (None, Step.HANDLE, False),
    ],
)
def test_what_waits_for_an_answer(
    rejection: Rejection | None, step: Step, *, waits: bool
) -> None:
    """Only what another moment would decide otherwise, and only before it is recorded."""
    found = delivery(step)
    found.rejection = rejection
    assert (Slot(None, Said(), 0).unproven(found) is rejection) is (
        waits or rejection is None
    )


def test_an_answer_proves_one_verdict() -> None:
    """What was proven is recorded without a second question; another verdict of it is asked for anew."""
    slot, found = Slot(None, Said(), 0), delivery(Step.RECORD)
    found.rejection = TIME_DEPENDENT
    slot.answered(TIME_DEPENDENT, lives=True)
    assert slot.unproven(found) is None
    found.rejection = Rejection(Reason.EXPIRED, "late")
    assert slot.unproven(found) is found.rejection


@pytest.mark.parametrize(("lives", "ended"), [(False, False), (True, True)])
def test_without_an_answer_it_is_not_ours(*, lives: bool, ended: bool) -> None:
    """Neither where the channel did not answer, nor where it ended meanwhile."""
    slot = Slot(None, Said(is_ended=ended), 0)
    with pytest.raises(StaleDelivery):
        slot.answered(TIME_DEPENDENT, lives=lives)
    assert not slot.is_ours


@pytest.mark.parametrize(
    ("limit", "returned", "last"),
    [(20, 19, False), (20, 20, True), (-1, 99, False), (0, 0, True)],
)
def test_which_delivery_is_the_last(limit: int, returned: int, *, last: bool) -> None:
    """The one whose return would pass the limit, where there is one."""
    assert Slot(None, Said(returned=returned), 0, limit).is_last is last


def test_one_question_answers_all_who_waited_when_it_was_asked() -> None:
    """Who comes while a question is under way waits for the next; a flood of them is one more question."""
    questions = RoundTripQueue[int]()
    assert questions.add(1)
    assert not questions.add(2)
    assert questions.ask()
    assert not any(questions.add(later) for later in range(3, 1000))
    assert questions.answered() == [1, 2]
    assert questions.ask()
    assert questions.answered() == list(range(3, 1000))
    assert not questions.ask()
    assert questions.add(1000)


def test_claims_are_renewed_after_a_third() -> None:
    """From then on at each look, while the handler runs; one that is another's is left alone."""
    tended, running, judged = (
        QueueLeases(60),
        delivery(Step.HANDLE),
        delivery(Step.CONFIRM),
    )
    tended.add(running, since=1)
    tended.add(judged, since=0)
    assert tended.due(20) == []
    assert tended.due(21) == [running]
    assert tended.due(40) == [running]
    tended.lost(running)
    assert tended.due(60) == []
    tended.remove(judged)
    assert not tended


def test_claims_end_while_they_are_looked_at() -> None:
    """A thread of a worker may end a delivery amid a look."""
    tended, ends, runs = QueueLeases(60), delivery(Step.HANDLE), delivery(Step.HANDLE)

    class Ending(float):
        """Seconds at whose comparison a thread does so."""

        def __le__(self, other: float) -> bool:
            tended.remove(ends)
            return float(self) <= other

    tended.add(ends, since=Ending(0))
    tended.add(runs, since=Ending(0))
    assert tended.due(60) == [ends, runs]
    assert tended.due(60) == [runs]


# Since when a consumer does not consume, and how it is told.


def test_long(caplog: pytest.LogCaptureFixture) -> None:
    """Not consuming is a cause after a minute, with the last error, until it consumes again."""
    clock = FakeClock()
    window = Window("billing", clock, hold(clock), 10)

    def told() -> tuple[Cause | None, float | None, str | None]:
        health = window.health(in_flight=0, unsettled=0, blocked=False)
        return health.cause, health.stalled_since, health.detail

    clock.advance(OUTAGE_AFTER)
    assert told() == (None, None, None)
    window.begins()
    began = clock.now()
    clock.advance(OUTAGE_AFTER - 1)
    assert (window.is_out, told()) == (True, (None, None, None))
    clock.advance(1)
    assert told() == (
        Cause.BROKER_UNAVAILABLE,
        began,
        "cannot consume: the connection is down",
    )
    with caplog.at_level(logging.WARNING, "mqauth.delivery"):
        window.cannot(ConnectionError("no queue 'billing'"))
    assert told() == (
        Cause.BROKER_UNAVAILABLE,
        began,
        "cannot consume: no queue 'billing'",
    )
    assert "cannot consume billing now, trying again: no queue 'billing'" in caplog.text
    window.cannot(TimeoutError())
    assert told() == (Cause.BROKER_UNAVAILABLE, began, "cannot consume: TimeoutError")
    window.consumes("tag")
    assert (window.is_out, told()) == (False, (None, None, None))


# Whose fault it is that a queue waits, and how much room is beside the window.


OURS, DEAD = "https://ours", "https://dead"


def put_many(
    holding: Hold,
    number: int,
    cause: Cause,
    party: str | None = None,
    *,
    tag: str = "t",
    size: int = 1,
) -> list[HeldDelivery]:
    """Hold so many deliveries more, and return them."""
    slot = Slot(None, Said(tag=tag, length=size), 0)
    found = [
        HeldDelivery(slot, delivery(), deferred(cause, party), 0) for _ in range(number)
    ]
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
    put_many(capacity, 1, Cause.KEYS_UNAVAILABLE, DEAD)
    put_many(capacity, 1, Cause.KEY_PENDING, OURS)
    assert not capacity.concerns_everyone(Cause.KEYS_UNAVAILABLE, DEAD)
    (last,) = put_many(capacity, 1, Cause.KEYS_UNAVAILABLE, OURS)
    assert capacity.concerns_everyone(Cause.KEYS_UNAVAILABLE, DEAD)
    assert not capacity.wants_another("t", 2, 0)
    capacity.take(last)
    assert not capacity.concerns_everyone(Cause.KEYS_UNAVAILABLE, DEAD)


def test_room_is_bounded() -> None:
    """Beyond so many deliveries, or bytes of their bodies, the queue waits, and it is known whose fault it is."""
    capacity = both()
    put_many(capacity, 3, Cause.HANDLER_DEFERRED)
    put_many(capacity, 17, Cause.KEYS_UNAVAILABLE, DEAD, tag="u")
    assert not capacity.has_room()
    assert capacity.is_full("u", 17)
    assert not capacity.is_full("u", 18)
    assert capacity.by_cause() == {
        f"keys_unavailable of {DEAD}": 17,
        "handler_deferred": 3,
    }
    heavy = both()
    (large,) = put_many(heavy, 1, Cause.HANDLER_DEFERRED, size=MAX_BYTES)
    assert not heavy.has_room()
    heavy.take(large)
    assert (heavy.has_room(), heavy.by_cause()) == (True, {})


def test_a_cause_of_all_takes_no_room() -> None:
    """It suspends the queue: nothing passes what waits for it, and no more is taken meanwhile."""
    capacity = hold(FakeClock())
    put_many(capacity, 10, Cause.REPLAY_STORE_UNAVAILABLE)
    assert not capacity.wants_another("t", 10, 0)
