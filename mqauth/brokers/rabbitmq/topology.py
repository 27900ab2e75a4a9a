"""The recommended queues, and streams, which are refused.

One message that pamqp cannot decode kills the connection of whoever reads it, before any handler. With a
delivery limit a quorum queue moves it, and with it whatever else is in the prefetch window, to its dead-letter
exchange. That must not lead to the dead-letter queue that mqauth reads: the message would kill the reader there.
"""

from __future__ import annotations

import re
from typing import Any, Final

from aio_pika.abc import AbstractChannel, AbstractQueue, AbstractRobustChannel
from aiormq.abc import AbstractChannel as UnderlayChannel

from mqauth.brokers.rabbitmq.channel import LOST, closing_is_an_error
from mqauth.errors import ConfigurationError

DEFAULT_DELIVERY_LIMIT: Final = 20
"""RabbitMQ 4's own default; a lower one condemns healthy messages in ordinary network failures."""
UNPARSEABLE: Final = ".unparseable"
OFFSET: Final = "x-stream-offset"
"""Header that RabbitMQ adds to what it delivers from a stream; any publisher can write it too."""
_ARGUMENTS: Final = 10
"""More than the number of arguments that a stream can have."""
_OTHER: Final = re.compile(r"arg '([\w-]+)' .* current is the value '([^']*)' of type '(\w+)'")


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
    """Declare a quorum queue that keeps its messages: no delivery limit, no TTL, refusing when full.

    Raises:
        aio_pika.exceptions.ChannelPreconditionFailed: it exists with other arguments.
    """
    return await _declare(channel, name, {"x-delivery-limit": -1, "x-overflow": "reject-publish"})


async def _declare(channel: AbstractChannel, name: str, arguments: dict[str, Any]) -> AbstractQueue:
    found: dict[str, Any] = {"x-queue-type": "quorum"} | arguments
    # A robust channel would declare it again after each reconnect, and stay closed where that fails.
    if isinstance(channel, AbstractRobustChannel):
        return await channel.declare_queue(name, durable=True, arguments=found, robust=False)
    return await channel.declare_queue(name, durable=True, arguments=found)


def stream_refused(name: str) -> ConfigurationError:
    """Return the error for a stream, since RabbitMQ forgets a delivery of a stream that is given back."""
    return ConfigurationError(f"{name} is a stream, which loses what is given back to it: consume a quorum queue")


async def is_stream(channel: UnderlayChannel, name: str) -> bool:
    """Return whether a queue is known to be a stream; nothing is declared.

    A queue that was got by its name has no arguments that we know. But RabbitMQ compares the arguments of a
    declaration with those of the queue that exists, and says which one differs. No stream can be made with a
    priority, so that none comes into being where the queue is missing.

    Args:
        channel: aiormq's, whose connection is used.
        name: the queue.
    """
    wanted: dict[str, Any] = {"x-queue-type": "stream", "x-max-priority": 1}
    for _ in range(_ARGUMENTS):
        refusal = await _refusal(channel, name, wanted)
        if not refusal:
            return True
        differs = _OTHER.search(refusal)
        if differs is None or differs[1] in wanted:
            return False
        argument, value, kind = differs.groups()
        wanted[argument] = int(value) if value.isdigit() and kind != "longstr" else value
    return False


async def _refusal(channel: UnderlayChannel, name: str, arguments: dict[str, Any]) -> str:
    """Return the broker's answer to a declaration, made on a channel of its own; empty where it agrees."""
    try:
        with closing_is_an_error():
            asking = await channel.connection.channel(publisher_confirms=False)
            await asking.queue_declare(name, durable=True, arguments=arguments)
            await asking.close()
    except LOST as error:
        return str(error) or type(error).__name__
    return ""
