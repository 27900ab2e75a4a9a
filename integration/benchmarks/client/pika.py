"""The contenders on RabbitMQ by pika: ``basic_publish`` with confirms, and ``basic_consume`` with acks.

``bare`` is pika as its users write it: a blocking publish, and an ``ack`` for each message. Exchanges and queues,
and the messages that wait in them, are made by aio-pika.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from pika import BasicProperties, BlockingConnection, URLParameters

from integration.benchmarks.client import rabbitmq
from integration.benchmarks.client.blocking import BlockingContender
from integration.benchmarks.client.contenders import HEADER, benchmark_of
from integration.benchmarks.client.rabbitmq import AT_ONCE, PREFETCH
from integration.benchmarks.client.workload import (
    BATCH,
    PATIENCE,
    Refusals,
    RoundEnd,
    Tally,
    guard,
)
from mqauth.brokers import pika
from mqauth.judging.verified import Verified
from mqauth.testing.forge import Forge

LOOK: Final = 0.2
"""Seconds for which pika waits for deliveries."""
Sender = tuple[Callable[[int], object], Callable[[], object]]


class Connections(rabbitmq.Connections):
    """A connection of pika's for each contender, and aio-pika's for what waits in the queues.

    Args:
        url: ``amqp://...``.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._parameters = URLParameters(url)
        # Nobody answers heartbeats while the other contenders have their rounds.
        self._parameters.heartbeat = 0

    def connect(self) -> BlockingConnection:
        """Return a new connection."""
        return BlockingConnection(self._parameters)


class Queued(BlockingContender, rabbitmq.QueueContender):
    """A contender with an exchange and a queue of its own, and a connection each to publish and to consume."""

    connections: Connections

    def __init__(self, connections: Connections, *rest: Any) -> None:
        super().__init__(connections, *rest)
        self.topic = self.scratch = self.route
        self._publishing = connections.connect()
        self._consuming = connections.connect()

    def properties(self) -> BasicProperties:
        """Return the properties of a message as the application makes them."""
        return BasicProperties(
            headers=dict(self.connections.workload.header_texts()), delivery_mode=2
        )

    def at_start(self) -> BlockingConnection:
        """Return the connection to consume by."""
        return self._consuming

    def at_end(self) -> BlockingConnection:
        """Return the connection to consume by, and purge the queue."""
        self.fill(0)
        return self._consuming

    def rest(self, client: BlockingConnection) -> None:
        """Leave it until the next round."""

    def close(self) -> None:
        """Close the connections, and delete the queue."""
        self._publishing.close()
        self._consuming.close()
        super().close()


class Wrapped(Queued, rabbitmq.Wrapped):
    """pika as its users write it, with what a wrapper adds to each message."""

    def sender(self, topic: str) -> Sender:
        """Return ``basic_publish`` of a sealed message, which waits for its confirm."""
        channel, body_of = self._publishing.channel(), self.connections.workload.body
        channel.confirm_delivery()

        def send(number: int) -> None:
            body, token = self._wrapper.seal(self.place, body_of(number))
            properties = self.properties()
            if token is not None:
                properties.headers[HEADER] = token
            channel.basic_publish(topic, topic, body, properties, mandatory=True)

        return send, channel.close

    def reading(self, client: BlockingConnection, tally: Tally, ended: RoundEnd) -> None:
        """Open each message, handle it, and ack it."""
        open_, headed = self._wrapper.opener(self.place), self._wrapper.headed
        channel, deadline = client.channel(), time.monotonic() + PATIENCE

        def on_message(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
            tally(open_(body, properties.headers[HEADER] if headed else None))
            channel.basic_ack(method.delivery_tag)

        channel.basic_qos(prefetch_count=PREFETCH)
        channel.basic_consume(self.route, on_message)
        try:
            while not ended.is_set() and time.monotonic() < deadline:
                client.process_data_events(LOOK)
        except Exception as error:
            ended.fail(f"{type(error).__name__}: {error}")
        channel.close()


class Signed(Queued, rabbitmq.Signed):
    """mqauth with a token for each message."""

    batch = 1

    def __init__(self, connections: Connections, forge: Forge) -> None:
        super().__init__(connections, forge)
        self._producer = pika.Producer(
            self._publishing, self.route, forge.signer(), batch=self.batch
        )

    def sender(self, topic: str) -> Sender:
        """Return ``submit``, of which so many are under way at once."""
        submit, body_of = self._producer.submit, self.connections.workload.body
        sent: deque[Future[None]] = deque()

        def send(number: int) -> None:
            if len(sent) == AT_ONCE:
                sent.popleft().result(PATIENCE)
            sent.append(submit(body_of(number), topic, self.properties()))

        def flush() -> None:
            for each in sent:
                each.result(PATIENCE)

        return send, flush

    def reading(self, client: BlockingConnection, tally: Tally, ended: RoundEnd) -> None:
        """Consume through mqauth's consumer, with a plain handler on threads."""
        refusals = Refusals(
            lambda reason: ended.fail(f"an honest message was refused as {reason}")
        )
        one_at_a_time = threading.Lock()

        def handler(verified: Verified) -> None:
            with one_at_a_time:
                tally(verified.body)

        pipeline = guard(self._forge, self.place)
        with pika.Consumer(
            client,
            self.route,
            pipeline,
            handler,
            dead_letters=refusals,
            prefetch=PREFETCH,
        ):
            ended.wait()

    def close(self) -> None:
        """Close the producer and the connections, and delete the queue."""
        self._producer.close()
        super().close()


class Batched(Signed, rabbitmq.Batched):
    """mqauth with one token for up to 64 messages."""

    batch = BATCH


contenders, measure = benchmark_of(Wrapped, Signed, Batched)
