"""The second service, on both brokers: takes orders from RabbitMQ, and asks for their payment on Kafka."""

from __future__ import annotations

import asyncio
from functools import partial

from faststream import FastStream
from faststream.kafka import KafkaBroker
from faststream.rabbit import QueueType, RabbitBroker, RabbitQueue

from integration.examples.wiring import (
    KAFKA,
    RABBITMQ,
    SHOP,
    handled,
    rabbitmq_letters,
    ready,
    settings,
)
from mqauth.integrations.faststream import VerifiedMessage, protect

orders = RabbitBroker(RABBITMQ)
protect(
    orders,
    guard=settings.pipeline,
    dead_letters=partial(rabbitmq_letters, orders),
    signer=settings.signer,
)
payments = protect(KafkaBroker(KAFKA), signer=settings.signer)


@orders.subscriber(
    RabbitQueue(f"{SHOP}.accepted", queue_type=QueueType.QUORUM, durable=True)
)
@payments.publisher(f"{SHOP}.payments")
async def dispatch(order: dict[str, int], verified: VerifiedMessage) -> dict[str, int]:
    """Ask for a payment."""
    handled(verified)
    return {"pay": order["order"]}


if __name__ == "__main__":
    asyncio.run(FastStream(orders, payments, after_startup=[ready]).run())
