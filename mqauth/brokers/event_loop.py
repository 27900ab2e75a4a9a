"""The tasks of deliveries under way, their end when a consumer stops, and signals that ask for it.

A call after so many seconds, on the running event loop or on a test's.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any


def was_cancelled() -> bool:
    """Tell whether this task was cancelled, and not only a future that it awaited.

    A client may cancel the futures of a connection that closes, which looks the same to whoever awaits them.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class DeliveryTasks:
    """Tasks of one consumer, a delivery each."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._asking: set[asyncio.Task[Any]] = set()
        self._asked = asyncio.Event()

    def __len__(self) -> int:
        return len(self._running)

    def run(self, work: Coroutine[Any, Any, None], context: Context | None = None) -> None:
        """Go on with a delivery in a task of its own."""
        task = asyncio.create_task(work, context=context)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def leave_out(self, task: asyncio.Task[Any] | None) -> None:
        """Do not wait for a task that itself waits for the end; others are told apart from tasks of ours here."""
        if task is not None and task in self._running:
            self._asking.add(task)
            self._asked.set()

    async def end(self, grace: float) -> None:
        """Return when all have ended; those that need longer than so many seconds are cancelled, once."""
        try:
            async with asyncio.timeout(grace):
                await self._idle()
        except TimeoutError:
            late = self._running - self._asking
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _idle(self) -> None:
        """Wait until every task has ended that has not asked for the end."""
        while running := self._running - self._asking:
            self._asked.clear()
            waits = [asyncio.ensure_future(wait) for wait in (asyncio.wait(running), self._asked.wait())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()


class SignalHandlers:
    """Calls a function at SIGTERM and SIGINT while it is entered, where it is enabled."""

    def __init__(self, stop: Callable[[], None], *, enabled: bool) -> None:
        self._stop = stop
        self._numbers = (signal.SIGTERM, signal.SIGINT) if enabled else ()

    def __enter__(self) -> None:
        for number in self._numbers:
            asyncio.get_running_loop().add_signal_handler(number, self._stop)

    def __exit__(self, *_: object) -> None:
        for number in self._numbers:
            asyncio.get_running_loop().remove_signal_handler(number)


Timer = Callable[[float, Callable[[], None]], Any]


def call_later(seconds: float, function: Callable[[], None]) -> asyncio.TimerHandle:
    """Have the running event loop call a function after so many seconds."""
    return asyncio.get_running_loop().call_later(seconds, function)
