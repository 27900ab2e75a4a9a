"""Streams, which no consumer here takes: RabbitMQ forgets a delivery of a stream that is given back.

A stream has its type among its arguments, but a queue that was got by its name has none that we know of. RabbitMQ
marks what it delivers from a stream with an offset. Any publisher can write that header, so the queue is asked.
"""

from __future__ import annotations

import re
from typing import Any, Final

from aiormq.abc import AbstractChannel

from mqauth.brokers.rabbitmq.channel import LOST, closing_is_an_error
from mqauth.errors import ConfigurationError

OFFSET: Final = "x-stream-offset"
_ARGUMENTS: Final = 10
"""More than the arguments a stream can have."""
_OTHER: Final = re.compile(r"arg '([\w-]+)' .* current is the value '([^']*)' of type '(\w+)'")


def stream(name: str) -> ConfigurationError:
    """Return what is said of a queue that is a stream."""
    return ConfigurationError(f"{name} is a stream, which loses what is given back to it: consume a quorum queue")


async def is_stream(channel: AbstractChannel, name: str) -> bool:
    """Tell whether a queue is known to be a stream; nothing is declared.

    RabbitMQ compares the arguments of a declaration with those of a queue that exists, and says which differs. No
    stream can be made with a priority, so that none comes into being where the queue is missing.

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


async def _refusal(channel: AbstractChannel, name: str, arguments: dict[str, Any]) -> str:
    """Return what the broker says to a declaration, on a channel of its own, and nothing where it agrees."""
    try:
        with closing_is_an_error():
            asking = await channel.connection.channel(publisher_confirms=False)
            await asking.queue_declare(name, durable=True, arguments=arguments)
            await asking.close()
    except LOST as error:
        return str(error) or type(error).__name__
    return ""
