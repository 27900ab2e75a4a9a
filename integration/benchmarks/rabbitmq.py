"""RabbitMQ: ``await publish`` with confirms, and consume with an ack each, bare against wrapped."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractIncomingMessage, AbstractQueue

from integration.benchmarks.guard import BODY, HEADERS, audit_file, guard
from integration.benchmarks.rounds import Comparison, Measured, Stopwatch, alternate
from mqauth.brokers import rabbitmq
from mqauth.destination import rabbitmq as destination
from mqauth.testing import Forge
from mqauth.verified import Verified


class Bench:
    """Connections, one exchange and one queue, for publish and consume rounds of ``messages`` each."""

    def __init__(self, url: str, messages: int) -> None:
        self._url = url
        self._messages = messages
        self._name = f"bench.orders.{uuid.uuid4().hex[:8]}"
        self._forge = Forge(lifetime=3600)
        self._runner = asyncio.Runner()
        self._folder = tempfile.TemporaryDirectory()
        self._audit = audit_file(self._folder.name)
        self._connections: list[Any] = []
        self._exchange: AbstractExchange
        self._queue: AbstractQueue
        self._letters: AbstractChannel
        self._runner.run(self._open())

    def publish_bare(self) -> Measured:
        """Publish a round with the client as it is."""
        return self._runner.run(self._publish(self._exchange))

    def publish_wrapped(self) -> Measured:
        """Publish a round through the producer wrapper."""
        return self._runner.run(self._publish(rabbitmq.Producer(self._exchange, self._forge.signer())))

    def consume_bare(self) -> Measured:
        """Fill the queue, then consume it with the client as it is."""
        return self._runner.run(self._consume_bare())

    def consume_wrapped(self) -> Measured:
        """Fill the queue with signed messages, then consume it through the consumer wrapper."""
        return self._runner.run(self._consume_wrapped())

    def close(self) -> None:
        """Delete exchange and queue and close everything."""
        self._runner.run(self._close())
        self._runner.close()
        self._audit.close()
        self._folder.cleanup()

    async def _open(self) -> None:
        self._connections = [await aio_pika.connect_robust(self._url) for _ in range(2)]
        publishing = await self._connections[0].channel()
        consuming = await self._connections[1].channel()
        self._letters = await self._connections[0].channel(on_return_raises=True)
        self._exchange = await publishing.declare_exchange(self._name, "topic", auto_delete=True)
        self._queue = await consuming.declare_queue(self._name, durable=True, arguments={"x-queue-type": "quorum"})
        await self._queue.bind(self._exchange, self._name)

    async def _close(self) -> None:
        await self._queue.delete(if_unused=False, if_empty=False)
        for connection in self._connections:
            await connection.close()

    async def _publish(self, exchange: Any) -> Measured:
        watch = Stopwatch()
        watch.start()
        for _ in range(self._messages):
            await exchange.publish(_message(), self._name)
        measured = watch.stop(self._messages)
        await self._queue.purge()
        return measured

    async def _fill(self, exchange: Any) -> None:
        for start in range(0, self._messages, 100):
            count = min(100, self._messages - start)
            await asyncio.gather(*(exchange.publish(_message(), self._name) for _ in range(count)))

    async def _consume_bare(self) -> Measured:
        await self._fill(self._exchange)
        done = asyncio.Event()
        seen = 0

        async def on_message(message: AbstractIncomingMessage) -> None:
            nonlocal seen
            await message.ack()
            seen += 1
            if seen == self._messages:
                done.set()

        await self._queue.channel.set_qos(prefetch_count=10)
        watch = Stopwatch()
        watch.start()
        tag = await self._queue.consume(on_message)
        await done.wait()
        measured = watch.stop(seen)
        await self._queue.cancel(tag)
        return measured

    async def _consume_wrapped(self) -> Measured:
        await self._fill(rabbitmq.Producer(self._exchange, self._forge.signer()))
        done = asyncio.Event()
        seen = 0

        def handler(_verified: Verified) -> None:
            nonlocal seen
            seen += 1
            if seen == self._messages:
                done.set()

        pipeline = guard(self._forge, destination(self._name, self._name), self._audit)
        letters = rabbitmq.DeadLetters(self._letters, f"{self._name}.dead")
        consumer = rabbitmq.Consumer(self._queue, pipeline, handler, dead_letters=letters, prefetch=10)
        watch = Stopwatch()
        watch.start()
        async with consumer:
            await done.wait()
            measured = watch.stop(seen)
        return measured


def compare(url: str, *, messages: int, rounds: int) -> list[Comparison]:
    """Return publish and consume, bare against wrapped."""
    bench = Bench(url, messages)
    try:
        return [
            alternate("rabbitmq publish", rounds, bench.publish_bare, bench.publish_wrapped),
            alternate("rabbitmq consume", rounds, bench.consume_bare, bench.consume_wrapped),
        ]
    finally:
        bench.close()


def _message() -> aio_pika.Message:
    return aio_pika.Message(BODY, headers=dict(HEADERS), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
