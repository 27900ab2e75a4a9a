"""A ``pika.BlockingConnection`` in an event loop: its frames are read and written whenever its socket is ready.

pika's own blocking calls hold the thread until the broker answers, without a time limit. So the wrapper opens
channels below them, on the connection that ``BlockingConnection`` drives, where each answer comes to a callback.
The event loop and pika take turns in one thread. pika 1.4 has no public name for what ``_impl``, its poller and
``_set_cookie`` are; ``tests/test_pika.py`` fails once they are gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from pika import BlockingConnection, spec
from pika.exceptions import AMQPConnectionError, AMQPError

from mqauth.brokers.queue.client import RoundTrip
from mqauth.errors import require
from mqauth.threads import in_event_loop

R = TypeVar("R")
LOST: Final = (AMQPError, OSError)
"""Errors of pika where a channel or connection is gone, or the broker says no."""
TICK: Final = 0.2
"""Seconds between two looks at pika's timers: heartbeats, and the limit of a blocked connection."""
LOOK: Final = 0.01
"""Seconds between two looks whether they have left."""


class Link:
    """One connection, driven by at most one event loop at a time.

    Args:
        connection: pika's, connected.

    Attributes:
        loop: the event loop that drives it.
        error: why it ended.
    """

    def __init__(self, connection: Any) -> None:
        self._impl = connection._impl
        self.loop: asyncio.AbstractEventLoop | None = None
        self.error: Exception | None = None
        self._unblocked = asyncio.Event()
        self._unblocked.set()
        self._watchers: list[Callable[[Exception], object]] = []
        self._impl.add_on_close_callback(self._on_close)
        self._impl.add_on_connection_blocked_callback(partial(self._on_blocked, True))
        self._impl.add_on_connection_unblocked_callback(partial(self._on_blocked, False))

    @property
    def blocked(self) -> bool:
        """Whether the broker has blocked it by an alarm."""
        return not self._unblocked.is_set()

    async def unblocked(self) -> None:
        """Return once the broker has not blocked it, or it has ended."""
        await self._unblocked.wait()

    @property
    def frame_size(self) -> int:
        """Bytes of a frame on which both sides agreed."""
        return int(self._impl.params.frame_max)

    def attach(self) -> None:
        """Drive it in the running event loop, until ``drive`` ends.

        Raises:
            ConfigurationError: another event loop drives it.
            Exception: pika's, why it ended.
        """
        running = asyncio.get_running_loop()
        require(
            self.loop in (None, running),
            "a connection of pika's is used by one thread: give each wrapper its own",
        )
        if self.error is not None or self._impl.is_closed:
            raise self.error or AMQPConnectionError("the connection is closed")
        if self.loop is None:
            self.loop = running
            _DRIVEN.setdefault(running, set()).add(self)
            running.add_reader(self._fileno(), self._turn)
            self._tick()

    async def detach(self) -> None:
        """Drive it no longer, once what was written has left, and channels that we close are closed."""
        self._watchers.clear()
        # Most seconds for the last frames to leave, when a connection is given back.
        for _ in range(int(1.0 / LOOK)):
            channels = list(self._impl._channels.values())
            busy = self._impl._get_write_buffer_size() or any(
                channel.is_closing for channel in channels
            )
            if self.loop is None or not busy:
                break
            await asyncio.sleep(LOOK)
        self._let_go()

    def watch(self, lost: Callable[[Exception], object]) -> None:
        """Call a function with the error that ends the connection, while it is driven."""
        self._watchers.append(lost)
        if self.error is not None:
            lost(self.error)

    def lose(self, error: Exception) -> None:
        """End the connection at once, so that it ends at the broker too."""
        if self.error is None:
            self._impl._terminate_stream(error)

    async def channel(self, closed: Callable[[Exception], None] = lambda _: None) -> Line:
        """Open a channel.

        Args:
            closed: called with the reason once it ends.

        Raises:
            Exception: pika's: the connection ended.
        """
        self.attach()
        line = Line(self, closed)
        await line.opened(self._impl.channel)
        return line

    def _fileno(self) -> int:
        """Return a file that is readable whenever pika's poller has something to do."""
        poller = self._impl.ioloop._poller
        return int((getattr(poller, "_kqueue", None) or poller._poll).fileno())

    def _turn(self) -> None:
        """Let pika do what is ready, and nothing that waits."""
        ioloop = self._impl.ioloop
        # A timer that is due keeps ``poll`` from waiting.
        ioloop.call_later(0, lambda: None)
        ioloop.poll()
        ioloop.process_timeouts()
        if self._impl.is_closed:
            self._let_go()
            ioloop.close()

    def _tick(self) -> None:
        if self.loop is not None:
            self.loop.call_later(TICK, self._tick)
            self._turn()

    def _let_go(self) -> None:
        if self.loop is not None:
            self.loop.remove_reader(self._fileno())
            _DRIVEN[self.loop].discard(self)
            self.loop = None

    def _on_close(self, _impl: Any, error: Exception) -> None:
        self.error = error
        self._unblocked.set()
        for lost in self._watchers:
            lost(error)

    def _on_blocked(self, blocked: bool, *_: object) -> None:
        if blocked:
            self._unblocked.clear()
        else:
            self._unblocked.set()


class Line:
    """A channel of a link whose answers can be awaited.

    Args:
        link: its connection.
        closed: called with the reason once it ends.

    Attributes:
        native: pika's ``Channel``.
        round_trip: asks the broker on it.
    """

    native: Any

    def __init__(self, link: Link, closed: Callable[[Exception], None]) -> None:
        self.link = link
        self.round_trip = RoundTrip(self._answers, lambda: link.blocked)
        self._closed = closed
        self._waiting: set[asyncio.Future[Any]] = set()

    @property
    def is_open(self) -> bool:
        """Whether it lives, as far as pika knows."""
        return bool(self.native.is_open)

    async def opened(self, open_channel: Callable[..., Any]) -> None:
        """Open it, and return once the broker has answered."""
        answer = self.awaited()
        self.native = open_channel(on_open_callback=partial(_answered, answer))
        # ``BlockingConnection.close`` asks each channel for what it was wrapped in, and closes that.
        self.native._set_cookie(self.native)
        self.native.add_on_close_callback(self._on_close)
        await answer

    async def ask(self, method: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """Call a method of pika's channel, and return what its callback gets.

        Raises:
            Exception: pika's: why the channel ended.
        """
        answer = self.awaited()
        method(*args, **named, callback=partial(_answered, answer))
        return await answer

    async def cancel(self, consumer: str) -> None:
        """Cancel a consumer, and return when no more of its deliveries come.

        ``Channel.basic_cancel`` of pika 1.4 rejects what comes before the broker's answer, and each time counts
        against the delivery limit. So the same frame is sent without it.
        """
        answers = [(spec.Basic.CancelOk, {"consumer_tag": consumer})]
        await self.ask(
            lambda callback: self.native._rpc(
                spec.Basic.Cancel(consumer_tag=consumer), callback, answers
            )
        )
        self.native._cleanup_consumer_ref(consumer)

    def awaited(self) -> asyncio.Future[Any]:
        """Return a future that gets the reason where the channel ends before its answer."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.add(answer)
        answer.add_done_callback(self._waiting.discard)
        return answer

    def _on_close(self, _channel: object, reason: Exception) -> None:
        for answer in list(self._waiting):
            if not answer.done():
                answer.set_exception(reason)
        self._closed(reason)

    async def _answers(self) -> bool:
        """Return whether it lives; where no answer comes in time, its connection is ended.

        The question is ``channel.flow`` with ``active=true``, which a channel is anyway (AMQP 0-9-1, 1.5.2.3).
        """
        try:
            await self.ask(self.native.flow, True)
        except LOST:
            return False
        except asyncio.CancelledError:
            self.link.lose(AMQPConnectionError("the broker did not answer on a channel"))
            raise
        return True


_LINKS: Final[WeakKeyDictionary[BlockingConnection, Link]] = WeakKeyDictionary()
_DRIVEN: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, set[Link]]] = (
    WeakKeyDictionary()
)


def link_of(connection: BlockingConnection | Link) -> Link:
    """Return the one link of a connection.

    Raises:
        ConfigurationError: it is no ``pika.BlockingConnection``.
    """
    if isinstance(connection, Link):
        return connection
    require(
        isinstance(connection, BlockingConnection),
        f"a pika.BlockingConnection is needed, not {type(connection).__name__}",
    )
    return _LINKS.get(connection) or _LINKS.setdefault(connection, Link(connection))


def drive(work: Coroutine[Any, Any, R], threads: int = 1) -> R:
    """Run a coroutine to its end in an event loop of this thread, which drives the connections that it uses.

    Args:
        work: the coroutine.
        threads: for plain functions that it runs on threads of their own.
    """
    with asyncio.Runner() as runner:
        runner.get_loop().set_default_executor(
            ThreadPoolExecutor(threads, "mqauth-handler")
        )
        return runner.run(driving(work))


async def driving(work: Awaitable[R]) -> R:
    """Await some work, and let go of the connections that this event loop drives."""
    try:
        return await work
    finally:
        driven = _DRIVEN.get(asyncio.get_running_loop(), ())
        await asyncio.gather(*[link.detach() for link in driven])


def here(work: Coroutine[Any, Any, R]) -> Coroutine[Any, Any, R] | R:
    """Return a coroutine to be awaited where an event loop runs in this thread; else run it to its end."""
    return work if in_event_loop() else drive(work)


def _answered(answer: asyncio.Future[Any], result: Any = None) -> None:
    if not answer.done():
        answer.set_result(result)
