"""The recommended queues of RabbitMQ, and streams, which are refused: for every client.

One message that a client cannot decode ends the connection of whoever reads it, before any handler. With a
delivery limit a quorum queue moves it, and with it whatever else is in the prefetch window, to its dead-letter
exchange. That must not lead to the dead-letter queue that mqauth reads: the message would kill the reader there.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from mqauth.errors import ConfigurationError
from mqauth.logs import emit

DEFAULT_DELIVERY_LIMIT: Final = 20
"""RabbitMQ 4's own default; a lower one condemns healthy messages in ordinary network failures."""
UNPARSEABLE: Final = ".unparseable"
LETTERS: Final = {"x-queue-type": "quorum", "x-delivery-limit": -1, "x-overflow": "reject-publish"}
"""Arguments of a queue that keeps its messages: no delivery limit, no TTL, refusing when full."""
OFFSET: Final = "x-stream-offset"
"""Header that RabbitMQ adds to what it delivers from a stream; any publisher can write it too."""
_OTHER: Final = re.compile(r"arg '([\w-]+)' .* current is the value '([^']*)' of type '(\w+)'")


def source_arguments(name: str, delivery_limit: int) -> dict[str, Any]:
    """Return the arguments of a quorum queue to consume from, whose unparseable messages go to a queue apart.

    Args:
        name: of the queue.
        delivery_limit: deliveries after which RabbitMQ moves a message to the unparseable ones.
    """
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": delivery_limit,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": name + UNPARSEABLE,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def stream_refused(name: str) -> ConfigurationError:
    """Return the error for a stream, since RabbitMQ forgets a delivery of a stream that is given back."""
    return ConfigurationError(f"{name} is a stream, which loses what is given back to it: consume a quorum queue")


async def exists(refusal: Callable[..., Awaitable[str]]) -> bool:
    """Return whether a queue exists, or the broker does not tell.

    Args:
        refusal: declares the queue with properties, and returns the broker's answer; empty where it agrees.
    """
    return "NOT_FOUND" not in await refusal(passive=True)


async def is_stream(refusal: Callable[..., Awaitable[str]]) -> bool:
    """Return whether a queue is known to be a stream; nothing is declared.

    A queue that was got by its name has no arguments that we know. But RabbitMQ compares the arguments of a
    declaration with those of the queue that exists, and says which one differs. No stream can be made with a
    priority, so that none comes into being where the queue is missing.

    Args:
        refusal: as ``exists`` has it.
    """
    wanted: dict[str, Any] = {"x-queue-type": "stream", "x-max-priority": 1}
    # More than the number of arguments that a stream can have.
    for _ in range(10):
        answer = await refusal(arguments=wanted)
        if not answer:
            return True
        differs = _OTHER.search(answer)
        if differs is None or differs[1] in wanted:
            return False
        argument, value, kind = differs.groups()
        wanted[argument] = int(value) if value.isdigit() and kind != "longstr" else value
    return False


def warn_of_shared_connection(queue: str) -> None:
    """Warn that the dead letters of a queue go over its consumer's connection."""
    text = "%s: dead letters share its connection; under a memory alarm acks will stall"
    emit("client.shared_connection", text, queue)
