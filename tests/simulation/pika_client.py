"""pika's own connections on the simulated network: its channels, frames and heartbeats, with other sockets.

pika's blocking calls wait in a ``select`` of their own, which no virtual clock can drive; mqauth's leaf makes none
of them while it consumes. So its I/O services are ours: timers are the event loop's, and the simulated transport
calls the protocol as pika's own would. What the leaf asks of pika's poller does nothing: bytes come by themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

import pika
from pika.adapters.base_connection import BaseConnection, _StreamingProtocolShim
from pika.exceptions import AMQPConnectionError

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

    def call_later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
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
