"""The stage of a real RabbitMQ for the delivery contract: several consumers of one queue, and faults.

Each consumer has a thread with an event loop of its own, and its connections go through relays. To freeze a
process, its event loop is blocked: what the broker sends meanwhile waits in the kernel's buffers.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from mqauth import Message, Pipeline
from mqauth.brokers import rabbitmq
from mqauth.brokers.amqp_messages import UNPARSEABLE
from mqauth.testing.clock import RunningClock
from mqauth.testing.stage import PATIENCE
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from tests.kit.delivery_stage import AckObserver, Steps
from tests.kit.stage_rabbitmq_member import Service
from tests.kit.stage_rabbitmq_wire import Relay, Traffic

R = TypeVar("R")
RECONNECT: Final = "reconnect_interval=0.3"
_LOOK: Final = 0.02
_CALM: Final = 0.2
"""Seconds between two counts of a queue, which must agree."""


class RabbitMQMember:
    """A consumer in the background.

    Args:
        stage: the stage that started it.
        service: what it runs.
    """

    def __init__(self, stage: RabbitMQQueueStage, service: Service) -> None:
        self.service = service
        self.consuming = stage.relay()
        self.publishing = stage.relay(publishes=True)
        self._failure: BaseException | None = None
        self._may_run = threading.Event()
        self._may_run.set()
        self._loop = asyncio.new_event_loop()
        urls = [
            stage.call_wire(relay.open()) for relay in (self.consuming, self.publishing)
        ]
        self._thread = threading.Thread(target=self._run, args=urls, daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self._failure is not None or self.service.failed

    @property
    def relays(self) -> tuple[Relay, Relay]:
        """The relays of its connections."""
        return self.consuming, self.publishing

    def health(self) -> rabbitmq.Health:
        """Return its state."""
        return self.service.health()

    def close(self) -> None:
        """Stop it in order.

        Raises:
            TimeoutError: it did not end.
        """
        self.end()
        if self._thread.is_alive():
            raise TimeoutError("the stop did not end")
        if failure := self._failure or self.service.failure:
            raise failure

    def end(self) -> None:
        """Unblock it, ask it to stop, and wait until it ends."""
        self._may_run.set()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self.service.ask)
            self._thread.join(PATIENCE)

    def stand_still(self) -> None:
        """Block its event loop."""
        self._may_run.clear()
        self._loop.call_soon_threadsafe(self._may_run.wait)

    def go_on(self) -> None:
        """Unblock its event loop."""
        self._may_run.set()

    def _run(self, *urls: str) -> None:
        try:
            self._loop.run_until_complete(
                self.service.live(*(f"{url}?{RECONNECT}" for url in urls))
            )
        except BaseException as error:
            self._failure = error
        finally:
            self._loop.close()


class RabbitMQQueueStage(RabbitMQStage):
    """A source, its dead letters and any number of consumers, on a broker that is running.

    Args:
        url: ``amqp://user:password@host:port/vhost``.
    """

    patience = 30.0

    def __init__(self, url: str) -> None:
        self.clock = RunningClock()
        self._url = url
        self._members: list[RabbitMQMember] = []
        self._traffic = Traffic()
        self._reading = threading.Lock()
        self._wires = asyncio.new_event_loop()
        self._wires_thread = threading.Thread(target=self._wires.run_forever, daemon=True)
        self._wires_thread.start()
        super().__init__(url)

    def relay(self, *, publishes: bool = False) -> Relay:
        """Return a relay to the broker."""
        return Relay(self._url, self._traffic, publishes=publishes)

    def call_wire(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine in the event loop of the relays, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._wires).result(PATIENCE)

    def second(
        self, guard: Pipeline, handler: Steps, *, prefetch: int = 10, grace: float = 10
    ) -> RabbitMQMember:
        """Start one more consumer."""
        service = Service(
            self.queue, self.dead, guard, handler, prefetch=prefetch, grace=grace
        )
        member = RabbitMQMember(self, service)
        self._members.append(member)
        self.wait(lambda: member.consuming.consumed or member.failed, self.patience)
        return member

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until a condition holds."""
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() >= until:
                return False
            time.sleep(_LOOK)
        return True

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self.clock.advance(seconds)

    def kill(self, member: RabbitMQMember) -> None:
        """Block a consumer for good, and close its connections."""
        member.stand_still()
        for relay in member.relays:
            self.call_wire(relay.close())

    def cut(self, member: RabbitMQMember) -> None:
        """Freeze a consumer."""
        member.stand_still()

    def give_up(self, member: RabbitMQMember) -> None:
        """End a consumer's connections at the broker."""
        for relay in member.relays:
            self.call_wire(relay.end_at_broker())

    def heal(self, member: RabbitMQMember) -> None:
        """Let a frozen consumer continue."""
        member.go_on()

    def close_channel(self, member: RabbitMQMember) -> None:
        """Have the broker close a consumer's channel."""
        self.call_wire(member.consuming.close_channels())

    def cancel(self, member: RabbitMQMember) -> None:
        """Have the broker cancel a consumer."""
        self.call_wire(member.consuming.cancel())

    def remove_source(self) -> None:
        """Delete the source queue."""
        self._call(self._channel.queue_delete(self.queue))

    def restore_source(self) -> None:
        """Declare and bind the source queue again."""
        self._call(self._declare())

    async def _declare(self) -> None:
        source = await rabbitmq.declare_source(self._channel, self.queue)
        await source.bind(self._exchange, "orders.created")

    def refuse_letters(self, refusing: bool) -> None:
        """Lose everything that is published, or stop that and break the connections that lost something."""
        self._traffic.swallows = refusing
        if not refusing:
            for member in self._members:
                self.call_wire(member.publishing.lose_swallowed())

    def attempts(self) -> int:
        """Return how many letters were sent."""
        return self._traffic.published

    def letters(self) -> list[Message]:
        """Return every dead letter so far."""
        with self._reading:
            return super().letters()

    def deliveries(self, body: bytes) -> int:
        """Return how often a message was delivered."""
        return self._traffic.deliveries[body]

    def watch(self, observer: AckObserver) -> None:
        """Call an observer with every ack."""
        self._traffic.observers.append(observer)

    def left(self) -> int:
        """Return how many messages wait, once their number does not change any more."""
        found, before = self._call(self._count(self.queue)), -1
        while found != before:
            time.sleep(_CALM)
            found, before = self._call(self._count(self.queue)), found
        return found

    def put_away(self) -> int:
        """Return how many messages the broker has put away."""
        return self._call(self._count(self.queue + UNPARSEABLE))

    async def _count(self, name: str) -> int:
        channel = await self._publishing.channel()
        found: Any = await channel.declare_queue(name, passive=True)
        await channel.close()
        return int(found.declaration_result.message_count)

    def close(self) -> None:
        """End every consumer, and delete everything that was declared."""
        for member in self._members:
            member.end()
            for relay in member.relays:
                self.call_wire(relay.close())
        super().close()
        self._wires.call_soon_threadsafe(self._wires.stop)
        self._wires_thread.join(PATIENCE)
        self._wires.close()
