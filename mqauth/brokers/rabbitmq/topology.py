"""The recommended queues: quorum, bounded redelivery, and the unparseable kept apart from the dead letters.

One message that pamqp cannot decode kills the connection of whoever reads it, before any handler; with a
delivery limit a quorum queue drops it, together with whatever else is in the prefetch window, to its
dead-letter exchange. That must not be the dead-letter queue mqauth reads: it would kill the reader there.
"""

from __future__ import annotations

from typing import Any, Final

from aio_pika.abc import AbstractChannel, AbstractQueue, AbstractRobustChannel

DEFAULT_DELIVERY_LIMIT: Final = 20
"""RabbitMQ 4's own default; a lower one condemns healthy messages in ordinary network flaps."""
UNPARSEABLE: Final = ".unparseable"


async def declare_source(
    channel: AbstractChannel, name: str, *, delivery_limit: int = DEFAULT_DELIVERY_LIMIT
) -> AbstractQueue:
    """Declare a quorum queue to consume from, and ``<name>.unparseable`` for what no client can decode.

    Messages found there with the reason ``delivery_limit`` may be healthy neighbours of a poison message.

    Args:
        channel: connected.
        name: the queue; bind it yourself.
        delivery_limit: deliveries after which RabbitMQ moves a message to the unparseable.

    Raises:
        aio_pika.exceptions.ChannelPreconditionFailed: it exists with other arguments.
    """
    await declare_dead_letters(channel, name + UNPARSEABLE)
    return await _declare(
        channel,
        name,
        {
            "x-delivery-limit": delivery_limit,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": name + UNPARSEABLE,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
    )


async def declare_dead_letters(channel: AbstractChannel, name: str) -> AbstractQueue:
    """Declare a quorum queue that keeps what it has: no delivery limit, no TTL, refusing when full.

    Raises:
        aio_pika.exceptions.ChannelPreconditionFailed: it exists with other arguments.
    """
    return await _declare(channel, name, {"x-delivery-limit": -1, "x-overflow": "reject-publish"})


async def _declare(channel: AbstractChannel, name: str, arguments: dict[str, Any]) -> AbstractQueue:
    """Declare a durable quorum queue; a reconnect does not declare it again."""
    found: dict[str, Any] = {"x-queue-type": "quorum"} | arguments
    if isinstance(channel, AbstractRobustChannel):
        return await channel.declare_queue(name, durable=True, arguments=found, robust=False)
    return await channel.declare_queue(name, durable=True, arguments=found)
