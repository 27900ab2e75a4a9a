"""Deliveries of one queue held unacked with plain aio-pika, and what the broker says of each."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Final, Self

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from integration.chaos.rabbitmq_scene import until

QUORUM: Final[dict[str, Any]] = {"x-queue-type": "quorum", "x-consumer-disconnected-timeout": 1_000}
"""RabbitMQ 4.3 waits for a consumer whose node is out of sight; earlier ones know no such argument."""
COUNTS: Final = ("x-delivery-count", "x-acquired-count")


@dataclass(slots=True)
class Holder:
    """A consumer that holds what it gets.

    Args:
        connection: of its own.
        channel: the one it consumes on.
        taken: what it got, each with the monotonic second it came at.
    """

    connection: AbstractConnection
    channel: AbstractChannel
    taken: list[tuple[float, AbstractIncomingMessage]] = field(default_factory=list)

    @classmethod
    async def at(cls, url: str, queue: str, prefetch: int = 10) -> Self:
        """Consume a queue by one node."""
        connection = await aio_pika.connect(url)
        holder = cls(connection, await connection.channel())
        await holder.channel.set_qos(prefetch)
        await (await holder.channel.get_queue(queue, ensure=False)).consume(holder._take)
        return holder

    async def _take(self, message: AbstractIncomingMessage) -> None:
        self.taken.append((time.monotonic(), message))

    async def has(self, number: int, seconds: float = 120) -> list[AbstractIncomingMessage]:
        """Wait for so many deliveries, and return them."""
        await until(lambda: len(self.taken) >= number, seconds)
        return [message for _, message in self.taken]

    async def answers(self, prefetch: int = 10) -> bool:
        """Tell whether the consuming channel answers a round trip."""
        try:
            await self.channel.set_qos(prefetch, timeout=5)
        except Exception:  # of aio-pika, aiormq or asyncio, by the way the channel ended
            return False
        return True


async def queue_with(url: str, number: int, arguments: dict[str, Any] | None = None) -> str:
    """Declare a queue at a node, which leads it then, and publish so many messages, confirmed."""
    name = f"mqauth-held-{uuid.uuid4().hex[:12]}"
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(name, durable=True, arguments=QUORUM if arguments is None else arguments)
        for each in range(number):
            message = aio_pika.Message(b"%d" % each, delivery_mode=2)
            await channel.default_exchange.publish(message, routing_key=name)
    return name


def counted(message: AbstractIncomingMessage) -> int | None:
    """Return how many deliveries came before, by the larger of the broker's counts; ``None`` without one."""
    found = [int(str(message.headers[name])) for name in COUNTS if name in message.headers]
    return max(found, default=None)
