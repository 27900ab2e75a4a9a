"""The background thread of a remote key cache, and how callers of either colour wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol

_LONGEST: Final = 60.0
"""Seconds; a suspended machine or a stepped clock costs at most this much."""
_NAME: Final = "mqauth-jwks"
_JOIN: Final = 6.0
"""Seconds; longer than any attempt of ours."""


class Refresher(Protocol):
    """Does the work of a cache when it is due, and lets others wait for it."""

    def ensure(self) -> None:
        """See to it that work is done; takes no lock when it already is."""
        ...

    def wake(self) -> None:
        """There is work now."""
        ...

    def wait(self, seconds: float, /) -> None:
        """Wait, with the condition held, until an attempt ended, at most so long."""
        ...

    async def pause(self, ended: asyncio.Future[None], seconds: float, /) -> None:
        """Wait until ``ended`` is done, at most so long, without blocking the event loop."""
        ...

    def close(self) -> None:
        """Stop; returns when no work is done any more."""
        ...


class ThreadRefresher:
    """One daemon thread, started when first needed and again in a child after a fork.

    Args:
        condition: guards the cache; its holder may wait on it.
        work: does what is due and returns the seconds until there is more to do.
    """

    def __init__(self, condition: threading.Condition, work: Callable[[], float]) -> None:
        self._condition = condition
        self._work = work
        self._thread: threading.Thread | None = None
        self._closed = False
        self._woken = False

    def ensure(self) -> None:
        """Start the thread, unless it runs."""
        if self._closed or (self._thread is not None and self._thread.is_alive()):
            return
        with self._condition:
            if self._closed or (self._thread is not None and self._thread.is_alive()):
                return
            self._thread = threading.Thread(target=self._run, name=_NAME, daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """Let the thread look at once."""
        self.ensure()
        with self._condition:
            self._woken = True
            self._condition.notify_all()

    def wait(self, seconds: float, /) -> None:
        """Wait on the condition."""
        self._condition.wait(seconds)

    async def pause(self, ended: asyncio.Future[None], seconds: float, /) -> None:
        """Wait for a future."""
        await asyncio.wait((ended,), timeout=seconds)

    def close(self) -> None:
        """Stop the thread and wait for it; an attempt in flight ends by its own timeout."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN)

    def _run(self) -> None:
        """Work, sleep, and again."""
        while not self._closed:
            seconds = self._work()
            with self._condition:
                if not self._closed and not self._woken:
                    self._condition.wait(min(max(seconds, 0), _LONGEST))
                self._woken = False


class Waiters:
    """Futures of event loops that wait for an attempt to end; used with the cache's condition held."""

    def __init__(self) -> None:
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def add(self) -> asyncio.Future[None]:
        """Return a future of the running loop that is done when the attempt in flight ends."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append((loop, future))
        return future

    def release(self) -> None:
        """Tell every loop, from any thread; one that was closed meanwhile does not mind."""
        waiting, self._waiting = self._waiting, []
        for loop, future in waiting:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_finish, future)


def in_event_loop() -> bool:
    """Tell whether the calling thread runs an event loop, which must never be blocked."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _finish(future: asyncio.Future[Any]) -> None:
    """Finish a future that nobody cancelled."""
    if not future.done():
        future.set_result(None)
