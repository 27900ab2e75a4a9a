"""A process: one event loop that gets its turns from the agenda, and may be paused, blocked or killed.

The loop is asyncio's own; only its selector, its time and who gives it a turn are ours. A paused process gets no
turn while its kernel's buffers fill.
"""

from __future__ import annotations

import asyncio
import math
import threading
from asyncio import events
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from tests.simulation.clock import ProcessClock
from tests.simulation.determinism import SerialFuture, SerialTask

if TYPE_CHECKING:
    from tests.simulation.network import Transport
    from tests.simulation.world import World

_TURN = (0.00002, 0.0004)
"""Seconds that a turn of a loop takes, at least and at most."""


class Selector:
    """Stands for the kernel's: tells which sockets of a process can be read."""

    def __init__(self) -> None:
        self.sockets: dict[Transport, None] = {}

    def select(self, _timeout: float | None) -> list[Transport]:
        """Return the sockets with something to read."""
        return [socket for socket in self.sockets if socket.readable]

    def close(self) -> None:
        """Forget the sockets."""
        self.sockets.clear()


class Loop(asyncio.BaseEventLoop):
    """asyncio's event loop, run by a process's turns.

    Args:
        process: whose loop it is.
    """

    def __init__(self, process: Process) -> None:
        super().__init__()
        self._process = process
        self._selector = Selector()
        self._clock_resolution = 1e-9
        self.set_exception_handler(process.unheard)

    def time(self) -> float:
        """Return the virtual seconds of this process."""
        return self._process.time()

    def turn(self) -> None:
        """Run what is ready now, once."""
        before = events._get_running_loop()
        self._thread_id = threading.get_ident()
        events._set_running_loop(self)
        try:
            self._run_once()  # type: ignore[attr-defined]
        finally:
            self._thread_id = None
            events._set_running_loop(before)

    def next_turn(self) -> float | None:
        """Return when there is something to do, ``None`` for never."""
        if self._ready or self._selector.select(0):  # type: ignore[attr-defined]
            return self.time()
        scheduled = self._scheduled  # type: ignore[attr-defined]
        return scheduled[0]._when if scheduled else None

    def dismantle(self) -> None:
        """Let the loop be garbage-collected without warnings."""
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]
        self.close()

    def create_task(
        self, coro: Any, *, name: Any = None, context: Any = None
    ) -> SerialTask:  # type: ignore[override]
        """Return a task with a number."""
        return SerialTask(coro, loop=self, name=name, context=context)

    def create_future(self) -> SerialFuture:
        """Return a future with a number."""
        return SerialFuture(loop=self)

    def call_at(
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """Schedule a function at a time of this loop."""
        handle = super().call_at(when, callback, *args, context=context)
        self._process.poke(when)
        return handle

    def _call_soon(self, callback: Any, args: Any, context: Any) -> Any:
        handle = super()._call_soon(callback, args, context)  # type: ignore[misc]
        self._process.poke(self._process.time())
        return handle

    def _process_events(self, event_list: list[Transport]) -> None:
        for socket in event_list:
            self._ready.append(events.Handle(socket.read_ready, (), self))  # type: ignore[attr-defined]

    def _write_to_self(self) -> None:
        self._process.poke(self._process.time())

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:
        """Do nothing: what arrives is given to a transport's protocol."""

    def remove_reader(self, fd: Any) -> bool:
        """Do nothing."""
        return True

    def run_in_executor(self, *_: Any) -> Any:  # type: ignore[override]
        """Refuse: real threads have no place in virtual time."""
        raise AssertionError("no thread may run in a simulated process")

    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any
    ) -> Any:  # type: ignore[override]
        """Connect to a simulated host."""
        return await self._process.world.network.connect(
            self._process, protocol_factory, f"{host}:{port}"
        )

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Report an error that nobody awaits."""
        self._process.unheard(self, context)


class Process:
    """One operating-system process of the simulated deployment.

    Args:
        world: where it runs.
        name: names it in the trace.
        main: what it runs; told to the world when it ends.
        ended: called with the process once ``main`` has ended.
    """

    def __init__(
        self,
        world: World,
        name: str,
        main: Callable[[Process], Coroutine[Any, Any, None]],
        ended: Callable[[Process], None] | None = None,
    ) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.paused = False
        self.pauses: list[tuple[float, float]] = []
        self.clock = ProcessClock(self.time)
        self.loop = Loop(self)
        self.failure: BaseException | None = None
        self.stopped_at: float | None = None
        self._busy_until = 0.0
        self._next = math.inf
        self._version = 0
        self._turning = False
        self._ended = ended
        world.everyone[name] = self
        self.task = self.loop.create_task(main(self))
        self.task.add_done_callback(self._main_ended)

    def time(self) -> float:
        """Return the virtual seconds as this process has them: later than the world's while it is blocked."""
        return max(self.world.agenda.now, self._busy_until)

    def poke(self, when: float) -> None:
        """Schedule a turn of the loop."""
        if self._turning or self.paused or not self.alive or when >= self._next:
            return
        self._next = when
        self._version += 1
        version = self._version
        delay = max(
            when, self.world.agenda.now, self._busy_until
        ) + self.world.pace.uniform(*_TURN)
        self.world.agenda.at(delay, lambda: self._turn(version))

    def block(self, seconds: float) -> None:
        """Stand still for so many seconds from within: a handler that blocks the loop."""
        started = self.time()
        self._busy_until = started + seconds
        self.pauses.append((started, self._busy_until))
        self.world.note(self.name, f"blocks for {seconds:.1f} s")

    def pause(self, seconds: float) -> None:
        """Stand still for so many seconds from without: SIGSTOP, or a virtual machine that is moved."""
        if not self.alive or self.paused:
            return
        self.paused = True
        self._version += 1
        self._next = math.inf
        self.pauses.append((self.world.agenda.now, self.world.agenda.now + seconds))
        self.world.note(self.name, f"paused for {seconds:.1f} s")
        self.world.agenda.after(seconds, self.go_on)

    def kill(self, why: str = "killed") -> None:
        """End at once: nothing of it runs any more, and the kernel closes its sockets."""
        if not self.alive:
            return
        self.world.note(self.name, why)
        self.alive = False
        self.stopped_at = self.world.agenda.now
        for socket in tuple(self.loop._selector.sockets):
            socket.die()
        self.loop._selector.close()
        if self._ended is not None:
            self._ended(self)

    def unheard(self, _loop: Any, context: dict[str, Any]) -> None:
        """Note an error that an event loop would only log."""
        if self.alive:
            self.world.unheard(self, context)

    def go_on(self) -> None:
        """Resume a paused process."""
        if self.alive:
            self.paused = False
            self.world.note(self.name, "goes on")
            self.poke(self.world.agenda.now)

    def _turn(self, version: int) -> None:
        """Give the loop its turn, unless another one was arranged since."""
        if version != self._version or not self.alive or self.paused:
            return
        self._next = math.inf
        self.world.turns += 1
        self._turning = True
        try:
            self.loop.turn()
        except SystemExit:
            self._turning = False
            self.kill("exits")
            return
        finally:
            self._turning = False
        following = self.loop.next_turn()
        if following is not None and self.alive:
            self.poke(following)

    def _main_ended(self, task: asyncio.Task[Any]) -> None:
        """The process ends with its main coroutine."""
        if not task.cancelled():
            self.failure = task.exception()
        self.world.agenda.after(
            0, lambda: self.kill(f"ends ({type(self.failure).__name__})")
        )
