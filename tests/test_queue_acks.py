"""Coalesced acks: they never cover what is not settled, and in the end everything settled is acked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from aio_pika import exceptions
from hypothesis import given
from hypothesis import strategies as st

from integration.queue_acks import ACTS, Act, FakeChannel, carry_out, delivery
from mqauth.brokers.queue.client import ACK_DELAY, Acks, RoundTrip
from mqauth.brokers.rabbitmq.consumer import sender
from mqauth.delivery.slot import MAX_UNSENT, TIMEOUT_PARTS, DeliveryTags
from mqauth.judging.pipeline import Delivery
from tests.conftest import Alarm, turns

orders = st.integers(1, 40).flatmap(
    lambda count: st.tuples(
        st.permutations(range(count)), st.lists(st.sampled_from(ACTS), min_size=count)
    )
)


class Side:
    """A fake channel, the acks of it, and what was lost."""

    def __init__(self, window: int = 10, channel: FakeChannel | None = None) -> None:
        self.channel = channel or FakeChannel()
        self.alarm = Alarm()
        self.lost: list[Delivery] = []
        given: Any = self.channel
        self.acks = Acks(
            given,
            sender(given, "q"),
            lost=self.lost.extend,
            window=window,
            timer=self.alarm,
        )

    def deliver(self, count: int = 1) -> list[int]:
        """Deliver to these acks."""
        tags = self.channel.deliver(count)
        for tag in tags:
            self.acks.opened(tag)
        return tags

    def settle(self, *tags: int) -> None:
        """Settle some."""
        for tag in tags:
            self.acks.settle(tag, delivery())


@given(order=orders, window=st.integers(1, 50))
def test_any_order(order: tuple[list[int], list[Act]], window: int) -> None:
    """Whatever is settled, rejected or left open in whatever order: acked are exactly the settled ones."""

    async def run() -> None:
        side = Side(window)
        numbers, acts = order
        tags = side.deliver(len(numbers))
        wanted = list(zip(numbers, acts, strict=False))
        still = await carry_out(side.channel, side.acks, tags, wanted)
        assert side.channel.acked == {
            tags[number] for number, act in wanted if act == "settle"
        }
        assert set(side.channel.unacked) == still
        assert side.lost == []

    asyncio.run(run())


@given(
    theirs=st.lists(st.booleans(), min_size=1, max_size=40),
    settled=st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_a_channel_shared_with_others(
    theirs: Sequence[bool], settled: Sequence[bool]
) -> None:
    """Deliveries of the channel that are somebody else's are never acked, wherever they stand."""

    async def run() -> None:
        side, foreign, mine = Side(), set[int](), set[int]()
        for number, is_theirs in enumerate(theirs):
            if is_theirs:
                foreign.update(side.channel.deliver())
                continue
            (tag,) = side.deliver()
            if settled[number]:
                side.settle(tag)
                mine.add(tag)
        await side.acks.finish()
        assert side.channel.acked == mine
        assert foreign <= set(side.channel.unacked)

    asyncio.run(run())


@pytest.mark.parametrize(("window", "most"), [(128, 64), (60_000, MAX_UNSENT)])
async def test_one_frame_for_many(window: int, most: int) -> None:
    """Half a window that was settled goes in one frame, without the timer; of a large one so many wait."""
    side = Side(window=window)
    tags = side.deliver(most)
    side.settle(*tags[:-1])
    await turns()
    assert side.channel.frames == []
    side.settle(tags[-1])
    await turns()
    assert side.channel.frames == [(most, True)]


async def test_a_settled_one_waits_for_the_timer_at_most() -> None:
    """A few settled deliveries are acked when the timer rings, one timer for all of them."""
    side = Side()
    first, second, third = side.deliver(3)
    side.settle(first, second)
    await turns()
    assert (side.channel.frames, [seconds for seconds, _ in side.alarm.set]) == (
        [],
        [ACK_DELAY],
    )
    await side.alarm.ring()
    assert side.channel.frames == [(second, True)]
    side.settle(third)
    await side.alarm.ring()
    assert side.channel.frames == [(second, True), (third, False)]


async def test_a_slow_one_blocks_nobody() -> None:
    """What is settled behind an open delivery is acked by itself; the open one is not covered."""
    side = Side(window=100)
    first, slow, *behind = side.deliver(5)
    side.settle(first, *behind)
    await side.alarm.ring()
    assert side.channel.frames == [(first, False), *((tag, False) for tag in behind)]
    assert list(side.channel.unacked) == [slow]


@pytest.mark.parametrize("window", [1, 2, 3, 10])
async def test_an_exhausted_window_is_no_deadlock(window: int) -> None:
    """Where the broker would send nothing more, what is settled is acked at once, no timer needed."""
    side = Side(window=window)
    first, *_ = side.deliver(window)
    side.settle(first)
    await turns()
    assert first in side.channel.acked


async def test_a_dead_channel_is_not_acked() -> None:
    """After the channel closed nothing of it is acked; what was settled is reported for the redelivery."""
    side = Side()
    first, second = side.deliver(2)
    side.settle(first)
    side.acks.close()
    side.settle(second)
    await side.alarm.ring()
    await side.acks.finish()
    assert (len(side.lost), side.channel.frames) == (2, [])


async def test_acks_that_cannot_be_sent_are_reported() -> None:
    """A frame that cannot be sent reports every delivery it was for."""
    side = Side(window=6)
    side.channel.error = exceptions.ChannelInvalidStateError()
    side.settle(*side.deliver(3))
    await turns()
    assert len(side.lost) == 3


async def test_what_settles_while_an_ack_is_sent() -> None:
    """A window that fills up while a frame is on its way is acked after it, without the timer."""
    side = Side(window=2)
    first, second = side.deliver(2)
    side.settle(first)
    await asyncio.sleep(0)
    side.settle(second)
    await turns()
    assert side.channel.acked == {first, second}


async def test_the_next_consumer_of_a_channel() -> None:
    """It acks each by itself, for the one before may have left a delivery open."""
    first = Side()
    left, settled = first.deliver(2)
    first.settle(settled)
    await first.acks.finish()
    second = Side(channel=first.channel)
    second.settle(*second.deliver(5))
    await turns()
    assert {multiple for _, multiple in second.channel.frames} == {False}
    assert list(second.channel.unacked) == [left]


def test_memory_is_bounded_by_what_is_unacked() -> None:
    """Behind one delivery that never ends, a hundred thousand others leave nothing behind."""
    ledger = DeliveryTags()
    ledger.opened(1)
    for tag in range(2, 100_000):
        ledger.opened(tag)
        ledger.settled(tag, delivery())
        assert [ack.tag for ack in ledger.take()] == [tag]
    assert ledger.unacked == 1


async def test_patience_counts_only_while_an_answer_can_come() -> None:
    """Ten parts without an answer are too many; a blocked connection starts the count anew."""
    never, looks = asyncio.Event(), 0

    async def ask() -> bool:
        return await never.wait()

    def is_blocked() -> bool:
        nonlocal looks
        looks += 1
        return looks == TIMEOUT_PARTS - 1

    assert not await RoundTrip(ask, is_blocked, part=0).lives()
    assert looks == 2 * TIMEOUT_PARTS - 1
