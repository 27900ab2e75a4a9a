"""The stages of a real RabbitMQ with producers and consumers of pika's: the rest is that of the aio-pika stages.

pika never reconnects. So each consumer is run by a loop that connects anew where a connection was lost.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import pika
from pika.exceptions import AMQPError

from mqauth.brokers import pika as leaf
from mqauth.brokers.pika.translate import to_properties
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.signer import Signer
from mqauth.testing.delivery_stage import Steps
from mqauth.testing.stage_rabbitmq import PATIENCE, RabbitMQStage
from mqauth.testing.stage_rabbitmq_member import HOLD, IMPATIENCE, LETTER_TIMEOUT, as_coroutine
from mqauth.testing.stage_rabbitmq_queue import RabbitMQQueueStage
from mqauth.testing.stage_rabbitmq_wire import Relay
from mqauth.wire import destination
from mqauth.wire.message import Message

AGAIN = 0.3
"""Seconds after which a lost connection is made anew."""


def connect(url: str) -> pika.BlockingConnection:
    """Return a new connection."""
    return pika.BlockingConnection(pika.URLParameters(url))


def close(connection: pika.BlockingConnection) -> None:
    """Close a connection, unless it was lost."""
    with suppress(AMQPError, OSError):
        connection.close()


class PikaStage(RabbitMQStage):
    """A stage on a real RabbitMQ, by pika."""

    name = "pika"

    def __init__(self, url: str, *, prefetch: int = 1) -> None:
        self._url = url
        self._sending = connect(url)
        self._producer: tuple[Any, leaf.Producer] | None = None
        super().__init__(url, prefetch=prefetch)

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
            self._producer = (signer, exchange), leaf.Producer(self._sending, exchange, signer)
        self._producer[1].publish(message.body, routing_key, to_properties(message))

    def _end_producer(self) -> None:
        """End the producer, whose connection is taken by the next one."""
        if self._producer is not None:
            self._producer[1].close()

    def consume(self, guard: Pipeline, handler: Handler, *, until: Callable[[], bool]) -> None:
        """Run the consumer until the condition holds, then stop it in order."""
        with connect(self._url) as consuming, connect(self._url) as publishing:
            letters = leaf.DeadLetters(publishing, self.dead, timeout=5)
            consumer = leaf.Consumer(
                consuming, self.queue, guard, handler, dead_letters=letters, prefetch=self._prefetch
            )
            deadline = time.monotonic() + PATIENCE
            with consumer:
                while not until() and not consumer.failed:
                    if time.monotonic() > deadline:
                        raise TimeoutError("the condition did not come to hold")
                    time.sleep(0.02)


class PikaMember:
    """A consumer in the background, which connects anew where a connection was lost.

    Args:
        stage: the stage that started it.
        guard: the pipeline.
        handler: the handler.
        settings: arguments of ``Consumer``.
    """

    def __init__(self, stage: PikaQueueStage, guard: Pipeline, handler: Steps, **settings: Any) -> None:
        self.consuming = stage.relay()
        self.publishing = stage.relay(publishes=True)
        self._queue, self._dead = stage.queue, stage.dead
        self._guard = guard
        self._handler = as_coroutine(handler)
        self._settings = {"hold": HOLD} | settings
        self._asked = threading.Event()
        self._may_run = threading.Event()
        self._may_run.set()
        self._consumer: leaf.Consumer | None = None
        self._failure: BaseException | None = None
        self._urls = [stage.call_wire(relay.open()) for relay in self.relays]
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self._failure is not None

    @property
    def relays(self) -> tuple[Relay, Relay]:
        """The relays of its connections."""
        return self.consuming, self.publishing

    def health(self) -> leaf.Health:
        """Return its state."""
        if self._consumer is None:
            raise RuntimeError("not connected yet")
        return self._consumer.health()

    def close(self) -> None:
        """Stop it in order.

        Raises:
            TimeoutError: it did not end.
        """
        self.end()
        if self._thread.is_alive():
            raise TimeoutError("the stop did not end")
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """Unblock it, ask it to stop, twice, and wait until it ends."""
        self._may_run.set()
        self._asked.set()
        for _ in range(2):
            if self._consumer is not None:
                self._consumer.stop()
            self._thread.join(IMPATIENCE)
        self._thread.join(PATIENCE)

    def stand_still(self) -> None:
        """Block its event loop."""
        self._may_run.clear()
        loop = self._loop()
        if loop is not None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._may_run.wait)

    def go_on(self) -> None:
        """Unblock its event loop."""
        self._may_run.set()

    def _loop(self) -> asyncio.AbstractEventLoop | None:
        return None if self._consumer is None else self._consumer._loop

    def _live(self) -> None:
        while not self._asked.is_set():
            with ExitStack() as undo:
                try:
                    self._consume(undo)
                except (AMQPError, OSError):
                    self._asked.wait(AGAIN)
                except BaseException as error:
                    self._failure = error
                    # Its connections stay open until the end.
                    self._asked.wait()

    def _consume(self, undo: ExitStack) -> None:
        connections = []
        for url in self._urls:
            connections.append(connect(url))
            undo.callback(close, connections[-1])
        letters = leaf.DeadLetters(connections[1], self._dead, timeout=LETTER_TIMEOUT)
        self._consumer = leaf.Consumer(
            connections[0], self._queue, self._guard, self._handler, dead_letters=letters, **self._settings
        )
        if not self._asked.is_set():
            self._consumer.run()


class PikaQueueStage(RabbitMQQueueStage):
    """A stage for the delivery contract on a real RabbitMQ, by pika."""

    name = "pika"

    def second(self, guard: Pipeline, handler: Steps, *, prefetch: int = 10, grace: float = 10) -> Any:
        """Start one more consumer."""
        member = PikaMember(self, guard, handler, prefetch=prefetch, grace=grace)
        self._members.append(member)  # type: ignore[arg-type]
        self.wait(lambda: member.consuming.consumed or member.failed, self.patience)
        return member
