"""The stage of a real RabbitMQ for pika's leaf; queues and letters are looked after by aio-pika's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pika import BlockingConnection, URLParameters
from pika.exceptions import AMQPError

from mqauth.brokers import pika
from mqauth.brokers.pika.translate import to_properties
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.signer import Signer
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from mqauth.wire import destination
from mqauth.wire.message import Message


def connect(url: str) -> BlockingConnection:
    """Return a new connection."""
    return BlockingConnection(URLParameters(url))


def close(connection: BlockingConnection) -> None:
    """Close a connection, unless it was lost."""
    with suppress(AMQPError, OSError):
        connection.close()


class PikaStage(RabbitMQStage):
    """A stage on a real RabbitMQ, by pika.

    Args:
        url: ``pika://...`` or ``amqp://...``.
        prefetch: of the consumer; 1 keeps the order.
    """

    name = "pika"

    def __init__(self, url: str, *, prefetch: int = 1) -> None:
        self._url = url.replace("pika://", "amqp://", 1)
        self._sending = connect(self._url)
        self._producer: tuple[Any, pika.Producer] | None = None
        super().__init__(self._url, prefetch=prefetch)

    def close(self) -> None:
        """Delete everything that the stage declared, and close its connections."""
        self._end_producer()
        close(self._sending)
        super().close()

    def produce(self, signer: Signer, message: Message) -> None:
        """Publish through the producer wrapper, to the message's own destination."""
        _, exchange, routing_key = destination.parse(message.destination)
        if self._producer is None or self._producer[0] != (signer, exchange):
            self._end_producer()
            self._producer = (
                (signer, exchange),
                pika.Producer(self._sending, exchange, signer),
            )
        self._producer[1].publish(message.body, routing_key, to_properties(message))

    def consume(
        self, guard: Pipeline, handler: Handler, *, until: Callable[[], bool]
    ) -> None:
        """Run the consumer until the condition holds, then stop it in order."""
        with connect(self._url) as consuming, connect(self._url) as publishing:
            letters = pika.DeadLetters(publishing, self.dead, timeout=5)
            consumer = pika.Consumer(
                consuming,
                self.queue,
                guard,
                handler,
                dead_letters=letters,
                prefetch=self._prefetch,
            )
            with consumer:
                wait_until(until, lambda: not consumer.failed)

    def _end_producer(self) -> None:
        """End the producer, whose connection is taken by the next one."""
        if self._producer is not None:
            self._producer[1].close()
