"""Deliveries settled in any order through ``Acks``, on a channel that stands in for RabbitMQ's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Literal

from mqauth.brokers.queue.client import Acks
from mqauth.judging.pipeline import Delivery
from mqauth.wire.message import Message

Act = Literal["settle", "reject", "keep", "wait"]
ACTS: Final[tuple[Act, ...]] = ("settle", "reject", "keep", "wait")


class FakeChannel:
    """A channel that holds a client to RabbitMQ's rules: an ack is of a tag that is unacked, or all is over."""

    def __init__(self) -> None:
        self.last = 0
        self.unacked: dict[int, None] = {}
        self.frames: list[tuple[int, bool]] = []
        self.acked: set[int] = set()
        self.error: Exception | None = None

    def deliver(self, count: int = 1) -> list[int]:
        """Deliver, and return the tags."""
        tags = list(range(self.last + 1, self.last + 1 + count))
        self.last += count
        self.unacked |= dict.fromkeys(tags)
        return tags

    async def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """Take an ack."""
        if self.error is not None:
            raise self.error
        assert delivery_tag in self.unacked, "PRECONDITION_FAILED - unknown delivery tag"
        self.frames.append((delivery_tag, multiple))
        covered = (
            [tag for tag in self.unacked if tag <= delivery_tag]
            if multiple
            else [delivery_tag]
        )
        for tag in covered:
            del self.unacked[tag]
            self.acked.add(tag)
        await asyncio.sleep(0)

    async def basic_nack(self, delivery_tag: int, requeue: bool = True) -> None:
        """Take a reject."""
        assert delivery_tag in self.unacked, "PRECONDITION_FAILED - unknown delivery tag"
        del self.unacked[delivery_tag]
        await asyncio.sleep(0)


def delivery() -> Delivery:
    """Return a delivery that has come to its end."""
    return Delivery(message=Message(destination="rabbitmq:/q", body=b""), received=0)


async def carry_out(
    channel: Any, acks: Acks, tags: Sequence[int], acts: Sequence[tuple[int, Act]]
) -> set[int]:
    """Do something with each of the deliveries, in the order of the acts.

    Args:
        channel: their channel.
        acks: told of each already.
        tags: theirs.
        acts: a number of a delivery, and what is done with it; no number twice.

    Returns:
        The tags that are still open, which nothing may have acked.
    """
    still = set(tags)
    for number, act in acts:
        tag = tags[number]
        if act == "settle":
            acks.settle(tag, delivery())
            still.discard(tag)
        elif act == "reject":
            await channel.basic_nack(tag, requeue=False)
            acks.gone(tag)
            still.discard(tag)
        elif act == "wait":
            await asyncio.sleep(0)
    await acks.finish()
    return still
