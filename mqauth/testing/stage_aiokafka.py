"""The stage of a real Kafka for aiokafka's leaf; topics and letters are looked after by kafka-python's.

aiokafka needs a running event loop. The stage keeps one on a thread, and its plain calls wait for that loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiokafka as aiokafka_client

from mqauth.brokers import aiokafka
from mqauth.brokers.event_loop import on_thread
from mqauth.brokers.log.records import dead_letter_headers
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.signer import Signer
from mqauth.testing.loop_thread import LoopThread
from mqauth.testing.stage import PATIENCE, wait_until
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.wire import destination
from mqauth.wire.message import Message

_CLIENT: Any = aiokafka_client  # its classes have no types


class AiokafkaClients:
    """Makes the started clients of a stage; to be called inside an event loop.

    Args:
        servers: the broker's.
        group: the consumers'.
    """

    def __init__(self, servers: list[str], group: str) -> None:
        self._servers = servers
        self._group = group

    async def consumer(self, topic: str, **settings: Any) -> Any:
        """Return a consumer of the group."""
        wanted = {
            "group_id": self._group,
            "auto_offset_reset": "earliest",
            "enable_auto_commit": False,
        }
        client = _CLIENT.AIOKafkaConsumer(
            topic, bootstrap_servers=self._servers, **(wanted | settings)
        )
        await client.start()
        return client

    async def producer(self, **settings: Any) -> Any:
        """Return a producer."""
        client = _CLIENT.AIOKafkaProducer(
            bootstrap_servers=self._servers, **({"acks": "all"} | settings)
        )
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
        self.thread.call(
            producer.send_and_wait(topic, message.body, key=message.key, headers=headers)
        )

    def consume(
        self,
        guard: Pipeline,
        handler: Handler,
        *,
        until: Callable[[], bool],
        **settings: Any,
    ) -> None:
        """Run the consumer wrapper until the condition holds.

        Raises:
            TimeoutError: it did not come to hold within a minute.
        """
        self.thread.call(
            self._consume(guard, on_thread(handler), until, settings), 2 * PATIENCE
        )

    async def _consume(
        self,
        guard: Pipeline,
        handler: Handler,
        until: Callable[[], bool],
        settings: dict[str, Any],
    ) -> None:
        client, letters = (
            await self.clients.consumer(self.topic),
            await self.clients.producer(),
        )
        sink = aiokafka.DeadLetters(letters, self.dead, timeout=10)
        try:
            async with aiokafka.Consumer(
                client, guard, handler, dead_letters=sink, **settings
            ) as wrapped:
                await asyncio.to_thread(wait_until, until, lambda: not wrapped.failed)
        finally:
            await client.stop()
            await letters.stop()

    def close(self) -> None:
        """Delete the topics and close the clients."""
        self.thread.call(self._producer.stop())
        self.thread.close()
        super().close()
