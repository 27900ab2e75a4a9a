"""The recommended queues, declared by aio-pika, and streams, which are refused: see ``brokers.amqp_topology``."""

from __future__ import annotations

import asyncio
from typing import Any

from aio_pika.abc import AbstractChannel, AbstractQueue, AbstractRobustChannel
from aiormq.abc import AbstractChannel as UnderlayChannel

from mqauth.brokers.amqp_topology import DEFAULT_DELIVERY_LIMIT, LETTERS, UNPARSEABLE, source_arguments
from mqauth.brokers.rabbitmq.channel import LOST, closing_is_an_error


async def declare_source(
    channel: AbstractChannel, name: str, *, delivery_limit: int = DEFAULT_DELIVERY_LIMIT
) -> AbstractQueue:
    """Declare a quorum queue to consume from, and ``<name>.unparseable`` for what no client can decode.

    Messages found there with the reason ``delivery_limit`` may be healthy neighbours of a poison message.

    Args:
        channel: connected.
        name: the queue; bind it yourself.
        delivery_limit: deliveries after which RabbitMQ moves a message to the unparseable ones.

    Raises:
        aio_pika.exceptions.ChannelPreconditionFailed: it exists with other arguments.
    """
    await declare_dead_letters(channel, name + UNPARSEABLE)
    return await _declare(channel, name, source_arguments(name, delivery_limit))


async def declare_dead_letters(channel: AbstractChannel, name: str) -> AbstractQueue:
    """Declare a quorum queue that keeps its messages: no delivery limit, no TTL, refusing when full.

    Raises:
        aio_pika.exceptions.ChannelPreconditionFailed: it exists with other arguments.
    """
    return await _declare(channel, name, dict(LETTERS))


async def _declare(channel: AbstractChannel, name: str, arguments: dict[str, Any]) -> AbstractQueue:
    # A robust channel would declare it again after each reconnect, and stay closed where that fails.
    if isinstance(channel, AbstractRobustChannel):
        return await channel.declare_queue(name, durable=True, arguments=arguments, robust=False)
    return await channel.declare_queue(name, durable=True, arguments=arguments)


async def refusal(channel: UnderlayChannel, name: str, **wanted: Any) -> str:
    """Return the broker's answer to a declaration, made on a channel of its own; empty where it agrees.

    Args:
        channel: aiormq's, whose connection is used.
        name: the queue.
        wanted: its properties.
    """
    try:
        with closing_is_an_error():
            asking = await channel.connection.channel(publisher_confirms=False)
            await asking.queue_declare(name, durable=True, **wanted)
            # Cancelled here, aiormq 7.2 would send a second Channel.Close, and RabbitMQ end the connection.
            await asyncio.shield(asking.close())
    except LOST as error:
        return str(error) or type(error).__name__
    return ""
