"""Threads in virtual time, one of which runs at a time, and an event loop on one of them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import random
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Final, Self

from tests.simulation.clock import EPOCH, Agenda
from tests.simulation.determinism import SerialFuture, SerialTask

PASSED_OVER: Final = 0.03
"""How often a thread is passed over at a lock that is free."""
MOST: Final = 2_000_000
"""Choices of who goes on in one simulation."""


class Killed(BaseException):
    """The process of a thread was killed."""


class Stuck(Exception):
    """No thread can go on, or one does not end."""


class Process:
    """A simulated process: its threads run unless it is paused or killed.

    Args:
        name: for people.
        threads: whose time it has.
    """

    def __init__(self, name: str, threads: Threads) -> None:
        self.name = name
        self.alive = True
        self.paused_until = 0.0
        self._threads = threads

    def now(self) -> float:
        """Return UTC seconds."""
        return EPOCH + self._threads.agenda.now

    def monotonic(self) -> float:
        """Return seconds that never step."""
        return self._threads.agenda.now


class Task:
    """One thread.

    Args:
        process: whose it is.
        name: for people.
    """

    def __init__(self, process: Process, name: str) -> None:
        self.process = process
        self.name = name
        self.gate = threading.Lock()
        self.gate.acquire()
        self.ready: Callable[[], bool] | None = None
        self.until: float | None = None
        self.done = False


class Threads:
    """All threads of a simulation.

    Args:
        seed: decides who goes on.
    """

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.agenda = Agenda()
        self.world = Process("world", self)
        self.current = Task(self.world, "world")
        self.tasks = [self.current]
        self.failure: BaseException | None = None
        self._choices = 0

    def start(self, process: Process, name: str, target: Callable[[], Any]) -> Task:
        """Begin a thread; it runs once it is chosen."""
        task = Task(process, name)
        self.tasks.append(task)
        threading.Thread(
            target=self._run, args=(task, target), name=name, daemon=True
        ).start()
        return task

    def wait(self, ready: Callable[[], bool], until: float | None = None) -> bool:
        """Wait until something holds, or until a time; tell whether it holds.

        Raises:
            Killed: the process was killed.
        """
        task = self.current
        task.ready, task.until = ready, until
        following = self._next()
        if following is not task:
            self._hand_over(following)
            task.gate.acquire()
        task.ready = task.until = None
        if not task.process.alive:
            raise Killed
        if task.process is self.world and self.failure is not None:
            raise self.failure
        return ready()

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.wait(_never, self.agenda.now + seconds)

    def end(self) -> None:
        """Kill every process, and let its threads end."""
        for task in self.tasks:
            task.process.alive = task.process is self.world
        self.wait(
            lambda: all(task.done or task.process is self.world for task in self.tasks)
        )

    def _run(self, task: Task, target: Callable[[], Any]) -> None:
        """Run a thread's function in its turns."""
        task.gate.acquire()
        try:
            if task.process.alive:
                target()
        except Killed:
            pass
        except BaseException as error:
            self.failure = self.failure or error
        task.done = True
        self._hand_over(self._next())

    def _hand_over(self, task: Task) -> None:
        self.current = task
        task.gate.release()

    def _next(self) -> Task:
        """Return the next thread; advance time until one can go on."""
        agenda = self.agenda
        self._choices += 1
        if self._choices > MOST:
            self.failure = self.failure or Stuck(
                f"nobody comes to an end by {agenda.now:.1f} s"
            )
        if self.failure is not None and not self.tasks[0].done:
            return self.tasks[0]
        while True:
            self.tasks = [task for task in self.tasks if not task.done]
            ready = [task for task in self.tasks if self._can(task)]
            if ready:
                return ready[0] if len(ready) == 1 else self.draw.choice(ready)
            times = [
                max(task.until, task.process.paused_until)
                for task in self.tasks
                if task.until is not None
            ]
            times += [
                task.process.paused_until
                for task in self.tasks
                if task.process.paused_until > agenda.now
            ]
            if not agenda.step_until(min(times, default=None)):
                self.failure = Stuck(f"nobody can go on at {agenda.now:.1f} s")
                return self.tasks[0]

    def _can(self, task: Task) -> bool:
        """Tell whether a thread can go on."""
        if not task.process.alive:
            return True
        if task.process.paused_until > self.agenda.now:
            return False
        return (
            task.ready is None
            or (task.until is not None and task.until <= self.agenda.now)
            or task.ready()
        )


class Lock:
    """``threading.Lock`` and ``threading.RLock``."""

    def __init__(self, threads: Threads, *, again: bool) -> None:
        self._threads = threads
        self._again = again
        self._owner: Task | None = None
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it."""
        threads = self._threads
        if self._owner is threads.current and self._again:
            self._depth += 1
            return True
        if threads.draw.random() < PASSED_OVER:
            threads.wait(_always)
        if self._owner is not None:
            until = None if timeout < 0 else threads.agenda.now + timeout
            if not blocking or not threads.wait(lambda: self._owner is None, until):
                return False
        self._owner, self._depth = threads.current, 1
        return True

    def release(self) -> None:
        """Give it back."""
        self._depth -= 1
        if not self._depth:
            self._owner = None

    def locked(self) -> bool:
        """Tell whether it is held."""
        return self._owner is not None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Condition:
    """``threading.Condition``."""

    def __init__(self, threads: Threads, lock: Lock | None = None) -> None:
        self._threads = threads
        self._lock = lock or Lock(threads, again=True)
        self._told = 0

    def wait(self, timeout: float | None = None) -> bool:
        """Wait to be told."""
        told, threads = self._told, self._threads
        until = None if timeout is None else threads.agenda.now + timeout
        self._lock.release()
        try:
            return threads.wait(lambda: self._told != told, until)
        finally:
            if threads.current.process.alive:
                self._lock.acquire()

    def wait_for(
        self, predicate: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        """Wait until something holds."""
        until = None if timeout is None else self._threads.agenda.now + timeout
        while not predicate():
            left = None if until is None else until - self._threads.agenda.now
            if left is not None and left <= 0:
                return False
            self.wait(left)
        return True

    def notify(self, _count: int = 1) -> None:
        """Tell whoever waits."""
        self._told += 1

    notify_all = notify

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock.locked():
            self._lock.release()


class Thread:
    """``threading.Thread``."""

    def __init__(
        self, threads: Threads, *, target: Callable[[], Any], name: str, daemon: bool
    ) -> None:
        self._threads = threads
        self._target = target
        self._name = name
        self._task: Task | None = None
        self.daemon = daemon

    @property
    def ident(self) -> int | None:
        """A number, once it was started."""
        return None if self._task is None else 1

    def start(self) -> None:
        """Begin."""
        process = self._threads.current.process
        self._task = self._threads.start(
            process, f"{process.name} {self._name}", self._target
        )

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        task = self._task
        assert task is not None
        self._threads.wait(
            lambda: task.done,
            None if timeout is None else self._threads.agenda.now + timeout,
        )


class SimpleQueue:
    """``queue.SimpleQueue``."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._items: list[Any] = []

    def put(self, item: Any) -> None:
        """Add an item."""
        self._items.append(item)

    def get(self, timeout: float | None = None) -> Any:
        """Take an item out."""
        until = None if timeout is None else self._threads.agenda.now + timeout
        if not self._threads.wait(lambda: bool(self._items), until):
            raise queue.Empty
        return self._items.pop(0)


def stand_ins(threads: Threads) -> tuple[Any, Any]:
    """Return what stands in for the modules ``threading`` and ``queue``."""
    fake = SimpleNamespace(
        Lock=lambda: Lock(threads, again=False),
        RLock=lambda: Lock(threads, again=True),
        Condition=lambda lock=None: Condition(threads, lock),
        Thread=lambda **settings: Thread(threads, **settings),
    )
    return fake, SimpleNamespace(
        SimpleQueue=lambda: SimpleQueue(threads), Empty=queue.Empty
    )


def _always() -> bool:
    return True


def _never() -> bool:
    return False


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

    async def until(
        self, predicate: Callable[[], bool], seconds: float | None = None
    ) -> None:
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

    def create_task(
        self, coro: Any, *, name: Any = None, context: Any = None
    ) -> SerialTask:  # type: ignore[override]
        """Return a task with a number."""
        return SerialTask(coro, loop=self, name=name, context=context)

    def create_future(self) -> SerialFuture:
        """Return a future with a number."""
        return SerialFuture(loop=self)

    def run_in_executor(
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:  # type: ignore[override]
        """Call a function on a thread: of an executor, else on one of its own."""
        if executor is not None:
            return asyncio.wrap_future(executor.submit(func, *args), loop=self)
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.threads.start(
            self.process, f"{self.process.name} {func}", lambda: _call(future, func, args)
        )
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


def _call(
    future: concurrent.futures.Future[Any],
    func: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
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
