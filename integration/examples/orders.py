"""The first service, on RabbitMQ: takes orders, and passes on those it accepts."""

from __future__ import annotations

import asyncio
from functools import partial

from faststream import FastStream
from faststream.rabbit import QueueType, RabbitBroker, RabbitQueue

from integration.examples.wiring import (
    RABBITMQ,
    SHOP,
    handled,
    rabbitmq_letters,
    ready,
    settings,
)
from mqauth.integrations.faststream import VerifiedMessage, protect

broker = RabbitBroker(RABBITMQ)
protect(
    broker,
    guard=settings.pipeline,
    dead_letters=partial(rabbitmq_letters, broker),
    signer=settings.signer,
)


@broker.subscriber(
    RabbitQueue(f"{SHOP}.orders", queue_type=QueueType.QUORUM, durable=True)
)
@broker.publisher(f"{SHOP}.accepted")
async def accept(order: dict[str, int], verified: VerifiedMessage) -> dict[str, int]:
    """Accept an order."""
    handled(verified)
    return order


if __name__ == "__main__":
    asyncio.run(FastStream(broker, after_startup=[ready]).run())
