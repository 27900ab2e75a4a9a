"""The stage of the queue delivery contract on the simulated RabbitMQ, in virtual time.

A consumer is a process of the simulation. A test runs outside of all of them, and lets time go on as it waits.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import aio_pika
from pamqp import commands
from pika.exceptions import AMQPError

from mqauth.brokers import pika, rabbitmq
from mqauth.brokers.pika import link as pika_link
from mqauth.judging.pipeline import Pipeline
from mqauth.wire.message import Message
from tests.kit.delivery_stage import AckObserver, Steps
from tests.kit.stage_rabbitmq_member import LETTER_TIMEOUT, Service
from tests.simulation.amqp_broker import (
    PRECONDITION_FAILED,
    Channel,
    ChannelError,
    Queue,
    Stored,
    Subscription,
)
from tests.simulation.pika_service import AGAIN_AFTER, Connection, connect
from tests.simulation.process import Process
from tests.simulation.services import CONNECT_TIMEOUT, DESTINATION, EXCHANGE, ROUTING_KEY
from tests.simulation.world import DEAD, SOURCE, World

HEARTBEAT: Final = 4
URL: Final = (
    f"amqp://guest:guest@rabbitmq:5672/?heartbeat={HEARTBEAT}&reconnect_interval=1"
)
MOMENT: Final = 0.02
"""Virtual seconds between two looks at a condition."""


class WatchedWorld(World):
    """A world that counts deliveries and letters, and tells of acks."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.deliveries: Counter[bytes] = Counter()
        self.letters_sent = 0
        self.observers: list[AckObserver] = []
        self._publish = self.broker.publish
        setattr(self.broker, "publish", self._published)  # noqa: B010 - a method, replaced

    def delivered(
        self, channel: Channel, consumer: Subscription, message: Stored, tag: int
    ) -> None:
        """Count a delivery."""
        self.deliveries[message.body] += 1
        super().delivered(channel, consumer, message, tag)

    def acked(self, channel: Channel, message: Stored) -> None:
        """Tell the observers of an ack."""
        for observer in self.observers:
            observer(message.body)
        super().acked(channel, message)

    def _published(
        self, channel: Channel, frame: commands.Basic.Publish, *rest: Any
    ) -> None:
        """Count a letter."""
        self.letters_sent += frame.routing_key == DEAD
        self._publish(channel, frame, *rest)


class PikaService(Service):
    """The same on pika, connected anew whenever its connection is lost."""

    async def live(self, _url: str, _letters_url: str) -> None:
        """Consume until asked to stop; an error that ended it is in ``failure``."""
        while not self._asked.is_set():
            connections: list[Connection] = []
            try:
                for _ in range(2):
                    connections.append(await connect(HEARTBEAT, CONNECT_TIMEOUT))
                await self._consume(*connections)
            except (AMQPError, OSError):
                await asyncio.sleep(AGAIN_AFTER)
            except BaseException as error:
                self.failure = error
                await self._asked.wait()
            finally:
                for connection in connections:
                    await connection.left()

    async def _consume(self, connection: Any, letters_connection: Any) -> None:
        """Consume on two connections until asked to stop, or until one of them is lost."""
        letters = pika.DeadLetters(letters_connection, self._dead, timeout=LETTER_TIMEOUT)
        consumer: Any = pika.Consumer(
            connection,
            self._source,
            self._guard,
            self._handler,
            dead_letters=letters,
            **self._settings,
        )
        self.consumer = consumer
        running = asyncio.create_task(pika_link.driving(consumer._run(signals=False)))
        asked = asyncio.create_task(self._asked.wait())
        await asyncio.wait((running, asked), return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        consumer.stop()
        consumer.stop()
        await running


class SimulatedMember:
    """A consumer in a process of its own.

    Args:
        stage: where it runs.
        name: of its process.
        service: what it runs.
    """

    def __init__(self, stage: SimulatedQueueStage, name: str, service: Service) -> None:
        self._stage = stage
        self.service = service
        self.process = Process(stage.world, name, lambda _: service.live(URL, URL))

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self.process.failure is not None or self.service.failed

    def health(self) -> rabbitmq.Health:
        """Return its health."""
        return self.service.health()

    def close(self) -> None:
        """Stop it in order."""
        self.process.loop.call_soon(self.service.ask)
        if not self._stage.wait(lambda: not self.process.alive, self._stage.patience):
            raise TimeoutError("the stop did not end")
        if failure := self.process.failure or self.service.failure:
            raise failure


class SimulatedQueueStage:
    """A source with its dead letters on a simulated broker.

    Args:
        seed: decides latencies, who runs next, and the jitter of waits.
        service: the client's.
        settings: of every ``Consumer``.
    """

    destination = DESTINATION
    patience = 120.0

    def __init__(
        self, seed: int = 0, service: type[Service] = Service, **settings: Any
    ) -> None:
        random.seed(seed)
        self._service = service
        self._settings = settings
        self.world = WatchedWorld(seed)
        self.clock = self.world.clock
        self._members: list[SimulatedMember] = []
        operator = Process(self.world, "operator#1", self._declare)
        self.wait(lambda: not operator.alive, self.patience)

    async def _declare(self, _process: Process) -> None:
        """Declare what a service needs."""
        async with await aio_pika.connect_robust(URL) as connection:
            channel = await connection.channel()
            exchange = await channel.declare_exchange(EXCHANGE, "topic", durable=True)
            source = await rabbitmq.declare_source(channel, SOURCE)
            await source.bind(exchange, ROUTING_KEY)
            await rabbitmq.declare_dead_letters(channel, DEAD)

    def inject(self, message: Message) -> None:
        """Put a message into the source."""
        self.world.broker.put(
            EXCHANGE, ROUTING_KEY, _properties(message), message.body or b""
        )

    def second(
        self, guard: Pipeline, handler: Steps, *, prefetch: int = 10, grace: float = 10
    ) -> SimulatedMember:
        """Start a process that consumes."""
        name = f"consumer{len(self._members) + 1}#1"
        service = self._service(
            SOURCE, DEAD, guard, handler, prefetch=prefetch, grace=grace, **self._settings
        )
        member = SimulatedMember(self, name, service)
        self._members.append(member)
        self.wait(lambda: name in self.world.consumed or member.failed, self.patience)
        return member

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Advance time until a condition holds."""
        until = self.world.agenda.now + seconds
        while not condition():
            if self.world.agenda.now >= until:
                return False
            self.advance(MOMENT)
        return True

    def advance(self, seconds: float) -> None:
        """Advance time."""
        over: list[bool] = []
        self.world.agenda.after(seconds, lambda: over.append(True))
        while not over:
            self.world.agenda.step()

    def kill(self, member: Any) -> None:
        """Kill a process: its sockets close, and nothing of it runs any more."""
        for socket in tuple(member.process.loop._selector.sockets):
            socket.die()
        self.cut(member)

    def cut(self, member: Any) -> None:
        """Pause a process."""
        member.process.pause(float("inf"))

    def give_up(self, member: Any) -> None:
        """End its connections."""
        for connection in self.world.broker.connections_of(member.process.name):
            connection.end()

    def heal(self, member: Any) -> None:
        """Let it go on running."""
        member.process.go_on()

    def close_channel(self, member: Any) -> None:
        """Close the channel that consumes."""
        for channel in self._consuming(member):
            channel.fail(
                ChannelError(
                    PRECONDITION_FAILED, "PRECONDITION_FAILED - closed by an operator"
                )
            )

    def cancel(self, member: Any) -> None:
        """Cancel its consumers."""
        for channel in self._consuming(member):
            for consumer in tuple(channel.consumers.values()):
                consumer.queue.unsubscribe(consumer)
                channel.cancelled(consumer)

    def _consuming(self, member: Any) -> list[Channel]:
        """Return the channels on which a process consumes."""
        connections = self.world.broker.connections_of(member.process.name)
        return [
            channel
            for found in connections
            for channel in found.channels.values()
            if channel.consumers
        ]

    def remove_source(self) -> None:
        """Hide the source."""
        self._queue(SOURCE).hide()

    def restore_source(self) -> None:
        """Show it."""
        self._queue(SOURCE).show()

    def refuse_letters(self, refusing: bool) -> None:
        """Lose published letters, and end their publishers' connections afterwards."""
        self.world.broker.publishes_lost = refusing
        if not refusing:
            self.world.broker.end_unconfirmed()

    def attempts(self) -> int:
        """Return how many letters came to the broker."""
        return self.world.letters_sent

    def letters(self) -> list[Message]:
        """Return the dead letters."""
        return [_message(stored) for stored in self._queue(DEAD).ready]

    def deliveries(self, body: bytes) -> int:
        """Return how often a message was delivered."""
        return self.world.deliveries[body]

    def watch(self, observer: AckObserver) -> None:
        """Register an observer of acks."""
        self.world.observers.append(observer)

    def left(self) -> int:
        """Return how many messages wait."""
        return len(self._queue(SOURCE).ready)

    def put_away(self) -> int:
        """Return how many were put away."""
        return len(self._queue(SOURCE + ".unparseable").ready)

    def _queue(self, name: str) -> Queue:
        """Return a queue."""
        (found,) = self.world.broker.found_queues([name])
        return found

    def close(self) -> None:
        """Cancel all tasks, those of killed processes included, and wait for their end."""
        processes = [process for process in self.world.everyone.values() if process.alive]
        for process in processes:
            process.go_on()
            process.loop.call_soon(process.task.cancel)
        self.wait(lambda: not any(process.alive for process in processes), self.patience)
        for process in self.world.everyone.values():
            process.loop.dismantle()


@contextmanager
def simulated_stage(seed: int = 0, **settings: Any) -> Iterator[SimulatedQueueStage]:
    """Yield a fresh stage."""
    with _apart():
        stage = SimulatedQueueStage(seed, **settings)
        try:
            yield stage
        finally:
            stage.close()


@contextmanager
def _apart() -> Iterator[None]:
    """Restore the state of random numbers, and silence warnings about unfinished coroutines."""
    chance, hook = random.getstate(), sys.unraisablehook
    sys.unraisablehook = lambda _: None
    # so that the collector does not look at what is older
    gc.freeze()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
            gc.collect()
    finally:
        gc.unfreeze()
        random.setstate(chance)
        sys.unraisablehook = hook


def _properties(message: Message) -> commands.Basic.Properties:
    """Return a message's properties as AMQP has them."""
    values: dict[str, Any] = {
        name.replace("-", "_"): value for name, value in message.properties.items()
    }
    return commands.Basic.Properties(
        headers=dict(message.headers), delivery_mode=2, **values
    )


def _message(stored: Stored) -> Message:
    """Return a dead letter as far as a contract looks at it."""
    headers = tuple((stored.properties.headers or {}).items())
    return Message(destination=DESTINATION, body=stored.body, headers=headers)
