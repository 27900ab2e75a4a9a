"""Stages: one broker with a source and a dead-letter queue, which the contract and the demo drive by plain calls.

The real brokers' stages are ``RabbitMQStage(url)`` in ``mqauth.testing.stage_rabbitmq``, ``KafkaStage(url)`` in
``stage_kafka``, and one in ``stage_<client>`` for each further client; ``mqauth demo --broker`` uses them too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Protocol

from mqauth.brokers import memory
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.signer import Signer
from mqauth.wire import destination
from mqauth.wire.message import Message

PATIENCE: Final = 60.0
"""Seconds a condition may take to come to hold."""
_TICK: Final = 0.02


class Stage(Protocol):
    """The calls that the broker contract and the demo make; a stage is made fresh and has names of its own."""

    name: str
    """``memory``, ``rabbitmq`` or ``kafka``."""
    destination: str
    """Canonical destination of the source queue or topic; contains the word ``orders``."""

    def produce(self, signer: Signer, message: Message) -> None:
        """Publish through the producer wrapper, to the message's own destination, confirmed."""
        ...

    def inject(self, message: Message) -> None:
        """Publish a message to the source unchanged, past mqauth, as an attacker does; confirmed."""
        ...

    def consume(
        self, guard: Pipeline, handler: Handler, *, until: Callable[[], bool]
    ) -> None:
        """Run the consumer wrapper until the condition holds, then stop it in order.

        Raises:
            TimeoutError: the condition did not hold within a bounded time.
        """
        ...

    def letters(self) -> list[Message]:
        """Return every dead letter so far, without removing it."""
        ...

    def remove_dead_letters(self) -> None:
        """Delete the dead-letter queue or topic."""
        ...

    def restore_dead_letters(self) -> None:
        """Create the dead-letter queue or topic again."""
        ...

    def close(self) -> None:
        """Delete everything that the stage made, and close its connections."""
        ...


class MemoryStage:
    """The stage of the broker in memory.

    Args:
        place: the source's destination.
    """

    name = "memory"

    def __init__(self, place: str = "kafka:orders") -> None:
        self.destination = place
        on_kafka = destination.is_kafka(place)
        self.dead = "kafka:orders.dead" if on_kafka else "rabbitmq:/orders.dead"
        self.broker = memory.MemoryBroker()
        for queue in (place, self.dead):
            self.broker.declare(queue)

    def produce(self, signer: Signer, message: Message) -> None:
        """Publish through the producer wrapper."""
        memory.Producer(self.broker, signer).publish(message)

    def inject(self, message: Message) -> None:
        """Publish a message unchanged, past mqauth."""
        self.broker.publish(message)

    def consume(
        self, guard: Pipeline, handler: Handler, *, until: Callable[[], bool]
    ) -> None:
        """Drain the queue until the condition holds."""
        letters = memory.DeadLetters(self.broker, self.dead)
        consumer = memory.Consumer(
            self.broker, self.destination, guard, handler, dead_letters=letters
        )
        for _ in range(100):
            consumer.drain()
            if until():
                return
        raise TimeoutError("the condition did not come to hold")

    def letters(self) -> list[Message]:
        """Return every dead letter."""
        return list(self.broker.waiting(self.dead))

    def remove_dead_letters(self) -> None:
        """Delete the dead-letter queue."""
        self.broker.delete(self.dead)

    def restore_dead_letters(self) -> None:
        """Declare the dead-letter queue again."""
        self.broker.declare(self.dead)

    def close(self) -> None:
        """Replace the broker with an empty one."""
        self.broker = memory.MemoryBroker()


def wait_until(
    condition: Callable[[], bool], goes_on: Callable[[], bool] = lambda: True
) -> None:
    """Wait until a condition holds, or until nothing is going on any more.

    Raises:
        TimeoutError: the condition did not hold within a minute.
    """
    waiting = threading.Event()
    for _ in range(int(PATIENCE / _TICK)):
        if condition() or not goes_on():
            return
        waiting.wait(_TICK)
    raise TimeoutError("the condition did not come to hold")
