"""A source and a dead-letter queue of a row's own, what was sent to them, and what became of it."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import aio_pika
from aio_pika.abc import AbstractConnection
from pamqp import commands

from integration.chaos.row import Count, Letter, Row
from integration.services import RabbitMQ
from mqauth import Pipeline
from mqauth.brokers import rabbitmq
from mqauth.brokers.event_loop import on_thread
from mqauth.brokers.rabbitmq.channel import LOST
from mqauth.signer import Signer
from mqauth.stores.redis import RedisReplayStore
from mqauth.testing.loop_thread import LoopThread

APPEND: dict[str, Any] = {
    "at": "append",
    "max_queue_age": 3600,
    "append_evidence": "interceptor",
}
"""Verifier settings for a broker that stamps what it receives."""
R = TypeVar("R")
AT_ONCE = 200
MOMENT = 0.02
PATIENCE = 60.0
AT_LAST = 400.0
"""Seconds for the longest call of a row."""


class Scene(Row):
    """What a row publishes and finds; its queues are on one broker and have names of their own.

    Args:
        url: of the broker.
        folder: for files.
        lifetime: seconds an honest token lives.
    """

    broker, client, append, place = "rabbitmq", "aio-pika", APPEND, "rabbitmq:/"
    impatient: ClassVar = {"hold": 1}
    many_at_once: ClassVar = {"prefetch": 200}

    def __init__(self, url: str, folder: Path, *, lifetime: int = 3600) -> None:
        name = f"mqauth-chaos-{uuid.uuid4().hex[:12]}"
        super().__init__(url, name, name + ".dead", folder, lifetime=lifetime)
        self._sealed: dict[bytes, aio_pika.Message] = {}
        self._stores: list[RedisReplayStore] = []
        self._connections: list[AbstractConnection] = []

    async def set(self) -> None:
        """Connect for publishing and declare the recommended queues."""
        self.publishing = await self.channel()
        await rabbitmq.declare_source(await self.channel(), self.name)
        await rabbitmq.declare_dead_letters(self.publishing, self.dead)

    async def strike(self) -> None:
        """Close everything and delete the queues."""
        for store in self._stores:
            await store.aclose()
        for connection in self._connections:
            await connection.close()
        async with await aio_pika.connect(self.url) as connection:
            channel = await connection.channel()
            for queue in (self.name, self.name + ".unparseable", self.dead):
                await channel.queue_delete(queue)

    async def channel(self, url: str | None = None) -> Any:
        """Return a channel on a robust connection of its own."""
        connection = await aio_pika.connect_robust(
            url or self.url, reconnect_interval=0.2
        )
        self._connections.append(connection)
        return await connection.channel()

    async def send(
        self, number: int, *, signer: Signer | None = None, failing: bool = False
    ) -> list[bytes]:
        """Publish so many honest messages, and return their bodies."""
        bodies = self.named(number, failing=failing)
        producer = rabbitmq.Producer(
            self.publishing.default_exchange, signer or self.forge.signer()
        )
        for body in bodies:
            self._sealed[body] = producer.seal(
                aio_pika.Message(body, delivery_mode=2), self.name
            )
        await self._publish(self._sealed[body] for body in bodies)
        return bodies

    async def send_stubbornly(self, number: int) -> int:
        """Publish honest messages, each again until it is confirmed; return how often that was necessary."""
        return sum(await asyncio.gather(*map(self._until_confirmed, self.named(number))))

    async def _until_confirmed(self, body: bytes) -> int:
        """Publish one message under a new token each time; return the attempts that failed."""
        producer = rabbitmq.Producer(
            self.publishing.default_exchange, self.forge.signer()
        )
        failed = 0
        while True:
            try:
                await producer.publish(
                    aio_pika.Message(body, delivery_mode=2), self.name, timeout=5
                )
            except (*LOST, TimeoutError, RuntimeError):
                failed += 1
                await asyncio.sleep(MOMENT)
            else:
                return failed

    async def forge_some(self, number: int, *, signer: Signer | None = None) -> None:
        """Publish so many forged messages: with a token of a signer nobody should believe, or with none."""
        messages = [
            aio_pika.Message(body, delivery_mode=2) for body in self.named_forged(number)
        ]
        if signer is not None:
            producer = rabbitmq.Producer(self.publishing.default_exchange, signer)
            messages = [producer.seal(message, self.name) for message in messages]
        await self._publish(messages)

    async def copy(self, bodies: Iterable[bytes]) -> None:
        """Publish a copy of each of these honest messages, bit by bit the same."""
        wanted = list(bodies)
        self.copies += Counter(wanted)
        await self._publish(self._sealed[body] for body in wanted)

    async def _publish(self, messages: Iterable[aio_pika.Message]) -> None:
        """Publish many, each confirmed."""
        waiting = list(messages)
        exchange = self.publishing.default_exchange
        for start in range(0, len(waiting), AT_ONCE):
            several = waiting[start : start + AT_ONCE]
            results = await asyncio.gather(
                *(exchange.publish(message, self.name) for message in several)
            )
            assert all(isinstance(result, commands.Basic.Ack) for result in results)

    def store(self, url: str, timeout: float = 1, **settings: Any) -> RedisReplayStore:
        """Return a store on a real Redis, of this row's own."""
        store = RedisReplayStore.from_url(
            url, timeout=timeout, namespace=self.name, **settings
        )
        self._stores.append(store)
        return store

    async def consumer(
        self,
        guard: Pipeline,
        handler: Any = None,
        *,
        url: str | None = None,
        **settings: Any,
    ) -> rabbitmq.Consumer:
        """Return a consumer of the source, on connections of its own."""
        queue = await (await self.channel(url)).get_queue(self.name, ensure=False)
        letters = rabbitmq.DeadLetters(await self.channel(), self.dead)
        return rabbitmq.Consumer(
            queue, guard, handler or self.handle, **({"dead_letters": letters} | settings)
        )

    async def waiting(self, queue: str | None = None) -> int:
        """Return how many messages are ready in the source, or another queue."""
        declared: Any = await self.publishing.declare_queue(
            queue or self.name, passive=True, robust=False
        )
        return int(declared.declaration_result.message_count)

    async def consumed_by(self, number: int) -> bool:
        """Tell whether the source has so many consumers."""
        declared: Any = await self.publishing.declare_queue(
            self.name, passive=True, robust=False
        )
        return int(declared.declaration_result.consumer_count) == number

    async def done(
        self,
        consumer: rabbitmq.Consumer | None = None,
        *,
        handled: Callable[[], Any] | None = None,
        seconds: float = PATIENCE,
    ) -> None:
        """Wait until every honest message is handled, every other buried, and nothing is under way."""
        due = len(self.failing) + len(self.forged) + sum(self.copies.values())
        await until(
            lambda: {*self.honest} <= {*(self.handled if handled is None else handled())},
            seconds,
        )

        async def quiet() -> bool:
            if consumer is not None and consumer.health().in_flight > 0:
                return False
            try:
                return await self.waiting(self.dead) >= due and await self.waiting() == 0
            except (*LOST, RuntimeError):  # not connected again yet
                return False

        await until(quiet, seconds)

    async def letters(self) -> list[Letter]:
        """Take every dead letter."""
        async with await aio_pika.connect(self.url) as connection:
            channel = await connection.channel()
            await channel.set_qos(500)
            queue = await channel.get_queue(self.dead)
            left: int = queue.declaration_result.message_count or 0
            found: list[Letter] = []
            async with queue.iterator(timeout=PATIENCE) as taken:
                while len(found) < left:
                    letter = await anext(taken)
                    found.append(Letter.of(rabbitmq.from_native(letter, queue=self.dead)))
                    await letter.ack()
            return found

    async def count(
        self,
        row: str,
        *,
        handled: Iterable[bytes] | None = None,
        letters: Iterable[Letter] = (),
    ) -> Count:
        """Return the sums of the row; the dead letters are taken, beside those that were taken before."""
        return self.summed(row, handled, [*letters, *await self.letters()])


class BlockingScene:
    """The same for those without an event loop: its calls wait, and its consumers run in the background.

    Args:
        service: the broker.
        folder: for files.
    """

    def __init__(self, service: RabbitMQ, folder: Path, *, lifetime: int = 3600) -> None:
        self.service, self._thread = service, LoopThread()
        self._scene = Scene(service.url, folder, lifetime=lifetime)
        self.call(self._scene.set())

    def call(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine on the event loop of the scene, and return what it returns."""
        return self._thread.call(work, AT_LAST)

    def __getattr__(self, name: str) -> Any:
        """Return what the scene has; what is to be awaited is waited for."""
        member = getattr(self._scene, name)
        if not inspect.iscoroutinefunction(member):
            return member
        return lambda *arguments, **settings: self.call(member(*arguments, **settings))

    @contextmanager
    def consumer(
        self, guard: Pipeline, handler: Any = None, **settings: Any
    ) -> Iterator[rabbitmq.Consumer]:
        """Run a consumer of the source, whose handler may block."""
        plain = on_thread(handler or self._scene.handle)
        consumer = self.call(self._scene.consumer(guard, plain, **settings))
        self.call(consumer.__aenter__())
        try:
            yield consumer
        finally:
            self.call(consumer.__aexit__(None, None, None))

    def consumed_by(self, racers: Sequence[object]) -> bool:
        """Tell whether the source has as many consumers."""
        return self.call(self._scene.consumed_by(len(racers)))

    def buried(self) -> int:
        """Return how many dead letters wait."""
        return self.call(self._scene.waiting(self._scene.dead))

    def settle_in(self, how: str) -> None:
        """Restart the broker before it is killed.

        RabbitMQ 4.0.5 loses a quorum queue, and what it confirmed, where it is killed within a few minutes of
        the queue's declaration ("name_not_registered"; compare rabbitmq-server issue 15725).
        """
        if how == "killed":
            self.service.restart()
            # The connections are back once a message is confirmed.
            self.send_stubbornly(1)

    def strike(self) -> None:
        """Close everything and delete the queues."""
        self.call(self._scene.strike())
        self._thread.close()


@asynccontextmanager
async def scene(url: str, folder: Path, *, lifetime: int = 3600) -> AsyncIterator[Scene]:
    """Set a scene, and strike it at the end."""
    row = Scene(url, folder, lifetime=lifetime)
    await row.set()
    try:
        yield row
    finally:
        await row.strike()


async def until(
    condition: Callable[[], bool | Awaitable[bool]], seconds: float = PATIENCE
) -> None:
    """Wait until a condition holds, or fail."""
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            if await found if isinstance(found, Awaitable) else found:
                return
            await asyncio.sleep(MOMENT)
