"""``mqauth.delivery.partition``: only the settled prefix is ever committed, and times of receipt survive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqauth.delivery.partition import Partition, Receipt, offset_of
from mqauth.errors import StaleDelivery
from mqauth.wire.message import Message, Origin

OFFSETS = st.lists(st.integers(0, 2**40), unique=True, min_size=1, max_size=30).map(sorted)
NOW = 100.0


class Orders:
    """A place."""

    topic, partition = "orders", 0


def record(offset: int) -> Message:
    """Return the record at an offset."""
    return Message(destination="kafka:orders", body=b"", origin=Origin(topic="orders", partition=0, offset=offset))


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
        assert partition.first_open == (None if at + 1 == len(offsets) else offsets[at + 1])


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
