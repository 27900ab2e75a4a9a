"""A consuming service on pika's own connections, on the simulated network, as its pages tell users to write it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Final

import pika
from pika.adapters.base_connection import BaseConnection, _StreamingProtocolShim
from pika.exceptions import AMQPConnectionError, AMQPError

from mqauth import Pipeline
from mqauth.brokers.pika import Consumer, DeadLetters, Producer
from mqauth.brokers.pika import link as pika_link
from mqauth.judging.verified import Verified
from tests.simulation.determinism import OrderedSet
from tests.simulation.process import Process
from tests.simulation.services import CONNECT_TIMEOUT, ConsumerService
from tests.simulation.world import DEAD, SOURCE

CLOSE_TIMEOUT: Final = 5.0
"""Seconds that a connection may take to close."""


class Services:
    """pika's I/O services: those that an open connection uses.

    Args:
        loop: the event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._native = SimpleNamespace(
            _poller=SimpleNamespace(_poll=SimpleNamespace(fileno=lambda: -1)),
            call_later=lambda *_: None, poll=lambda: None, process_timeouts=lambda: None, close=lambda: None,
        )  # fmt: skip

    def get_native_ioloop(self) -> Any:
        """Return what stands for pika's own event loop."""
        return self._native

    def call_later(
        self, seconds: float, callback: Callable[[], None]
    ) -> asyncio.TimerHandle:
        """Have a function called later."""
        return self._loop.call_later(seconds, callback)

    def add_callback_threadsafe(self, callback: Callable[[], None]) -> None:
        """Have a function called soon."""
        self._loop.call_soon(callback)


class Protocol(_StreamingProtocolShim):
    """pika's protocol; its own transport has no limit of what is not sent yet."""

    def pause_writing(self) -> None:
        """Go on."""

    def resume_writing(self) -> None:
        """Go on."""


class Connection(pika.BlockingConnection):
    """A ``pika.BlockingConnection`` around an open connection.

    Args:
        impl: the connection.
    """

    def __init__(self, impl: BaseConnection) -> None:
        # Not ``super().__init__``: that would connect by a real socket.
        self._impl: Any = impl

    async def left(self) -> None:
        """Close it, and return once it is closed, or has had the time to."""
        if not self._impl.is_closed and not self._impl.is_closing:
            self._impl.close()
        until = asyncio.get_running_loop().time() + CLOSE_TIMEOUT
        while not self._impl.is_closed and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        if not self._impl.is_closed:
            self._impl._terminate_stream(AMQPConnectionError("no answer to the close"))


class Impl(BaseConnection):
    """pika's connection, made without its connection workflow."""

    @classmethod
    def create_connection(cls, *_: Any, **__: Any) -> Any:
        """Not used."""
        raise NotImplementedError

    def _get_write_buffer_size(self) -> int:
        """Return the bytes that have not left, as a ``SelectConnection`` does."""
        transport: Any = self._transport
        return 0 if transport is None else int(transport.get_write_buffer_size())


async def connect(heartbeat: int, limit: float) -> Connection:
    """Connect to the simulated broker.

    Args:
        heartbeat: seconds.
        limit: seconds that it may take.

    Raises:
        AMQPConnectionError: the connection was lost before it was open.
        OSError: it was refused.
        TimeoutError: it took too long.
    """
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[None] = loop.create_future()

    def failed(_: object, error: BaseException) -> None:
        if not opened.done():
            opened.set_exception(error)

    impl = Impl(
        pika.ConnectionParameters("rabbitmq", 5672, heartbeat=heartbeat),
        lambda _: None if opened.done() else opened.set_result(None), failed, failed, Services(loop),  # type: ignore[arg-type]
        internal_connection_workflow=False,
    )  # fmt: skip
    async with asyncio.timeout(limit):
        await loop.create_connection(lambda: Protocol(impl), "rabbitmq", 5672)  # type: ignore[arg-type, return-value]
        await opened
    return Connection(impl)


AGAIN_AFTER: Final = 1.0
"""Seconds after which a service connects anew."""
pika_link.set = OrderedSet  # type: ignore[attr-defined]
"""Links are left in the same order in every run."""


class PikaConsumerService(ConsumerService):
    """One consuming service on pika: its consumer ends with its connection, and is made anew on the next one.

    ``Consumer.run`` makes an event loop of its own for its coroutine; here that is awaited in the process's.
    """

    async def _consume(self, process: Process) -> None:
        guard = self._pipeline(process)
        while not self._asked.is_set():
            try:
                await self._connected(process, guard)
            except (AMQPError, OSError) as error:
                self._world.note(process.name, f"the consumer ends: {error!r}")
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._asked.wait(), AGAIN_AFTER)
            except Exception as error:
                self._world.note(process.name, f"the consumer ends: {error!r}")
                if not self._deployment.finishing:
                    self._world.ledger.problem(
                        "no consumer dies", f"{process.name}: {error!r}"
                    )
                raise

    async def _connected(self, process: Process, guard: Pipeline) -> None:
        """Consume on two new connections until asked to stop, or until one of them is lost."""
        heartbeat = self._deployment.settings.heartbeat
        connection = await connect(heartbeat, CONNECT_TIMEOUT)
        try:
            letters_connection = await connect(heartbeat, CONNECT_TIMEOUT)
            try:
                await self._consumed(process, guard, connection, letters_connection)
            finally:
                await letters_connection.left()
        finally:
            await connection.left()

    async def _consumed(
        self, process: Process, guard: Pipeline, connection: Any, letters_connection: Any
    ) -> None:
        settings, handler = (
            self._deployment.settings,
            self._deployment.handlers.of(process),
        )

        async def handle(verified: Verified) -> None:
            await handler(verified)

        self.consumer: Any = Consumer(
            connection, SOURCE, guard, handle,
            dead_letters=DeadLetters(letters_connection, DEAD), prefetch=settings.prefetch,
            coalesce_acks=settings.coalesce, grace=settings.grace, hold=settings.hold,
            replies=Producer(letters_connection, "", self._deployment.forge.signer(clock=process.clock)),
        )  # fmt: skip
        running = asyncio.create_task(
            pika_link.driving(self.consumer._run(signals=False))
        )
        asked = asyncio.create_task(self._asked.wait())
        await asyncio.wait((running, asked), return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            # A consumer whose connection is lost has ended, and nobody confirms later what its store did not take.
            now = self._world.agenda.now
            self._world.ledger.stops.append((process.name, now, now))
        self.consumer.stop()
        asked.cancel()
        await running
