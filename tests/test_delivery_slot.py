"""Whose a delivery is, and when its verdict may be recorded."""

from __future__ import annotations

import pytest

from mqauth.delivery.queue_work import QueueLeases
from mqauth.delivery.slot import RoundTripQueue, Slot
from mqauth.errors import Reason, Rejection, StaleDelivery
from mqauth.judging.pipeline import Step
from tests.delivery_parts import Said, delivery

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
def test_what_waits_for_an_answer(rejection: Rejection | None, step: Step, *, waits: bool) -> None:
    """Only what another moment would decide otherwise, and only before it is recorded."""
    found = delivery(step)
    found.rejection = rejection
    assert (Slot(None, Said(), 0).unproven(found) is rejection) is (waits or rejection is None)


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
    ("limit", "returned", "last"), [(20, 19, False), (20, 20, True), (-1, 99, False), (0, 0, True)]
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
    tended, running, judged = QueueLeases(60), delivery(Step.HANDLE), delivery(Step.CONFIRM)
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
