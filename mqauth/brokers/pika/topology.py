"""The recommended queues, declared by pika: see ``brokers.amqp_topology``."""

from __future__ import annotations

from typing import Any

from pika.adapters.blocking_connection import BlockingChannel

from mqauth.brokers.amqp_topology import DEFAULT_DELIVERY_LIMIT, LETTERS, UNPARSEABLE, source_arguments
from mqauth.brokers.pika.link import LOST, Link


def declare_source(channel: BlockingChannel, name: str, *, delivery_limit: int = DEFAULT_DELIVERY_LIMIT) -> None:
    """Declare a quorum queue to consume from, and ``<name>.unparseable`` for what no client can decode.

    Messages found there with the reason ``delivery_limit`` may be healthy neighbours of a poison message.

    Args:
        channel: connected.
        name: the queue; bind it yourself.
        delivery_limit: deliveries after which RabbitMQ moves a message to the unparseable ones.

    Raises:
        pika.exceptions.ChannelClosedByBroker: it exists with other arguments.
    """
    declare_dead_letters(channel, name + UNPARSEABLE)
    _declare(channel, name, source_arguments(name, delivery_limit))


def declare_dead_letters(channel: BlockingChannel, name: str) -> None:
    """Declare a quorum queue that keeps its messages: no delivery limit, no TTL, refusing when full.

    Raises:
        pika.exceptions.ChannelClosedByBroker: it exists with other arguments.
    """
    _declare(channel, name, dict(LETTERS))


async def refusal(link: Link, name: str, **wanted: Any) -> str:
    """Return the broker's answer to a declaration, made on a channel of its own; empty where it agrees.

    Args:
        link: the connection.
        name: the queue.
        wanted: its properties.
    """
    try:
        line = await link.channel()
        await line.ask(line.native.queue_declare, name, durable=True, **wanted)
        line.native.close()
    except LOST as error:
        return str(error) or type(error).__name__
    return ""


def _declare(channel: BlockingChannel, name: str, arguments: dict[str, Any]) -> None:
    channel.queue_declare(name, durable=True, arguments=arguments)
