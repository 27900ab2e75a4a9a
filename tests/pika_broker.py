"""The simulated RabbitMQ behind a real socket, for clients that no virtual clock can drive, as pika."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, TypeVar

from tests.simulation.amqp_broker import Broker, BrokerConnection

R = TypeVar("R")


class Agenda:
    """Real seconds of the broker's event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    @property
    def now(self) -> float:
        """Seconds."""
        return self._loop.time()

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something after so many seconds."""
        self._loop.call_later(seconds, act)

    def at(self, due: float, act: Callable[[], None]) -> None:
        """Do something at that time."""
        self._loop.call_at(due, act)


class World:
    """What the simulated broker asks of its world; faults of protocol are kept, all else it tells is not."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.agenda = Agenda(loop)
        self.network = SimpleNamespace(listen=lambda *_: None, refuse=lambda _: None)
        self.pace = random.Random(1)
        self.faults: list[str] = []

    def protocol_error(self, _connection: object, text: str) -> None:
        """Keep a fault."""
        self.faults.append(text)

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_: None


class Wire:
    """The broker's end of a socket."""

    server_reads = True
    process = SimpleNamespace(name="client")

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def send(self, raw: bytes) -> None:
        """Send bytes."""
        self._writer.write(raw)

    def close(self) -> None:
        """Close it, once everything is sent."""
        self._writer.close()

    def break_off(self) -> None:
        """Break it."""
        self._writer.transport.abort()

    def read_again(self) -> None:
        """Nothing: reads went on."""


class PikaBroker:
    """A broker on a port of its own, in a thread.

    Attributes:
        url: for clients.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any] | None] = set()
        began: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: self._loop.run_until_complete(self._serve(began)), daemon=True
        )
        self._thread.start()
        self.url = f"amqp://guest:guest@127.0.0.1:{began.result(30)}/"

    def call(self, act: Callable[[Broker], R]) -> R:
        """Do something with the broker in its thread."""

        async def work() -> R:
            return act(self.broker)

        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(30)

    def close(self) -> list[str]:
        """End it; return what faults of protocol it saw."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)
        self._loop.close()
        return self.world.faults

    async def _serve(self, began: Future[int]) -> None:
        self._over = asyncio.Event()
        self.world = World(self._loop)
        self.broker = Broker(self.world)  # type: ignore[arg-type]
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        began.set_result(server.sockets[0].getsockname()[1])
        await self._over.wait()
        server.close()
        self.broker.stop(orderly=False)
        for task in self._tasks - {None}:
            task.cancel()  # type: ignore[union-attr]
        await asyncio.gather(*self._tasks, return_exceptions=True)  # type: ignore[arg-type]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        connection: BrokerConnection = self.broker._accept(Wire(writer))  # type: ignore[arg-type]
        try:
            while data := await reader.read(1 << 16):
                connection.received(data)
        except OSError:
            pass
        finally:
            connection.lost()
            writer.close()
