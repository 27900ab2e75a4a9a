"""``mqauth.delivery.partition``: what was handled here is settled without its handler where it comes again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mqauth.clock import Backoff
from mqauth.delivery import partition as finished
from mqauth.delivery.assignment import Assignment
from mqauth.judging.pipeline import Step
from mqauth.testing import FakeClock
from mqauth.wire.message import Message
from tests.test_delivery_assignment import DONE, HELD, LATER, SESSION, ZERO, carry, committed, part, records, start


@pytest.fixture
def clock() -> FakeClock:
    """A clock."""
    return FakeClock()


@pytest.fixture
def assignment(clock: FakeClock) -> Assignment:
    """An assignment that has begun its partitions."""
    found = Assignment(clock, backoff=Backoff(first=1, longest=1), session=SESSION)
    found.begin({place: start() for place in HELD}, HELD)
    return found


def come_back(assignment: Assignment, messages: list[Message]) -> Any:
    """Lose a partition and get it back, read again from its beginning; return what is to be handled."""
    assignment.lost({ZERO})
    assignment.assigned(HELD)
    assignment.begin({ZERO: start()}, {ZERO})
    assignment.receive(ZERO, messages)
    return [each.message for each in part(assignment, ZERO).waiting]


def test_what_was_handled_here_is_settled_and_committed_first(assignment: Assignment) -> None:
    """Records that come again after their handlers have ended do not run again; a commit comes first."""
    messages = records(0, 1, 2)
    assignment.receive(ZERO, messages)
    carry(assignment, 2)
    assert come_back(assignment, messages) == messages[2:]
    assert assignment.choose() is None
    assert committed(assignment)[ZERO] == 2
    assert assignment.choose() is part(assignment, ZERO)
    assert assignment.counts.duplicate == 2


def test_what_was_committed_is_forgotten(assignment: Assignment) -> None:
    """A record that comes again although it was committed is wanted again, by whoever moved the offset."""
    messages = records(0)
    assignment.receive(ZERO, messages)
    carry(assignment)
    committed(assignment)
    assert come_back(assignment, messages) == messages


def test_another_record_of_the_place_is_handled(assignment: Assignment) -> None:
    """A topic that was made anew has other records at the same offsets."""
    messages = records(0, 1)
    assignment.receive(ZERO, messages)
    carry(assignment, 2)
    others = [messages[0], replace(messages[1], headers=(("mqauth-token", b"another"),))]
    assert come_back(assignment, others) == others[1:]


def test_what_was_deferred_runs_again(assignment: Assignment) -> None:
    """Only what has come to its end is remembered."""
    messages = records(0)
    assignment.receive(ZERO, messages)
    carry(assignment, outcome=LATER)
    assert come_back(assignment, messages) == messages


def test_a_claim_that_could_not_be_confirmed_runs_nothing_again(assignment: Assignment) -> None:
    """A record whose handler has returned is remembered, although the store was away as its claim was to end."""
    messages = records(0, 1)
    assignment.receive(ZERO, messages)
    part(assignment, ZERO).waiting[0].step = Step.CONFIRM
    carry(assignment, outcome=LATER)
    assert come_back(assignment, messages) == messages[1:]


def test_who_goes_back_reads_again(assignment: Assignment) -> None:
    """Records that the client's owner seeks back to are handled again."""
    messages = records(0, 1)
    assignment.receive(ZERO, messages)
    carry(assignment, 2)
    assignment.receive(ZERO, messages)
    assert [each.message for each in part(assignment, ZERO).waiting] == messages


def test_a_handler_that_outlasts_its_partition_is_waited_for(assignment: Assignment) -> None:
    """A partition that comes back while a handler runs begins once that has ended, and its record is settled."""
    messages = records(0)
    assignment.receive(ZERO, messages)
    running = assignment.choose()
    assert running is not None
    assignment.lost({ZERO})
    assignment.assigned(HELD)
    assert ZERO not in assignment.unbegun(HELD)
    running.waiting[0].step = Step.CONFIRM
    assignment.visit_ended(running)
    assert ZERO in assignment.unbegun(HELD)
    assert come_back(assignment, messages) == []


def test_a_handler_that_blocks_for_a_session_ends_its_visit(assignment: Assignment, clock: FakeClock) -> None:
    """Where nobody has polled for longer than the session, a commit comes before the next record."""
    assignment.heartbeat()
    assignment.receive(ZERO, records(0, 1))
    running = assignment.choose()
    assert running is not None
    clock.advance(SESSION + 1)
    assignment.attempted(running, DONE)
    assert assignment.next_delivery(running) is None
    assignment.visit_ended(running)
    assert assignment.choose() is None
    assert committed(assignment)[ZERO] == 1
    assert assignment.choose() is running


def test_the_memory_is_bounded(assignment: Assignment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its bound the first records are remembered: those that come first when they come again."""
    monkeypatch.setattr(finished, "MOST", 2)
    messages = records(0, 1, 2)
    assignment.receive(ZERO, messages)
    carry(assignment, 3)
    assert come_back(assignment, messages) == messages[2:]
