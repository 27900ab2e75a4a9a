"""``mqauth.delivery.part``: only the contiguous settled prefix is ever committed, and times of receipt survive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqauth.delivery.part import Part, Receipt, offset_of
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


def received(*offsets: int) -> Part:
    """Return a part that has received these records."""
    part = Part(Orders)
    for offset in offsets:
        part.receive(record(offset), NOW)
    return part


@given(OFFSETS)
def test_never_past_an_unsettled_record(offsets: list[int]) -> None:
    """What may be committed is one past the last settled record, whatever gaps the offsets have."""
    part = received(*offsets)
    assert (part.settled, part.first_open) == (None, offsets[0])
    for at, offset in enumerate(offsets):
        part.settle()
        assert part.settled == offset + 1
        assert part.first_open == (None if at + 1 == len(offsets) else offsets[at + 1])


@given(OFFSETS, st.data())
def test_put_back(offsets: list[int], data: st.DataObject) -> None:
    """Of what is put off the first record stays, the others are read again from the second, with their times."""
    part = received(*offsets)
    for _ in range(data.draw(st.integers(0, len(offsets) - 1))):
        part.settle()
    left = [offset_of(each.message) for each in part.waiting]
    part.put_back()
    assert [offset_of(each.message) for each in part.waiting] == left[:1]
    assert part.last == left[0]
    assert part.seek == (left[1] if left[1:] else None)
    for offset in left[1:]:
        part.receive(record(offset), NOW + 50)
    assert [each.received for each in part.waiting] == [NOW] * len(left)


@given(st.lists(st.sampled_from([1.0, 2.0, 3.0]), min_size=1, max_size=20))
def test_times_of_receipt(times: list[float]) -> None:
    """Each record put back keeps its own time of receipt, and those behind them are received now."""
    part = received(0)
    for number, moment in enumerate(times):
        part.receive(record(number + 1), moment)
    part.put_back()
    for number in range(len(times) + 1):
        part.receive(record(number + 1), 99.0)
    assert [each.received for each in part.waiting][1:] == [*times, 99.0]


def test_runs_of_equal_times_are_one_entry() -> None:
    """What is remembered of a poll of many records is one entry."""
    part = received(*range(500))
    part.put_back()
    assert part.receipts == (Receipt(499, NOW),)


def test_a_skipped_range_waits_for_what_stands_before_it() -> None:
    """Behind a range that was skipped is committed only once every record before it is settled."""
    part = received(0, 1)
    part.skip(beyond=5)
    part.settle()
    assert (part.settled, part.seek, part.last) == (1, 5, 4)
    part.settle()
    assert part.settled == 5
    part.receive(record(7), NOW)
    assert part.settled == 5
    part.settle()
    assert part.settled == 8


def test_a_skipped_range_is_behind_what_came_with_it() -> None:
    """Records that came behind a skipped range, before those in front were settled, are not taken back."""
    part = received(0)
    part.skip(beyond=5)
    part.receive(record(5), NOW)
    part.settle()
    part.settle()
    assert part.settled == 6


def test_what_was_taken_away_is_stale() -> None:
    """No step of a delivery is taken once its partition was taken away."""
    part = received(0)
    (delivery,) = part.waiting
    assert delivery.fence is not None
    delivery.fence(delivery)
    part.alive = False
    with pytest.raises(StaleDelivery):
        delivery.fence(delivery)


def test_short_reads_keep_the_time_of_receipt() -> None:
    """Records that are read again in several short reads keep the time at which they were first received."""
    part = received(0, 1, 2, 3, 4)
    part.put_back()
    part.settle()
    for offset in (1, 2):
        part.receive(record(offset), NOW + 50)
    part.put_back()
    part.settle()
    for offset in (2, 3, 4, 5):
        part.receive(record(offset), NOW + 60)
    assert [each.received for each in part.waiting] == [NOW, NOW, NOW, NOW + 60]


def test_what_is_to_be_read_again_is_open() -> None:
    """What was put back, and not read again yet, is the first open once the record before it is settled."""
    part = received(0, 1, 2)
    part.put_back()
    assert part.first_open == 0
    part.settle()
    assert (part.first_open, part.settled) == (1, 1)
