"""``mqauth.brokers.kafka_offsets``: only the contiguous settled prefix is ever committed."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mqauth.brokers.kafka_offsets import Prefix, Receipt, receipts, received_at

OFFSETS = st.lists(st.integers(0, 2**40), unique=True, min_size=1, max_size=30).map(sorted)


@given(OFFSETS, st.randoms(use_true_random=False))
def test_never_past_an_unsettled_record(offsets: list[int], random: object) -> None:
    """In whatever order records are settled, the committed offset never passes one that is not."""
    prefix = Prefix()
    assert all(prefix.receive(offset) for offset in offsets)
    order = list(offsets)
    random.shuffle(order)  # type: ignore[attr-defined]
    unsettled = set(offsets)
    for offset in order:
        prefix.settle(offset)
        unsettled.discard(offset)
        first = min(unsettled, default=None)
        assert prefix.first_unsettled == first
        settled = [known for known in offsets if first is None or known < first]
        assert prefix.next == (settled[-1] + 1 if settled else None)
    assert prefix.next == offsets[-1] + 1


def test_gaps() -> None:
    """Offsets that compaction or transactions left out do not hold the prefix up."""
    prefix = Prefix()
    for offset in (3, 9, 12):
        prefix.receive(offset)
    prefix.settle(3)
    prefix.settle(9)
    assert (prefix.next, prefix.first_unsettled) == (10, 12)


def test_due_once() -> None:
    """An offset is due until the broker has it, and again only once it has moved."""
    prefix = Prefix()
    prefix.receive(0)
    assert prefix.due is None
    prefix.settle(0)
    assert prefix.due == 1
    prefix.committed(1)
    assert prefix.due is None


def test_log_went_back() -> None:
    """An offset that was received before is told: the log went back."""
    prefix = Prefix()
    assert prefix.receive(5)
    assert not prefix.receive(5)
    assert not prefix.receive(4)


@given(OFFSETS, st.data())
def test_forget_after(offsets: list[int], data: st.DataObject) -> None:
    """What is put back is received again as new, and nothing before it is."""
    prefix = Prefix()
    for offset in offsets:
        prefix.receive(offset)
    kept = data.draw(st.sampled_from(offsets))
    prefix.forget_after(kept)
    assert prefix.last == kept
    assert not prefix.receive(kept)
    for offset in offsets:
        if offset > kept:
            assert prefix.receive(offset)
        prefix.settle(offset)
    assert prefix.next == offsets[-1] + 1


@given(st.lists(st.sampled_from([1.0, 2.0, 3.0]), min_size=1, max_size=20))
def test_receipts(times: list[float]) -> None:
    """Each record put back keeps its own time of receipt, and runs of equal times take one entry."""
    known = receipts(enumerate(times))
    assert [received_at(known, offset, 99.0) for offset in range(len(times))] == times
    assert len(known) == 1 + sum(one != other for one, other in pairwise(times))


def test_received_now() -> None:
    """A record that was not put back is received now."""
    assert received_at((Receipt(5, 1.0),), 6, 99.0) == 99.0


@given(received=st.lists(st.integers(0, 9), max_size=4), offsets=st.lists(st.integers(0, 30), max_size=8))
def test_received_together(received: list[int], offsets: list[int]) -> None:
    """Records in order are noted together as they are one by one; where one goes back, none of them is noted."""
    together, alone = Prefix(), Prefix()
    for prefix in (together, alone):
        for offset in received:
            prefix.receive(offset)
    before = (together.last, together.first_unsettled)
    noted = together.receive_all(offsets)
    in_order = all([alone.receive(offset) for offset in offsets])
    assert noted is in_order
    if not noted:
        assert (together.last, together.first_unsettled) == before
        return
    for prefix in (together, alone):
        for offset in [*received, *offsets]:
            prefix.settle(offset)
    assert (together.last, together.first_unsettled, together.next) == (
        alone.last,
        alone.first_unsettled,
        alone.next,
    )
