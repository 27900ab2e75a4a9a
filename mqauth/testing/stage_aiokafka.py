"""The stage of a real Kafka for aiokafka's leaf; topics and letters are looked after by kafka-python's.

aiokafka needs a running event loop. The stage keeps one on a thread, and its plain calls wait for that loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from mqauth.brokers import aiokafka
from mqauth.brokers.event_loop import on_thread
from mqauth.brokers.log.records import dead_letter_headers
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.signer import Signer
from mqauth.testing.stage_kafka import PATIENCE, KafkaStage, wait_until
from mqauth.wire import destination
from mqauth.wire.message import Message

R = TypeVar("R")


class LoopThread:
    """An event loop on a thread of its own, for those who have none."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, R], patience: float = PATIENCE) -> R:
        """Run a coroutine there, and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(patience)

    def close(self) -> None:
        """End the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()


class AiokafkaClients:
    """Makes the started clients of a stage; to be called inside an event loop.

    Args:
        servers: the broker's.
        group: the consumers'.
    """

    def __init__(self, servers: list[str], group: str) -> None:
        self._servers = servers
        self._group = group

    async def consumer(self, topic: str, **settings: Any) -> AIOKafkaConsumer:
        """Return a consumer of the group."""
        wanted = {"group_id": self._group, "auto_offset_reset": "earliest", "enable_auto_commit": False}
        client = AIOKafkaConsumer(topic, bootstrap_servers=self._servers, **(wanted | settings))
        await client.start()
        return client

    async def producer(self, **settings: Any) -> AIOKafkaProducer:
        """Return a producer."""
        client = AIOKafkaProducer(bootstrap_servers=self._servers, **({"acks": "all"} | settings))
        await client.start()
        return client


class AiokafkaStage(KafkaStage):
    """A source topic and a dead-letter topic with unique names.

    Args:
        url: ``aiokafka://host:port`` or ``kafka://host:port``, more servers after commas.
        settings: as ``KafkaStage`` has them.
    """

    name = "aiokafka"

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(url.replace("aiokafka://", "kafka://", 1), **settings)
        self.clients = AiokafkaClients(self.servers, self.group)
        self.thread = LoopThread()
        self._producer = self.thread.call(self.clients.producer(enable_idempotence=True))

    def produce(self, signer: Signer, message: Message) -> None:
        """Send through the producer wrapper and wait for the broker."""
        _, topic = destination.parse(message.destination)
        headers = dead_letter_headers(message.headers)
        producer = aiokafka.Producer(self._producer, signer)
        self.thread.call(producer.send_and_wait(topic, message.body, key=message.key, headers=headers))

    def consume(self, guard: Pipeline, handler: Handler, *, until: Callable[[], bool], **settings: Any) -> None:
        """Run the consumer wrapper until the condition holds.

        Raises:
            TimeoutError: it did not come to hold within a minute.
        """
        self.thread.call(self._consume(guard, on_thread(handler), until, settings), 2 * PATIENCE)

    async def _consume(
        self, guard: Pipeline, handler: Handler, until: Callable[[], bool], settings: dict[str, Any]
    ) -> None:
        client, letters = await self.clients.consumer(self.topic), await self.clients.producer()
        sink = aiokafka.DeadLetters(letters, self.dead, timeout=10)
        try:
            async with aiokafka.Consumer(client, guard, handler, dead_letters=sink, **settings) as wrapped:
                await asyncio.to_thread(wait_until, until, lambda: not wrapped.failed)
        finally:
            await client.stop()
            await letters.stop()

    def close(self) -> None:
        """Delete the topics and close the clients."""
        self.thread.call(self._producer.stop())
        self.thread.close()
        super().close()
