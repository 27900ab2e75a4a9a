"""The stage of a real Kafka for confluent-kafka's leaf; topics and letters are looked after by kafka-python's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, Producer

from mqauth.brokers import confluent
from mqauth.brokers.event_loop import on_thread
from mqauth.brokers.log.records import dead_letter_headers
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.signer import Signer
from mqauth.testing.stage import PATIENCE, wait_until
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.wire import destination
from mqauth.wire.message import Message

SETTINGS: Final = {"log_level": 2, "topic.metadata.refresh.interval.ms": 1000}
"""librdkafka writes what it logs to standard error, where the tests break connections on purpose.
By itself it looks for a topic that was made a moment ago only every five minutes."""


class ConfluentClients:
    """Makes the clients of a stage.

    Args:
        servers: the broker's.
        group: the consumers'.
    """

    def __init__(self, servers: list[str], group: str) -> None:
        self._settings: dict[str, Any] = {
            "bootstrap.servers": ",".join(servers),
            **SETTINGS,
        }
        self._group = group

    def consumer_settings(self, **settings: Any) -> dict[str, Any]:
        """Return the settings of a consumer of the group; names with ``_`` for dots."""
        wanted = {
            "group.id": self._group,
            "auto.offset.reset": "earliest",
            "enable.auto.offset.store": False,
        }
        return self._settings | wanted | _dotted(settings)

    def producer_settings(self, **settings: Any) -> dict[str, Any]:
        """Return the settings of a producer."""
        return (
            self._settings
            | {"allow.auto.create.topics": False, "linger.ms": 0}
            | _dotted(settings)
        )

    def letters(self, topic: str) -> confluent.DeadLetters:
        """Return a sink of dead letters with a client of its own."""
        settings = self.producer_settings()
        return confluent.DeadLetters(
            Producer(settings), topic, timeout=10, config=settings
        )


def _dotted(settings: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "."): value for name, value in settings.items()}


class ConfluentStage(KafkaStage):
    """A source topic and a dead-letter topic with unique names.

    Args:
        url: ``confluent://host:port``, ``confluent+aio://`` or ``kafka://``; more servers after commas.
        settings: as ``KafkaStage`` has them.
    """

    name = "confluent"

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__("kafka://" + url.partition("://")[2], **settings)
        self.clients = ConfluentClients(self.servers, self.group)
        self._config = self.clients.producer_settings(enable_idempotence=True)
        self._producer = Producer(self._config)

    def produce(self, signer: Signer, message: Message) -> None:
        """Send through the producer wrapper and wait for the broker."""
        _, topic = destination.parse(message.destination)
        headers = dead_letter_headers(message.headers)
        told: list[KafkaError | None] = []
        producer = confluent.Producer(self._producer, signer, config=self._config)
        producer.produce(
            topic,
            message.body,
            message.key,
            on_delivery=lambda error, _: told.append(error),
            headers=headers,
        )
        if producer.flush(PATIENCE) or told != [None]:
            raise TimeoutError(f"a message was not delivered: {told}")

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
        config = self.clients.consumer_settings()
        client = Consumer(config)
        letters = self.clients.letters(self.dead)
        wrapped = confluent.Consumer(
            client,
            guard,
            handler,
            config=config,
            topics=[self.topic],
            dead_letters=letters,
            **settings,
        )
        try:
            with wrapped:
                wait_until(until, lambda: not wrapped.failed)
        finally:
            client.close()
            letters.client.flush()


class AIOConfluentStage(ConfluentStage):
    """A source topic and a dead-letter topic, whose consumer is in an event loop."""

    name = "confluent+aio"

    def consume(
        self,
        guard: Pipeline,
        handler: Handler,
        *,
        until: Callable[[], bool],
        **settings: Any,
    ) -> None:
        """Run the consumer wrapper until the condition holds."""
        asyncio.run(self._consume(guard, on_thread(handler), until, settings))

    async def _consume(
        self,
        guard: Pipeline,
        handler: Handler,
        until: Callable[[], bool],
        settings: dict[str, Any],
    ) -> None:
        from confluent_kafka.aio import AIOConsumer

        letters = self.clients.letters(self.dead)
        config = self.clients.consumer_settings()
        async with AIOConsumer(config) as client:
            wrapped = confluent.AIOConsumer(
                client,
                guard,
                handler,
                config=config,
                topics=[self.topic],
                dead_letters=letters,
                **settings,
            )
            async with wrapped:
                await asyncio.to_thread(wait_until, until, lambda: not wrapped.failed)
        letters.client.close()
