"""An event loop in virtual time, on one of the threads that take turns: asyncio's own, with another selector.

Where the loop has nothing to do, its thread waits for the loop's next timer, for a call from another thread, or
for what a coroutine waits for. Now and then the others have a turn between two rounds.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

from tests.simulation.determinism import SerialFuture, SerialTask
from tests.simulation.threads import Killed, Process, Threads

TURN: Final = (0.00002, 0.0004)
"""Seconds that a round of a loop takes, where others have their turn after it."""
OTHERS: Final = 0.2
"""How often others have a turn although the loop has something to do."""


class Selector:
    """Stands for the kernel's: waits in virtual time.

    Args:
        loop: whose it is.
        threads: the time.
    """

    def __init__(self, loop: Loop, threads: Threads) -> None:
        self._loop = loop
        self._threads = threads

    def select(self, timeout: float | None) -> list[asyncio.Future[None]]:
        """Return what has come true, after at most so long."""
        threads, loop = self._threads, self._loop
        if timeout is None or timeout > 0:
            until = None if timeout is None else threads.agenda.now + timeout
            threads.wait(lambda: loop.woken or loop.any_true(), until)
        elif threads.draw.random() < OTHERS:
            threads.sleep(threads.draw.uniform(*TURN))
        loop.woken = False
        return loop.come_true()

    def close(self) -> None:
        """Do nothing."""


class Loop(asyncio.BaseEventLoop):
    """asyncio's event loop on a thread of a simulated process.

    Args:
        process: whose it is.
        threads: the time.
    """

    def __init__(self, process: Process, threads: Threads) -> None:
        super().__init__()
        self.process = process
        self.threads = threads
        self.woken = False
        self._selector = Selector(self, threads)
        self._clock_resolution = 1e-9
        self._awaited: dict[asyncio.Future[None], Callable[[], bool]] = {}

    def play(self, main: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine to its end.

        Raises:
            Killed: the process was killed; nothing of it runs any more.
        """
        try:
            self.run_until_complete(main)
        finally:
            self._dismantle()

    async def until(self, predicate: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait until something holds, at most so many seconds."""
        found = self.create_future()
        self._awaited[found] = predicate
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await found
        finally:
            self._awaited.pop(found, None)

    def any_true(self) -> bool:
        """Tell whether something that is waited for holds."""
        return any(predicate() for predicate in self._awaited.values())

    def come_true(self) -> list[asyncio.Future[None]]:
        """Return and forget what is waited for and holds."""
        found = [each for each, predicate in self._awaited.items() if predicate()]
        for each in found:
            del self._awaited[each]
        return found

    def time(self) -> float:
        """Return the virtual seconds."""
        return self.threads.agenda.now

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> SerialTask:  # type: ignore[override]
        """Return a task with a number."""
        return SerialTask(coro, loop=self, name=name, context=context)

    def create_future(self) -> SerialFuture:
        """Return a future with a number."""
        return SerialFuture(loop=self)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Call a function on a thread: of an executor, else on one of its own."""
        if executor is not None:
            return asyncio.wrap_future(executor.submit(func, *args), loop=self)
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.threads.start(self.process, f"{self.process.name} {func}", lambda: _call(future, func, args))
        return asyncio.wrap_future(future, loop=self)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Let errors that nobody awaits be: what they do to messages is seen."""

    def _process_events(self, event_list: list[asyncio.Future[None]]) -> None:
        for found in event_list:
            if not found.done():
                found.set_result(None)

    def _write_to_self(self) -> None:
        self.woken = True

    def _dismantle(self) -> None:
        """End what is left, as the end of a process does: without its clean-up being heard of."""
        self.process.alive = False
        for task in sorted(asyncio.all_tasks(self), key=hash):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            with suppress(BaseException):
                task.get_coro().close()  # type: ignore[union-attr]
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]
        self.close()


def _call(future: concurrent.futures.Future[Any], func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Call a function for whoever waits for its result."""
    try:
        future.set_result(func(*args))
    except Killed:
        raise
    except BaseException as error:
        future.set_exception(error)


def loop_of(process: Process) -> Loop:
    """Return the event loop that runs, which is a simulated one.

    Raises:
        Killed: its process was killed.
    """
    if not process.alive:
        raise Killed
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    return loop
