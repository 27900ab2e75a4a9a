"""``mqauth.delivery.partition``: only the settled prefix is ever committed, and times of receipt survive."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqauth.clock import Backoff
from mqauth.delivery import partition as finished
from mqauth.delivery.assignment import COMMIT_PACE, Assignment
from mqauth.delivery.partition import Partition, Receipt, offset_of
from mqauth.delivery.start import Committed, TopicStart, partitions_at_first, topic_start
from mqauth.errors import StaleDelivery
from mqauth.judging.pipeline import Step
from mqauth.testing import FakeClock
from mqauth.wire.message import Message, Origin
from tests.test_delivery_assignment import (
    DONE,
    HELD,
    LATER,
    SESSION,
    ZERO,
    At,
    carry,
    committed,
    part,
    records,
    start,
)

OFFSETS = st.lists(st.integers(0, 2**40), unique=True, min_size=1, max_size=30).map(
    sorted
)
NOW = 100.0


class Orders:
    """A place."""

    topic, partition = "orders", 0


def record(offset: int) -> Message:
    """Return the record at an offset."""
    return Message(
        destination="kafka:orders",
        body=b"",
        origin=Origin(topic="orders", partition=0, offset=offset),
    )


def received(*offsets: int) -> Partition:
    """Return a part that has received these records."""
    partition = Partition(Orders)
    for offset in offsets:
        partition.receive([record(offset)], NOW)
    return partition


@given(OFFSETS)
def test_never_past_an_unsettled_record(offsets: list[int]) -> None:
    """What may be committed is one past the last settled record, whatever gaps the offsets have."""
    partition = received(*offsets)
    assert (partition.settled, partition.first_open) == (None, offsets[0])
    for at, offset in enumerate(offsets):
        partition.settle()
        assert partition.settled == offset + 1
        assert partition.first_open == (
            None if at + 1 == len(offsets) else offsets[at + 1]
        )


@given(OFFSETS, st.data())
def test_put_back(offsets: list[int], data: st.DataObject) -> None:
    """Of what is put off the first record stays, the others are read again from the second, with their times."""
    partition = received(*offsets)
    for _ in range(data.draw(st.integers(0, len(offsets) - 1))):
        partition.settle()
    left = [offset_of(each.message) for each in partition.waiting]
    partition.put_back()
    assert [offset_of(each.message) for each in partition.waiting] == left[:1]
    assert partition.last == left[0]
    assert partition.seek == (left[1] if left[1:] else None)
    for offset in left[1:]:
        partition.receive([record(offset)], NOW + 50)
    assert [each.received for each in partition.waiting] == [NOW] * len(left)


@given(st.lists(st.sampled_from([1.0, 2.0, 3.0]), min_size=1, max_size=20))
def test_times_of_receipt(times: list[float]) -> None:
    """Each record put back keeps its own time of receipt, and those behind them are received now."""
    partition = received(0)
    for number, moment in enumerate(times):
        partition.receive([record(number + 1)], moment)
    partition.put_back()
    for number in range(len(times) + 1):
        partition.receive([record(number + 1)], 99.0)
    assert [each.received for each in partition.waiting][1:] == [*times, 99.0]


def test_runs_of_equal_times_are_one_entry() -> None:
    """What is remembered of a poll of many records is one entry."""
    partition = received(*range(500))
    partition.put_back()
    assert partition.receipts == (Receipt(499, NOW),)


def test_a_skipped_range_waits_for_what_stands_before_it() -> None:
    """Behind a range that was skipped is committed only once every record before it is settled."""
    partition = received(0, 1)
    partition.skip(beyond=5)
    partition.settle()
    assert (partition.settled, partition.seek, partition.last) == (1, 5, 4)
    partition.settle()
    assert partition.settled == 5
    partition.receive([record(7)], NOW)
    assert partition.settled == 5
    partition.settle()
    assert partition.settled == 8


def test_a_skipped_range_is_behind_what_came_with_it() -> None:
    """Records that came behind a skipped range, before those in front were settled, are not taken back."""
    partition = received(0)
    partition.skip(beyond=5)
    partition.receive([record(5)], NOW)
    partition.settle()
    partition.settle()
    assert partition.settled == 6


@pytest.mark.parametrize("taken", [{"alive": False}, {"suspended": True}], ids=repr)
def test_what_was_taken_away_is_stale(taken: dict[str, bool]) -> None:
    """No step of a delivery is taken once its partition was taken away, nor while that is not known yet."""
    partition = received(0)
    (delivery,) = partition.waiting
    assert delivery.fence is not None
    delivery.fence(delivery)
    for name, value in taken.items():
        setattr(partition, name, value)
    with pytest.raises(StaleDelivery):
        delivery.fence(delivery)


def test_short_reads_keep_the_time_of_receipt() -> None:
    """Records that are read again in several short reads keep the time at which they were first received."""
    partition = received(0, 1, 2, 3, 4)
    partition.put_back()
    partition.settle()
    for offset in (1, 2):
        partition.receive([record(offset)], NOW + 50)
    partition.put_back()
    partition.settle()
    for offset in (2, 3, 4, 5):
        partition.receive([record(offset)], NOW + 60)
    assert [each.received for each in partition.waiting] == [NOW, NOW, NOW, NOW + 60]


def test_what_is_to_be_read_again_is_open() -> None:
    """What was put back, and not read again yet, is the first open once the record before it is settled."""
    partition = received(0, 1, 2)
    partition.put_back()
    assert partition.first_open == 0
    partition.settle()
    assert (partition.first_open, partition.settled) == (1, 1)


# ``mqauth.delivery.start``: which partitions are new to a group, by the metadata of its commits.


def places(*numbers: int) -> set[At]:
    """Return partitions of one topic."""
    return {At("orders", number) for number in numbers}


def commits(*metadata: str | None) -> dict[At, Committed]:
    """Return commits of the first partitions, with such metadata; ``None`` where a partition has no commit."""
    found = enumerate(metadata)
    return {
        At("orders", number): Committed(7, text)
        for number, text in found
        if text is not None
    }


@pytest.mark.parametrize(
    ("numbers", "found", "told"),
    [
        pytest.param((0, 1, 2), (), ("mqauth partitions=3", (), ()),
                     id="of a group without any commit of a topic none is new: all begin where its clients say"),
        pytest.param((0, 1, 2, 3), ("mqauth partitions=2",) * 2, ("mqauth partitions=2", (2, 3), ()),
                     id="a number that the topic did not have when the group began is new; the number stays"),
        pytest.param((0, 1, 2), ("mqauth partitions=3",), ("mqauth partitions=3", (), ()),
                     id="one that the topic had then is none of those, although it has no commit yet"),
        pytest.param((0, 1, 2), ("", None, "theirs"), ("mqauth partitions=3", (), (1,)),
                     id="commits of another program, or from before, do not say what is new: nothing is"),
        pytest.param((0, 1, 2, 3), ("mqauth partitions=4", "mqauth partitions=2", ""),
                     ("mqauth partitions=2", (3,), ()),
                     id="of different numbers that first members have seen the least counts: that loses nothing"),
    ],
)  # fmt: skip
def test_which_partitions_are_new(numbers: Any, found: Any, told: Any) -> None:
    """What is new to a group, and what begins without a commit, is told by the metadata of its commits."""
    metadata, new, without = told
    start = TopicStart(metadata, places(*new), places(*without))
    assert topic_start(places(*numbers), commits(*found)) == start


@pytest.mark.parametrize(
    ("metadata", "count"),
    [
        ("mqauth partitions=12", 12), ("mqauth partitions=12\0", 12), ("mqauth partitions=0", None),
        ("mqauth partitions=012", None), ("mqauth partitions=-1", None), ("mqauth partitions=1234567890", None),
        ("mqauth partitions=3 ", None), ("mqauth partitions=3\n", None), ("mqauth partitions=\u0663", None),
        ("partitions=3", None), ("", None),
    ],
)  # fmt: skip
def test_metadata(metadata: str, count: int | None) -> None:
    """Metadata is read strictly, but for the NUL that confluent-kafka writes behind it."""
    assert partitions_at_first([Committed(0, metadata)]) == count


@given(st.integers(1, 50), st.sets(st.integers(0, 60)))
def test_what_is_written_is_read(first: int, added: set[int]) -> None:
    """Whatever the metadata of a commit says, it says the same to the next member."""
    began = topic_start(places(*range(first)), {})
    later = topic_start(
        places(*range(first), *added),
        dict.fromkeys(places(0), Committed(1, began.metadata)),
    )
    assert later == TopicStart(
        began.metadata, places(*(number for number in added if number >= first)), set()
    )


# ``mqauth.delivery.partition``: what was handled here is settled without its handler where it comes again.


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


def test_what_was_handled_here_is_settled_and_committed_first(
    assignment: Assignment,
) -> None:
    """Records that come again after their handlers have ended do not run again; a commit comes first."""
    messages = records(0, 1, 2)
    assignment.receive(ZERO, messages)
    carry(assignment, 2)
    assert come_back(assignment, messages) == messages[2:]
    assert assignment.choose() is None
    assert committed(assignment)[ZERO] == 2
    assert assignment.choose() is part(assignment, ZERO)
    assert assignment.counts.duplicate == 2


def test_what_was_committed_is_forgotten(
    assignment: Assignment, clock: FakeClock
) -> None:
    """A record that comes again although it was committed is wanted again, by whoever moved the offset."""
    messages = records(0)
    assignment.receive(ZERO, messages)
    carry(assignment)
    clock.advance(2 * COMMIT_PACE)
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


def test_a_claim_that_could_not_be_confirmed_runs_nothing_again(
    assignment: Assignment,
) -> None:
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


def test_a_handler_that_outlasts_its_partition_is_waited_for(
    assignment: Assignment,
) -> None:
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


def test_a_handler_that_blocks_for_a_session_ends_its_visit(
    assignment: Assignment, clock: FakeClock
) -> None:
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


def test_the_memory_is_bounded(
    assignment: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past its bound the first records are remembered: those that come first when they come again."""
    monkeypatch.setattr(finished, "MOST", 2)
    messages = records(0, 1, 2)
    assignment.receive(ZERO, messages)
    carry(assignment, 3)
    assert come_back(assignment, messages) == messages[2:]
