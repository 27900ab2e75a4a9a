"""Short AMQP scripts that the simulated broker and the real one must answer alike; each returns what it saw."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiormq
from aiormq.abc import DeliveredMessage
from pamqp import commands

QUIET: Final = 0.5
"""Seconds of silence after which nothing more is expected."""
_QUORUM: Final = {"x-queue-type": "quorum"}
Script = Callable[["Client"], Awaitable[list[Any]]]


class Client:
    """Connections to one broker, and queues of one script.

    Args:
        url: where the broker is.
        prefix: begins the names of this script's queues.
    """

    def __init__(self, url: str, prefix: str) -> None:
        self._url = url
        self._prefix = prefix
        self._connections: list[Any] = []

    async def channel(self) -> Any:
        """Return a channel on a connection of its own."""
        connection = await aiormq.connect(self._url)
        self._connections.append(connection)
        return await connection.channel()

    async def queue(self, channel: Any, name: str = "q", **arguments: Any) -> str:
        """Declare a quorum queue and return its name."""
        found = {"x-" + key.replace("_", "-"): value for key, value in arguments.items()}
        await channel.queue_declare(
            self._prefix + name, durable=True, arguments=_QUORUM | found
        )
        return self._prefix + name

    async def close(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            await connection.close()


class Reader:
    """A consumer that notes what it is sent."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bool, int]] = []
        self.tags: list[int] = []

    async def take(self, message: DeliveredMessage) -> None:
        """Note one delivery."""
        headers = message.header.properties.headers or {}
        count = int(headers.get("x-delivery-count", 0))  # type: ignore[arg-type, call-overload]
        self.seen.append(
            (message.body.decode(), bool(message.delivery.redelivered), count)
        )  # type: ignore[union-attr]
        self.tags.append(message.delivery.delivery_tag or 0)  # type: ignore[union-attr]

    async def quiet(self) -> list[tuple[str, bool, int]]:
        """Return what came, once nothing more does."""
        before = -1
        while before != len(self.seen):
            before = len(self.seen)
            await asyncio.sleep(QUIET)
        seen, self.seen = self.seen, []
        return seen


async def _publish(channel: Any, queue: str, *bodies: str, **settings: Any) -> list[str]:
    """Publish texts and return the kinds of their confirms."""
    confirms = []
    for body in bodies:
        found = await channel.basic_publish(body.encode(), routing_key=queue, **settings)
        confirms.append(type(found).__name__)
    return confirms


async def prefetch(client: Client) -> list[Any]:
    """A consumer gets as many as it may have unacked, and one more for each ack."""
    channel, reader = await client.channel(), Reader()
    queue = await client.queue(channel)
    await channel.basic_qos(prefetch_count=2)
    await _publish(channel, queue, "a", "b", "c", "d")
    await channel.basic_consume(queue, reader.take)
    seen = [await reader.quiet()]
    await channel.basic_ack(reader.tags[0])
    seen.append(await reader.quiet())
    await channel.basic_ack(reader.tags[-1], multiple=True)
    return [*seen, await reader.quiet()]


async def requeued(client: Client) -> list[Any]:
    """What is given back comes again first, flagged and counted."""
    channel, reader = await client.channel(), Reader()
    queue = await client.queue(channel)
    await channel.basic_qos(prefetch_count=1)
    await _publish(channel, queue, "a", "b")
    await channel.basic_consume(queue, reader.take)
    seen = [await reader.quiet()]
    for _ in range(2):
        await channel.basic_nack(reader.tags[-1], requeue=True)
        seen.append(await reader.quiet())
    await channel.basic_ack(reader.tags[-1])
    return [*seen, await reader.quiet()]


async def channel_closed(client: Client) -> list[Any]:
    """What was unacked on a channel that closes comes to another consumer, in order and flagged."""
    one, other = await client.channel(), await client.channel()
    first, second = Reader(), Reader()
    queue = await client.queue(one)
    await one.basic_qos(prefetch_count=3)
    await other.basic_qos(prefetch_count=10)
    await _publish(one, queue, "a", "b", "c")
    await one.basic_consume(queue, first.take)
    seen = [await first.quiet()]
    await other.basic_consume(queue, second.take)
    await _publish(other, queue, "d")
    seen.append(await second.quiet())
    await one.close()
    return [*seen, await second.quiet()]


async def delivery_limit(client: Client) -> list[Any]:
    """What comes back more often than the limit goes to the dead-letter queue."""
    channel, reader, dead = await client.channel(), Reader(), Reader()
    letters = await client.queue(channel, "dead")
    queue = await client.queue(
        channel, delivery_limit=2, dead_letter_exchange="", dead_letter_routing_key=letters,
        dead_letter_strategy="at-least-once", overflow="reject-publish",
    )  # fmt: skip
    await _publish(channel, queue, "a")
    await channel.basic_consume(queue, reader.take)
    await channel.basic_consume(letters, dead.take)
    seen = []
    for _ in range(4):
        found = await reader.quiet()
        seen.append(found)
        if found:
            await channel.basic_nack(reader.tags[-1], requeue=True)
    return [*seen, [body for body, _, _ in await dead.quiet()]]


async def cancelled_keeps(client: Client) -> list[Any]:
    """What a cancelled consumer has unacked takes no place from the channel's next one, and may be acked."""
    channel, first, second = await client.channel(), Reader(), Reader()
    queue = await client.queue(channel)
    await channel.basic_qos(prefetch_count=2)
    await _publish(channel, queue, "a", "b", "c", "d", "e")
    tag = (await channel.basic_consume(queue, first.take)).consumer_tag
    seen = [await first.quiet()]
    await channel.basic_cancel(tag)
    await channel.basic_consume(queue, second.take)
    seen.append(await second.quiet())
    await channel.basic_ack(first.tags[0])
    seen.append(await second.quiet())
    await channel.basic_ack(second.tags[-1], multiple=True)
    return [*seen, await second.quiet()]


async def unknown_tag(client: Client) -> list[Any]:
    """An ack of an unknown tag closes the channel."""
    channel = await client.channel()
    await channel.basic_ack(7)
    await asyncio.sleep(QUIET)
    return [channel.is_closed, type(channel._close_exception).__name__]


async def missing_queue(client: Client) -> list[Any]:
    """A queue that is only looked for and not there closes the channel."""
    channel = await client.channel()
    try:
        await channel.queue_declare("there is no such queue", passive=True)
    except aiormq.exceptions.AMQPError as error:
        return [type(error).__name__]
    return []


async def unroutable(client: Client) -> list[Any]:
    """A mandatory message that no queue takes is returned, another one is confirmed."""
    channel = await client.channel()
    try:
        await _publish(channel, "there is no such queue", "a", mandatory=True)
    except aiormq.exceptions.PublishError as error:
        seen: list[Any] = [type(error).__name__]
    return [*seen, await _publish(channel, "there is no such queue", "a")]


async def deleted_queue(client: Client) -> list[Any]:
    """The consumer of a queue that is deleted is cancelled; its channel lives."""
    channel, reader, told = await client.channel(), Reader(), []
    queue = await client.queue(channel)
    channel.on_consumer_cancel_callbacks.add(
        lambda frame: told.append(type(frame) is commands.Basic.Cancel)
    )
    await channel.basic_consume(queue, reader.take)
    await (await client.channel()).queue_delete(queue)
    await asyncio.sleep(QUIET)
    return [told, channel.is_closed]


async def got(client: Client) -> list[Any]:
    """What is fetched singly and not acked comes again when its channel closes."""
    one, other, reader = await client.channel(), await client.channel(), Reader()
    queue = await client.queue(one)
    await _publish(one, queue, "a", "b")
    body = (await one.basic_get(queue)).body
    await one.close()
    await asyncio.sleep(QUIET)
    await other.basic_consume(queue, reader.take)
    return [body, await reader.quiet()]


SCRIPTS: Final[dict[str, Script]] = {
    script.__name__: script
    for script in (
        prefetch, requeued, channel_closed, delivery_limit, cancelled_keeps, unknown_tag, missing_queue,
        unroutable, deleted_queue, got,
    )
}  # fmt: skip
"""All scripts by name."""
