"""A consumer of a log in an event loop, for every asyncio client.

One task polls. A partition is worked on in that task for as long as nothing has to be awaited, and in a task of
its own from then on, so that a handler that waits keeps nobody from polling.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import copy_context
from functools import wraps
from typing import Any, Final, Self

from mqauth.brokers.event_loop import (
    DeliveryTasks,
    FirstError,
    Leaving,
    call_later,
    look,
    loop_stopping_on_signals,
    tell,
    was_cancelled,
)
from mqauth.brokers.log.poller import IDLE, LEAVE, LogEngine
from mqauth.brokers.process import HomeProcess
from mqauth.errors import MqauthError, require
from mqauth.flow import Flow, Waiting, arun, begin, is_awaitable, resume, settled
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.judging.selftest import starting
from mqauth.judging.verified import Unverifieds, listed
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.logs import emit

BREATH: Final = 0.02
"""Seconds after which a partition whose handlers never wait lets the other tasks of the event loop run."""
LOOK: Final = 1.0
"""Seconds between two looks whether the client still answers."""


class AsyncLogConsumer(LogEngine):
    """Consumes until it is stopped, in the background of an ``async with`` block or for as long as ``run`` runs.

    Args:
        guard: the pipeline.
        handler: takes a ``Verified``; may be asynchronous. A synchronous one blocks the event loop.
        dead_letters: where rejected messages go.
        settings: as ``LogEngine`` has them.

    Raises:
        ConfigurationError: a setting is out of its limits, or the pipeline has no audit.
    """

    def __init__(
        self,
        guard: Pipeline,
        handler: Handler,
        dead_letters: DeadLetterSink,
        *,
        workers: int = 1,
        unverified: Unverifieds | None = None,
        **settings: Any,
    ) -> None:
        old = {kind: breathing(each) for kind, each in listed(unverified).items()} or None
        super().__init__(
            guard,
            breathing(handler),
            dead_letters,
            workers=workers,
            unverified=old,
            on_loop=True,
            **settings,
        )
        self._workers = workers
        self._visits = DeliveryTasks()
        self._committing = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._home = HomeProcess("consumer")
        self._polling: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] = lambda: None
        self._first = FirstError()

    async def run(self, *, signals: bool = False) -> None:
        """Consume until ``stop`` is called or this task is cancelled, then stop gracefully.

        What runs is finished, what is settled is committed, and the client is left at the first open record.

        Args:
            signals: whether to stop at SIGTERM and SIGINT too; only in a main thread. A second SIGINT
                (Ctrl-C) ends the process at once.

        Raises:
            ConfigurationError: it ran before, or dead letters go to a topic that is consumed.
            PoisonRecordError: a record cannot be parsed and the policy is to stop.
            ProducerFatalError: the producer of answers, or of transactional dead letters, can send nothing more.
            CommitUnansweredError: the client does not return from a commit.
            Exception: the client's own, where the broker refuses it for good, for lack of rights for example.
        """
        with loop_stopping_on_signals(self._stop, enabled=signals):
            async with self:
                await self._stopping.wait()

    async def stop(self) -> None:
        """Begin nothing more, let running handlers finish within the grace time, commit, and release claims.

        It happens once, however often this is called or its caller is cancelled. A handler that calls it is not
        waited for.
        """
        self._visits.leave_out(asyncio.current_task())
        await asyncio.shield(self._end())

    async def __aenter__(self) -> Self:
        """Start consuming in the background."""
        self._home.check()
        require(self._polling is None, "a consumer runs once: make another one")
        await arun(starting(self._guard))
        loop = asyncio.get_running_loop()

        def keys_changed() -> None:
            self._assignment.keys_changed()
            tell(loop, self.calls.wake)

        self._unsubscribe = self._guard.on_change(keys_changed)
        self._running = True
        self._guard.journal.started(
            "topics", self.calls.scope, self._dead_letters.name, self._guard.rollout
        )
        self._polling = asyncio.create_task(self._poll_until_stopped())
        self._check()
        return self

    async def __aexit__(self, kind: object, *_exception: object) -> None:
        """Stop gracefully; raise the error that stopped the consumer, unless the block raised one."""
        await self.stop()
        if kind is None:
            self._first.check()

    @property
    def failed(self) -> bool:
        """Whether it ended with an error, which leaving the ``async with`` block raises."""
        return self._first.error is not None

    def fail(self, error: BaseException) -> None:
        """Begin to stop because of an error, which ``run`` raises in the end."""
        self._first.keep(error)
        emit("consumer.ended", "the consumer stops: %s", type(error).__name__)
        self._end()

    async def settle(self) -> None:
        """Before a rebalance: begin nothing more, let what runs end, and commit it."""
        self._assignment.hold_back(True)
        try:
            await self._visits.wait_until_idle(self._patience)
            await self._commit(last=True)
        finally:
            self._assignment.hold_back(False)

    # The poll task

    async def _poll_until_stopped(self) -> None:
        assignment = self._assignment
        try:
            await arun(look(self._dead_letters, self._guard.audit))
            while not self._stopping.is_set():
                await self._commit()
                await arun(self._work.renewing())
                await arun(self._guard.tick())
                await arun(self.calls.polling())
                # Partitions are worked on until something has to be awaited, and then in tasks of their own.
                while (
                    assignment.running < self._workers
                    and (partition := assignment.choose()) is not None
                ):
                    visiting = self._work.visiting(partition)
                    # Begun before it is scheduled: a task that is cancelled before its first step would not end
                    # its visit. One context for both parts, and none of it in the poll task's.
                    context = copy_context()
                    begun = context.run(begin, visiting)
                    if isinstance(begun, Waiting):
                        self._visits.run(self._visit(visiting, begun), context)
        except asyncio.CancelledError:
            self._cancelled()
            raise
        except BaseException as error:
            self.fail(error)

    def _check(self) -> None:
        """Look every second whether the client still answers."""
        if self._stopping.is_set():
            return
        try:
            self.calls.check()
        except MqauthError as error:
            return self.fail(error)
        call_later(LOOK, self._check)

    async def _commit(self, *, last: bool = False) -> None:
        # The client's coordinator commits too, in a task of its own, before a rebalance.
        async with self._committing:
            await arun(self.calls.committing(last=last))

    async def _visit(self, visiting: Flow[None], begun: Waiting[None]) -> None:
        try:
            await resume(begun)
        except asyncio.CancelledError:
            if not self._cancelled():
                emit(
                    "consumer.grace_over",
                    "a handler took longer than the grace time; its record comes again",
                )
            raise
        except BaseException as error:
            self.fail(error)
        finally:
            visiting.close()
            self.calls.wake()

    def _cancelled(self) -> bool:
        """End the consumer by an error where not we cancelled this task, but somebody what it waited for."""
        if not was_cancelled():
            self.fail(
                RuntimeError(
                    "a call of the client or a handler was cancelled, not by us: was the client stopped first?"
                )
            )
            return True
        return False

    # The end

    def _stop(self) -> None:
        self._assignment.stop()
        self._stopping.set()
        self.calls.wake()

    def _end(self) -> asyncio.Task[None]:
        """Begin to stop, once; return the task that does it."""
        self._stop()
        if self._ending is None:
            self._ending = asyncio.create_task(self._wind_up())
        return self._ending

    async def _wind_up(self) -> None:
        """Let running handlers finish, commit, release claims, and leave the client at the first open records."""
        leaving, first = Leaving(seconds=LEAVE), self._first
        self._unsubscribe()
        if self._polling is not None and self._polling is not asyncio.current_task():
            # It may wait for a rebalance that does not end.
            await asyncio.wait((self._polling,), timeout=IDLE)
            self._polling.cancel()
            await leaving.wait(asyncio.wait((self._polling,)))
        await self._visits.end(self._grace, leaving)
        with first:
            # Partitions that were assigned a moment ago: their next owner goes on from here.
            if first.error is None:
                await leaving.wait(arun(self.calls.beginning()))
        with first:
            await leaving.wait(self._commit(last=True))
        with first:
            await leaving.wait(arun(self._work.giving_back()))
            await leaving.wait(arun(self._guard.tick(last=True)))
        with first:
            self.calls.close()
            await leaving.wait(settled(self.calls.closed()))
        self.calls.abandon()
        self._running = False
        self._guard.journal.stopped(self.calls.scope, self._assignment.counts)


def breathing(handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a handler that lets other tasks run every ``BREATH`` seconds, also where it never waits itself.

    Heartbeats of the client are such a task: without its turn the group would give our partitions to others.
    """
    latest = 0.0

    @wraps(handler)
    def handle(verified: Any) -> Any:
        result = handler(verified)
        return breathe(result) if time.monotonic() - latest >= BREATH else result

    async def breathe(result: Any) -> Any:
        nonlocal latest
        value = await result if is_awaitable(result) else result
        await asyncio.sleep(0)
        latest = time.monotonic()
        return value

    return handle
