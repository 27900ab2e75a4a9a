"""Timers, tasks of deliveries, threads, and signals that ask for a stop, for wrappers of asyncio clients.

``BackgroundRun`` runs a consumer whose ``run`` blocks in a thread for the time of a ``with`` block.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import Context, copy_context
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any, Final, Self
from weakref import WeakKeyDictionary, finalize

from mqauth.audit.record import MINUTE
from mqauth.clock import Clock
from mqauth.errors import require
from mqauth.flow import Flow, R, arun, call, is_async, is_awaitable, settled
from mqauth.judging.pipeline import Pipeline
from mqauth.judging.verified import Unverifieds, listed
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.logs import emit, harmless
from mqauth.signer import Signer
from mqauth.threads import DaemonThread

Timer = Callable[[float, Callable[[], None]], Any]
"""Calls a function after so many seconds: ``call_later``, or a test's own."""
Sleep = Callable[[float], Awaitable[Any]]
"""Waits so many seconds: ``asyncio.sleep``, or a test's own."""
LEAVE: Final = 2.0
"""Seconds for which a consumer that stops waits for its broker, beside its grace."""
_MOMENT: Final = 0.1


def call_later(seconds: float, function: Callable[[], None]) -> asyncio.TimerHandle:
    """Have the running event loop call a function after so many seconds."""
    return asyncio.get_running_loop().call_later(seconds, function)


def was_cancelled() -> bool:
    """Return whether this task was cancelled, and not only a future that it awaited.

    A client may cancel the futures of a connection that closes; for whoever awaits them that looks the same.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def on_thread(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler that an event loop can run: a plain function runs on a thread, and is never cut off.

    What it returns to be awaited, such as a lambda around a coroutine function, is awaited in the event loop.
    """
    if is_async(handler):
        return handler

    @wraps(handler)
    async def handle(verified: Any) -> Any:
        running = asyncio.get_running_loop().run_in_executor(
            None, copy_context().run, handler, verified
        )
        try:
            result = await asyncio.shield(running)
        except asyncio.CancelledError:
            # The grace is over. A thread cannot be interrupted, and what it did must count.
            result = await running
            if is_awaitable(result):
                raise
        return await result if is_awaitable(result) else result

    return handle


def on_threads(unverified: Unverifieds | None) -> Unverifieds | None:
    """Return what takes an ``Unverified``, on threads as ``on_thread``."""
    handlers = {kind: on_thread(handler) for kind, handler in listed(unverified).items()}
    return None if unverified is None else handlers


async def first_of(*wanted: Awaitable[Any]) -> None:
    """Wait until the first of these is done, and cancel the others."""
    waits = [asyncio.ensure_future(wait) for wait in wanted]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


def letters_on_thread(sink: DeadLetterSink) -> DeadLetterSink:
    """Return a sink that an event loop can wait for: plain calls are made on a thread."""
    calls: Any = (sink.publish, getattr(sink, "exists", lambda: None))
    # A coroutine that is made on a thread would be left there, never awaited, by a caller who is cancelled.
    publish, exists = (
        call if is_async(call) else partial(_aside, call) for call in calls
    )
    return SimpleNamespace(name=sink.name, publish=publish, exists=exists)


async def _aside(work: Callable[..., Any], *args: Any) -> Any:
    """Make a call on a thread of its own, which nobody waits for once the caller is cancelled."""
    thread = DaemonThread("mqauth-letters")
    made = thread.submit(work, *args)
    thread.shutdown()
    return await settled(await asyncio.wrap_future(made))


async def signed(signer: Signer, sign: Callable[..., R], *arguments: Any) -> R:
    """Return what a call that signs returns: made here and now, or on a thread where the signer's key may block.

    The calls of one signer are made in their order, and end in it.

    Args:
        signer: signs.
        sign: one of its methods, or a call around one.
        arguments: of the call.
    """
    if not signer.blocking:
        return sign(*arguments)
    loop = asyncio.get_running_loop()
    threads = _SIGNING.setdefault(loop, WeakKeyDictionary())
    if signer not in threads:
        # It ends with the signer.
        threads[signer] = DaemonThread("mqauth-signing")
        finalize(signer, threads[signer].shutdown)
    return await loop.run_in_executor(threads[signer], partial(sign, *arguments))


# by loop, since a ``DaemonThread`` serves one caller; a child after a fork has a loop of its own
_SIGNING: Final[
    WeakKeyDictionary[asyncio.AbstractEventLoop, WeakKeyDictionary[Signer, DaemonThread]]
] = WeakKeyDictionary()


class LoopBeat:
    """Tells for how long an event loop has not moved; it is asked from any thread, and moves the loop to answer.

    Args:
        clock: tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked: float | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch a loop."""
        self._loop = loop

    def silent(self) -> float:
        """Return the seconds since which the loop owes an answer; the first call asks for one."""
        loop, asked = self._loop, self._asked
        if loop is None or loop.is_closed():
            return 0.0
        if asked is not None:
            return self._clock.monotonic() - asked
        self._asked = self._clock.monotonic()
        loop.call_soon_threadsafe(setattr, self, "_asked", None)
        return 0.0


class Leaving:
    """The time for which a consumer that stops waits for its broker: one limit for all that it asks.

    What has no answer by then is left as it is, and not cancelled: it may have been sent, and what the broker has
    not got it delivers again.

    Args:
        grace: seconds more, where handlers are waited for in the same call.
        seconds: for the broker, by default ``LEAVE``.

    Attributes:
        left: seconds of it that are left.
    """

    def __init__(self, grace: float = 0.0, seconds: float | None = None) -> None:
        self.left = grace + (LEAVE if seconds is None else seconds)

    async def wait(self, asked: Awaitable[Any]) -> None:
        """Wait for something that the broker is to answer, while there is time.

        Also where none is left, what needs no answer has a moment to be sent.
        """
        asking, before = asyncio.ensure_future(asked), self.left
        if await self.ends(asking):
            asking.result()
        elif before:
            emit(
                "client.no_answer",
                "the broker does not answer a consumer that stops: it is left as it is",
            )

    async def ends(self, asking: asyncio.Future[Any]) -> bool:
        """Wait for the end of something while there is time; return whether it has come."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.wait((asking,), timeout=max(self.left, _MOMENT))
        self.left = max(0.0, self.left - (loop.time() - began))
        return asking.done()


class DeliveryTasks:
    """The tasks of one consumer, one for each delivery."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._asking: set[asyncio.Task[Any]] = set()
        self._asked = asyncio.Event()

    def __len__(self) -> int:
        return len(self._running)

    def run(
        self, work: Coroutine[Any, Any, None], context: Context | None = None
    ) -> asyncio.Task[None]:
        """Run the rest of a delivery's work in a task of its own, and return that."""
        task = asyncio.create_task(work, context=context)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def leave_out(self, task: asyncio.Task[Any] | None) -> None:
        """Do not wait for a task in ``end``: a handler that stops its own consumer would wait for itself.

        Args:
            task: who asks for the end; ignored where it is no task of this consumer.
        """
        if task is not None and task in self._running:
            self._asking.add(task)
            self._asked.set()

    async def end(
        self, grace: float, leaving: Leaving, left: Callable[[], None] = lambda: None
    ) -> None:
        """Return when all tasks have ended; those that need longer than ``grace`` seconds are cancelled, once.

        Args:
            grace: seconds.
            leaving: the time for which those that were cancelled may wait for the broker.
            left: called when it is over, to end their waiting; the clean-up of a handler is never cut short.
        """
        if not await self.wait_until_idle(grace):
            late = self._running - self._asking
            for task in late:
                task.cancel()
            ended = asyncio.gather(*late, return_exceptions=True)
            await leaving.ends(ended)
            left()
            await ended

    async def wait_until_idle(self, seconds: float) -> bool:
        """Wait for all tasks, at most so many seconds; return whether none runs any more."""
        try:
            async with asyncio.timeout(seconds):
                while running := self._running - self._asking:
                    self._asked.clear()
                    await first_of(asyncio.wait(running), self._asked.wait())
        except TimeoutError:
            return False
        return True


@contextmanager
def stopping_on_signals(
    stop: Callable[[], object], *, enabled: bool = True
) -> Iterator[None]:
    """Call ``stop`` at SIGTERM and SIGINT, where that is enabled, and restore the old handlers at the end.

    The second SIGINT ends the process at once: who presses Ctrl-C again does not wait for a handler that hangs.
    What was not settled is delivered again, as after any crash.

    Raises:
        ConfigurationError: this is not the main thread.
    """

    def ask(number: int, _frame: object) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
        stop()

    main = threading.current_thread() is threading.main_thread()
    require(main or not enabled, "signals=True works in the main thread alone")
    numbers = (signal.SIGTERM, signal.SIGINT) if enabled else ()
    # Handlers of the event loop would wait for it, and a handler that blocks holds it.
    kept = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def loop_stopping_on_signals(
    stop: Callable[[], object], *, enabled: bool
) -> AbstractContextManager[None]:
    """Return ``stopping_on_signals`` for a function that is called in the running event loop."""
    return stopping_on_signals(
        partial(asyncio.get_running_loop().call_soon_threadsafe, stop), enabled=enabled
    )


class FirstError(AbstractContextManager["FirstError"]):
    """A ``with`` block whose error is kept, and raised by ``check``; of several blocks the first error counts.

    What ended a consumer is told so, whatever fails later while it leaves its client. Later errors are noted at it
    by their types alone: their texts may hold anything.

    Attributes:
        error: the first error, ``None`` where there was none.
    """

    error: BaseException | None = None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """Keep the error of the block."""
        if error is not None:
            self.keep(error)
        return True

    def keep(self, error: BaseException) -> None:
        """Keep an error, or note it at the one that came before."""
        if self.error is None:
            self.error = error
        elif error is not self.error:
            self.error.add_note(f"and later: {type(error).__name__}")

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self.error is not None:
            raise self.error


class BackgroundRun(ABC):
    """Runs ``run`` in a background thread, until ``stop`` at the end of the block."""

    _background: threading.Thread | None = None
    _error: BaseException | None = None

    @abstractmethod
    def run(self) -> None:
        """Consume until ``stop`` is called."""

    @abstractmethod
    def stop(self) -> None:
        """Let ``run`` end."""

    @property
    def failed(self) -> bool:
        """Whether a background run ended with an error, which leaving the ``with`` block raises."""
        return self._error is not None

    def __enter__(self) -> Self:
        """Run in a background thread."""

        def run() -> None:
            try:
                self.run()
            except BaseException as error:
                emit("consumer.ended", "the consumer stopped: %s", type(error).__name__)
                self._error = error

        self._background = threading.Thread(
            target=run, name="mqauth-consumer", daemon=True
        )
        self._background.start()
        return self

    def __exit__(self, kind: object, *_exception: object) -> None:
        """Stop gracefully; raise the error that ended ``run``, unless the block raised one."""
        self.stop()
        if self._background is not None:
            self._background.join()
        if self._error is not None and kind is None:
            raise self._error


def look(*sinks: Any) -> Flow[None]:
    """Warn of a queue or topic of dead letters, or audit records, that the broker does not have.

    To be called at the start: what is rejected, perhaps long after it, would wait for the queue. A sink without
    ``exists``, or a broker that does not tell, is left to the first message that is rejected.
    """
    for sink in sinks:
        with suppress(Exception):
            if (yield from call(sink.exists)) is False:
                emit(
                    "consumer.sink_missing",
                    "%s does not exist: until it does, what is rejected waits unsettled",
                    harmless(sink.name),
                    sink=harmless(sink.name),
                )


async def ticking(guard: Pipeline, sleep: Sleep = asyncio.sleep) -> None:
    """Have a pipeline tell each minute what it has to tell, until cancelled.

    Args:
        guard: the pipeline.
        sleep: waits so many seconds.
    """
    while True:
        await arun(guard.tick())
        await sleep(MINUTE)


def tell(
    loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object
) -> None:
    """Have an event loop call a function, from any thread; do nothing where the loop has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)
