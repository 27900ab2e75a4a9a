"""The stage of several consumers on a real RabbitMQ for pika's leaf: the rest is that of the aio-pika stage.

pika never reconnects. So each consumer is run by a loop that connects anew where a connection was lost.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack, suppress
from typing import Any

from pika.exceptions import AMQPError

from mqauth.brokers import pika as leaf
from mqauth.judging.pipeline import Pipeline
from mqauth.testing.stage import PATIENCE
from mqauth.testing.stage_pika import close, connect
from tests.kit.delivery_stage import Steps
from tests.kit.stage_rabbitmq_member import HOLD, IMPATIENCE, LETTER_TIMEOUT, as_coroutine
from tests.kit.stage_rabbitmq_queue import RabbitMQQueueStage
from tests.kit.stage_rabbitmq_wire import Relay

AGAIN = 0.3
"""Seconds after which a lost connection is made anew."""


class PikaMember:
    """A consumer in the background, which connects anew where a connection was lost.

    Args:
        stage: the stage that started it.
        guard: the pipeline.
        handler: the handler.
        settings: arguments of ``Consumer``.
    """

    def __init__(
        self, stage: PikaQueueStage, guard: Pipeline, handler: Steps, **settings: Any
    ) -> None:
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
            connections[0],
            self._queue,
            self._guard,
            self._handler,
            dead_letters=letters,
            **self._settings,
        )
        if not self._asked.is_set():
            self._consumer.run()


class PikaQueueStage(RabbitMQQueueStage):
    """A stage for the delivery contract on a real RabbitMQ, by pika."""

    name = "pika"

    def second(
        self, guard: Pipeline, handler: Steps, *, prefetch: int = 10, grace: float = 10
    ) -> Any:
        """Start one more consumer."""
        member = PikaMember(self, guard, handler, prefetch=prefetch, grace=grace)
        self._members.append(member)  # type: ignore[arg-type]
        self.wait(lambda: member.consuming.consumed or member.failed, self.patience)
        return member
