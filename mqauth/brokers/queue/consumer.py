"""A consumer of a queue in an event loop, for every asyncio client: takes deliveries, and stops gracefully."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Self

from mqauth.brokers.event_loop import (
    Leaving,
    LoopBeat,
    Sleep,
    first_of,
    look,
    loop_stopping_on_signals,
    tell,
    ticking,
)
from mqauth.brokers.process import HomeProcess
from mqauth.brokers.queue.client import QueueClient
from mqauth.brokers.queue.subscription import PREFETCH, Subscription
from mqauth.delivery.health import QueueHealth, told_of
from mqauth.delivery.hold import (
    CONSUMER_TIMEOUT,
    MAX_HELD,
    SUSPENDS_AFTER,
)
from mqauth.errors import require
from mqauth.flow import arun
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.judging.selftest import starting
from mqauth.letters.dead_letter import DeadLetterSink, name_of

_MAX_PREFETCH: Final = 65_535


class QueueConsumer:
    """Consumes until it is stopped, in the background of an ``async with`` block or for as long as ``run`` runs.

    Args:
        calls: the client's.
        guard: the pipeline.
        handler: takes a ``Verified``.
        dead_letters: where rejected messages go.
        prefetch, grace, hold, consumer_timeout, max_held, sleep: as ``QueueOptions`` has them.
        settings: as ``Subscription`` has them.

    Attributes:
        home: where it is used.

    Raises:
        ConfigurationError: the pipeline has no audit, dead letters go to the queue itself, or a setting is out of
            its limits.
    """

    def __init__(
        self,
        calls: QueueClient,
        guard: Pipeline,
        handler: Handler,
        *,
        dead_letters: DeadLetterSink,
        prefetch: int = PREFETCH,
        grace: float = 30,
        hold: float = SUSPENDS_AFTER,
        consumer_timeout: float = CONSUMER_TIMEOUT,
        max_held: int | None = None,
        sleep: Sleep = asyncio.sleep,
        **settings: Any,
    ) -> None:
        require(
            1 <= prefetch <= _MAX_PREFETCH
            and grace >= 0
            and 0 <= (max_held or 0) <= MAX_HELD,
            f"prefetch must be 1 to {_MAX_PREFETCH}, max_held 0 to {MAX_HELD}, and grace not negative",
        )
        require(guard.audit is not None, "a consumer's pipeline needs audit=")
        dead = name_of(dead_letters)
        require(
            dead != calls.queue,
            "dead letters must go to another queue than the one consumed",
        )
        require(
            1.0 <= hold < consumer_timeout,
            "hold must be at least 1 second, and shorter than consumer_timeout",
        )
        self.home = HomeProcess("consumer")
        self._calls = calls
        self._guard = guard
        self._grace = grace
        self._dead_letters = dead_letters
        self._subscription = Subscription(
            calls,
            guard,
            handler,
            fail=self.fail,
            dead_letters=dead_letters,
            prefetch=prefetch,
            hold=hold,
            consumer_timeout=consumer_timeout,
            max_held=max_held,
            sleep=sleep,
            **settings,
        )
        self._window = self._subscription.window
        self._beat = LoopBeat(guard.clock)
        self._stopping = asyncio.Event()
        self._unsubscribe: Callable[[], None] = lambda: None
        self._supervisor: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._sleep = sleep

    async def run(self, *, signals: bool = False) -> None:
        """Consume until ``stop`` is called or this task is cancelled, then stop gracefully.

        Args:
            signals: whether to stop at SIGTERM and SIGINT too; only in a main thread. A second SIGINT
                (Ctrl-C) ends the process at once.

        Raises:
            ConfigurationError: the pipeline or a plug-in does not fit; nothing was lost.
            Exception: the client's own, where the queue cannot be consumed, or a connection that does not come
                back by itself was lost.
        """
        # a stop is heard while the broker is out of reach at the start, too
        with loop_stopping_on_signals(self._end, enabled=signals):
            async with self:
                await self._stopping.wait()

    async def stop(self) -> None:
        """Take no new messages, let running handlers finish within the grace time, give the rest back.

        It happens once, however often this is called or its caller is cancelled. A handler that calls it is not
        waited for.
        """
        self._subscription.tasks.leave_out(asyncio.current_task())
        await asyncio.shield(self._end())

    async def __aenter__(self) -> Self:
        """Start consuming in the background."""
        self.home.check()
        require(self._supervisor is None, "a consumer runs once: make another one")
        await arun(starting(self._guard))
        loop = asyncio.get_running_loop()
        self._unsubscribe = self._guard.on_change(
            lambda: tell(loop, self._subscription.wake)
        )
        self._beat.start(loop)
        self._guard.journal.started(
            f"queue {self._calls.queue}",
            self._calls.queue,
            self._dead_letters.name,
            self._guard.rollout,
        )
        self._supervisor = asyncio.create_task(self._supervise())
        self._telling = asyncio.create_task(ticking(self._guard, self._sleep))
        await first_of(
            self._subscription.started.wait(), asyncio.wait((self._supervisor,))
        )
        if self._window.failure is not None:
            await self.stop()
            raise self._window.failure
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        """Stop gracefully, and raise the error that stopped the consumer if there was one."""
        await self.stop()
        if self._window.failure is not None and error is None:
            raise self._window.failure

    def health(self) -> QueueHealth:
        """Return how the consumer is doing now; may be called from any thread."""
        subscription = self._subscription
        return self._window.health(
            in_flight=len(subscription.tasks) + subscription.in_callback,
            unsettled=subscription.work.unsettled,
            blocked=self._calls.is_blocked(),
            silent=self._beat.silent(),
            settings=told_of(self._guard.rollout, self._guard.verifier),
        )

    async def _supervise(self) -> None:
        try:
            await arun(look(self._dead_letters, self._guard.audit))
            await self._subscription.run()
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            self.fail(error)

    # The end

    def fail(self, error: BaseException) -> None:
        """Begin to stop because of an error, which ``run`` raises in the end."""
        self._window.fail(error)
        self._end()

    def _end(self) -> asyncio.Task[None]:
        """Begin to stop, once; return the task that does it."""
        self._window.stopping = True
        self._stopping.set()
        if self._ending is None:
            self._ending = asyncio.create_task(self._wind_up())
        return self._ending

    async def _wind_up(self) -> None:
        leaving, subscription = Leaving(), self._subscription
        self._unsubscribe()
        subscription.interrupted.set()
        if (supervisor := self._supervisor) is not None:
            # A call that begins to consume has a second: a client may close the channel of a cancelled one.
            if self._window.is_out:
                await leaving.wait(asyncio.wait((supervisor,), timeout=1.0))
            supervisor.cancel()
            await leaving.wait(asyncio.wait((supervisor,)))
        await leaving.wait(subscription.cancelled())
        subscription.hold.stopping = True
        subscription.wake()
        await subscription.tasks.end(self._grace, leaving, subscription.left.set)
        # What was settled is acked, while there is time.
        if subscription.acks is not None:
            await leaving.wait(subscription.acks.finish())
        self._calls.unwatch()
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.wait((self._telling,))
            # The audit may be at the broker, too.
            await leaving.wait(arun(self._guard.tick(last=True)))
        subscription.work.stopped()
        self._guard.journal.stopped(self._calls.queue, self._window.counts)
