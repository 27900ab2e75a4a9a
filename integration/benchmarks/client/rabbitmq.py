"""The contenders on RabbitMQ: ``publish`` with confirms, and consume with acks, on quorum queues.

``bare`` is aio-pika as its users write it: ``await publish``, and an ``ack`` for each message.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Self

import aio_pika
from aio_pika.abc import (
    AbstractChannel,
    AbstractExchange,
    AbstractIncomingMessage,
    AbstractQueue,
)

from integration.benchmarks.client.contenders import (
    HEADER,
    Wrapper,
    benchmark_of,
)
from integration.benchmarks.client.event_loop import (
    Flush,
    LoopContender,
    Send,
    at_once,
    fail,
    failing,
)
from integration.benchmarks.client.rounds import Measured
from integration.benchmarks.client.workload import BATCH, Refusals, Tally, Workload, guard
from mqauth.brokers import rabbitmq
from mqauth.brokers.rabbitmq.translate import headers_out, to_message
from mqauth.judging.verified import Verified
from mqauth.testing.forge import Forge
from mqauth.wire import destination
from mqauth.wire.message import TOKEN_HEADER

PREFETCH: Final = 128
"""Unacked deliveries, the same for every contender."""
AT_ONCE: Final = 128
"""Publishes under way at once, where there are many."""


class Connections:
    """A connection to publish and one to consume, with an event loop of their own.

    Args:
        url: ``amqp://...``.
    """

    def __init__(self, url: str) -> None:
        self.runner = asyncio.Runner()
        self.workload = Workload()
        self.publishing: Any = None
        self._connections: list[Any] = []
        try:
            self.runner.run(self._open(url))
        except BaseException:
            self.runner.close()
            raise

    async def _open(self, url: str) -> None:
        for _ in range(2):
            self._connections.append(await aio_pika.connect_robust(url))
        self.publishing = await self._connections[0].channel()

    async def consuming(self) -> AbstractChannel:
        """Open a channel to consume on; mqauth joins acks only on a channel that is the consumer's alone."""
        channel: AbstractChannel = await self._connections[1].channel()
        await channel.set_qos(prefetch_count=PREFETCH)
        return channel

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        for connection in self._connections:
            self.runner.run(connection.close())
        self.runner.close()


class QueueContender(LoopContender):
    """A contender with an exchange and a queue of its own.

    Subclasses say how a message is published, which messages wait in the queue, and how they are consumed.
    """

    name = ""
    heavy = False

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self.route = f"integration.benchmarks.client.{uuid.uuid4().hex[:12]}"
        self.place = destination.rabbitmq(self.route, self.route)
        self.exchange: AbstractExchange
        self.queue: AbstractQueue
        self._waiting: list[aio_pika.Message] = []
        connections.runner.run(self._declare())

    async def _declare(self) -> None:
        self.exchange = await self.connections.publishing.declare_exchange(
            self.route, "topic", auto_delete=True
        )
        self.queue = await (await self.connections.consuming()).declare_queue(
            self.route, durable=True, arguments={"x-queue-type": "quorum"}
        )
        await self.queue.bind(self.exchange, self.route)

    def plain(self, number: int = 0) -> aio_pika.Message:
        """Return a message as the application makes it."""
        return aio_pika.Message(
            self.connections.workload.body(number), headers=dict(self.connections.workload.header_texts()),
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )  # fmt: skip

    def added(self) -> float:
        """Return by how many bytes a message is larger than a bare one."""
        sealed = self.sealed(BATCH)
        more = sum(size(message) for message in sealed) / BATCH - size(self.plain())
        return more + self.connections.workload.padding_bytes

    def close(self) -> None:
        """Delete the queue; the exchange goes with it."""
        self.connections.runner.run(self.queue.delete(if_unused=False, if_empty=False))

    def publisher(self) -> Send:
        """Return a function that publishes the message of a number and waits for its confirm."""
        raise NotImplementedError

    def sealed(self, count: int) -> list[aio_pika.Message]:
        """Return the messages that wait in the queue."""
        raise NotImplementedError

    def fill(self, count: int) -> None:
        """Have exactly ``count`` messages wait in the queue."""
        self.connections.runner.run(self._refill(count))

    def sending(self, *, scratch: bool) -> tuple[Send, Flush]:
        """Return what publishes the message of a number and waits for its confirm; nothing is left to wait for."""
        return self.publisher(), partial(asyncio.sleep, 0)

    async def _refill(self, count: int) -> None:
        await self.queue.purge()
        if count and len(self._waiting) != count:
            self._waiting = self.sealed(count)
        waiting = self._waiting
        await at_once(
            lambda number: self.exchange.publish(waiting[number], self.route),
            count,
            AT_ONCE,
        )


class Wrapped(QueueContender):
    """aio-pika as its users write it, with what a wrapper adds to each message."""

    def __init__(self, connections: Connections, wrapper: Wrapper) -> None:
        super().__init__(connections)
        self._wrapper = wrapper
        self.name = wrapper.name
        self.heavy = wrapper.heavy

    def publisher(self) -> Send:
        """Return ``await publish`` of a sealed message."""
        return lambda number: self.exchange.publish(self._seal(number), self.route)

    def sealed(self, count: int) -> list[aio_pika.Message]:
        """Return sealed messages."""
        return [self._seal(number) for number in range(count)]

    async def consuming(self, tally: Tally, until: asyncio.Future[Measured]) -> None:
        """Open each message, handle it, and ack it."""
        open_, headed = self._wrapper.opener(self.place), self._wrapper.headed

        async def on_message(message: AbstractIncomingMessage) -> None:
            with failing(until):
                tally(open_(message.body, token_of(message) if headed else None))
                await message.ack()

        await consumed(self.queue, on_message, until)

    def _seal(self, number: int) -> aio_pika.Message:
        message = self.plain(number)
        message.body, token = self._wrapper.seal(self.place, message.body)
        message.body_size = len(message.body)
        if token is not None:
            message.headers[HEADER] = token
        return message


class Signed(QueueContender):
    """mqauth with a token for each message."""

    name = "message"
    heavy = True
    at_once = AT_ONCE

    def __init__(self, connections: Connections, forge: Forge) -> None:
        super().__init__(connections)
        self._forge = forge

    def publisher(self) -> Send:
        """Return ``await publish`` of mqauth's producer."""
        producer = self.producer()
        return lambda number: producer.publish(self.plain(number), self.route)

    def producer(self) -> Any:
        """Return the producer."""
        return rabbitmq.Producer(self.exchange, self._forge.signer(), batch=1)

    def sealed(self, count: int) -> list[aio_pika.Message]:
        """Return sealed messages."""
        producer = self.producer()
        return [producer.seal(self.plain(number), self.route) for number in range(count)]

    async def consuming(self, tally: Tally, until: asyncio.Future[Measured]) -> None:
        """Consume through mqauth's consumer."""
        refusals = Refusals(lambda reason: fail(until, f"refused as {reason}"))

        def handler(verified: Verified) -> None:
            tally(verified.body)

        consumer = rabbitmq.Consumer(
            self.queue,
            guard(self._forge, self.place),
            handler,
            dead_letters=refusals,
            prefetch=PREFETCH,
        )
        async with consumer:
            await asyncio.wait((until,))


class Batched(Signed):
    """mqauth with one token for up to 64 messages."""

    name = "batch"
    heavy = False

    def producer(self) -> Any:
        """Return a producer that seals concurrent publishes together."""
        return rabbitmq.Producer(self.exchange, self._forge.signer(), batch=BATCH)

    def sealed(self, count: int) -> list[aio_pika.Message]:
        """Return messages sealed 64 at a time."""
        return [
            m
            for start in range(0, count, BATCH)
            for m in self._seal(range(start, min(count, start + BATCH)))
        ]

    def token(self) -> str:
        """Return a token with its proof, as a message carries it."""
        return str(self.sealed(BATCH)[0].headers[TOKEN_HEADER])

    def _seal(self, numbers: Sequence[int]) -> list[aio_pika.Message]:
        """Return messages that were sealed together."""
        natives = [self.plain(number) for number in numbers]
        for native in natives:
            native.message_id = uuid.uuid4().hex
        wires = [
            to_message(native, exchange=self.route, routing_key=self.route)
            for native in natives
        ]
        for native, signed in zip(
            natives, self._forge.signer().sign_many(wires), strict=True
        ):
            native.headers = headers_out(signed.headers)
        return natives


contenders, measure = benchmark_of(Wrapped, Signed, Batched)


def size(message: aio_pika.Message) -> int:
    """Return the bytes of a message in AMQP, without the framing that all messages share."""
    # aiormq adds an id to a message that has none.
    message.message_id = message.message_id or uuid.uuid4().hex
    return len(message.body) + len(message.properties.marshal())


async def consumed(
    queue: AbstractQueue, on_message: Callable[[AbstractIncomingMessage], Awaitable[None]],
    until: asyncio.Future[Measured],
) -> None:  # fmt: skip
    """Consume a queue until the future is done."""
    tag = await queue.consume(on_message)
    try:
        await asyncio.wait((until,))
    finally:
        await queue.cancel(tag)


def token_of(message: AbstractIncomingMessage) -> str | None:
    """Return the token of a wrapper from a message's headers."""
    token = message.headers.get(HEADER)
    return token if isinstance(token, str) else None
