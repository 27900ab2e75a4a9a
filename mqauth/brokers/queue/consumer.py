"""A consumer of a queue in an event loop, for every asyncio client: takes deliveries, and stops gracefully."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from mqauth.audit.observed import MINUTE
from mqauth.brokers.dead_letters import look
from mqauth.brokers.event_loop import DeliveryTasks, Leaving, LoopBeat, Sleep, loop_stopping_on_signals
from mqauth.brokers.queue.channel import Acks
from mqauth.brokers.queue.client import QueueClient
from mqauth.brokers.queue.processor import Processor, StartedDelivery
from mqauth.brokers.queue.retrier import Retrier
from mqauth.brokers.queue.subscription import Subscription
from mqauth.delivery.health import QueueHealth, rungs, with_aliases
from mqauth.delivery.hold import (
    CONSUMER_TIMEOUT,
    HELD_PER_PREFETCH,
    MAX_HELD,
    SUSPENDS_AFTER,
    HeldDelivery,
    HoldCapacity,
)
from mqauth.delivery.window import Window
from mqauth.errors import ConfigurationError
from mqauth.flow import arun
from mqauth.judging.observing import Observing
from mqauth.judging.pipeline import Handler, Outcome, Pipeline
from mqauth.judging.selftest import starting
from mqauth.judging.verified import Responder
from mqauth.letters.dead_letter import DeadLetterSink

PREFETCH: Final = 10
"""Default of deliveries at once."""
_MAX_PREFETCH: Final = 65_535


class QueueConsumer:
    """Consumes until it is stopped, in the background of an ``async with`` block or for as long as ``run`` runs.

    Args:
        calls: the client's.
        guard: the pipeline.
        handler: takes a ``Verified``.
        dead_letters: where rejected messages go.
        responder: publishes what ``Verified.reply`` is given.
        prefetch, coalesce_acks, grace, hold, max_held, sleep: as ``QueueOptions`` has them.
        settings: as ``Processor`` has them.

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
        responder: Responder | None = None,
        prefetch: int = PREFETCH,
        coalesce_acks: bool = True,
        grace: float = 30,
        hold: float = SUSPENDS_AFTER,
        consumer_timeout: float = CONSUMER_TIMEOUT,
        max_held: int | None = None,
        sleep: Sleep = asyncio.sleep,
        **settings: Any,
    ) -> None:
        if not 1 <= prefetch <= _MAX_PREFETCH or grace < 0 or not 0 <= (max_held or 0) <= MAX_HELD:
            raise ConfigurationError(
                f"prefetch must be 1 to {_MAX_PREFETCH}, max_held 0 to {MAX_HELD}, and grace not negative"
            )
        if guard.audit is None:
            raise ConfigurationError("a consumer's pipeline needs audit=")
        if dead_letters.name == calls.queue:
            raise ConfigurationError("dead letters must go to another queue than the one consumed")
        if not 1.0 <= hold < consumer_timeout:
            raise ConfigurationError("hold must be at least 1 second, and shorter than consumer_timeout")
        beside = min(HELD_PER_PREFETCH * prefetch, MAX_HELD) if max_held is None else max_held
        self._calls = calls
        self._guard = guard
        self._grace = grace
        self._dead_letters = dead_letters
        self._processor = Processor(
            calls,
            guard,
            handler,
            dead_letters=dead_letters,
            responder=responder,
            hold=hold,
            consumer_timeout=consumer_timeout,
            capacity=HoldCapacity(beside, issuers=guard.verifier.issuers),
            at_once=prefetch,
            changed=lambda: self._subscription.look(len(self._tasks)),
            before_requeue=self._suspend,
            on_failure=self._end_by,
            sleep=sleep,
            **settings,
        )
        self._window = Window(calls.queue, guard.clock, self._processor.hold, prefetch)
        self._subscription = Subscription(
            calls, self._window, self._processor, self._on_message, times=guard.verifier.times,
            coalesce=coalesce_acks, sleep=sleep,
        )  # fmt: skip
        self._tasks = DeliveryTasks()
        self._beat = LoopBeat(guard.clock)
        self._in_callback = 0
        self._stopping = asyncio.Event()
        self._unsubscribe: Callable[[], None] | None = None
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
        self._tasks.leave_out(asyncio.current_task())
        await asyncio.shield(self._end())

    async def __aenter__(self) -> Self:
        """Start consuming in the background."""
        if self._supervisor is not None:
            raise ConfigurationError("a consumer runs once: make another one")
        await arun(starting(self._guard))
        self._unsubscribe = self._guard.on_change(
            partial(_wake, asyncio.get_running_loop(), self._processor.retrier)
        )
        self._beat.start(asyncio.get_running_loop())
        self._guard.journal.started(
            f"queue {self._calls.queue}", self._calls.queue, self._dead_letters.name, self._guard.rollout
        )
        self._supervisor = asyncio.create_task(self._supervise())
        if self._guard.observing is not None:
            self._telling = asyncio.create_task(self._tell(self._guard.observing))
        await asyncio.wait(
            (started := asyncio.ensure_future(self._subscription.started.wait()), self._supervisor),
            return_when=asyncio.FIRST_COMPLETED,
        )
        started.cancel()
        if self._window.failure is not None:
            await self.stop()
            raise self._window.failure
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop gracefully, and raise the error that stopped the consumer if there was one."""
        await self.stop()
        if self._window.failure is not None and error is None:
            raise self._window.failure

    def health(self) -> QueueHealth:
        """Return how the consumer is doing now; may be called from any thread."""
        found = self._window.health(
            in_flight=len(self._tasks) + self._in_callback,
            unsettled=self._processor.work.unsettled,
            blocked=self._calls.is_blocked(),
            silent=self._beat.silent(),
            rollout=rungs(self._guard.rollout),
        )
        return with_aliases(found, self._guard.verifier)

    # Deliveries

    async def _on_message(self, native: Any) -> None:
        """Process a delivery at once, and go on in a task of ours where something is to be awaited.

        A client may cancel its own task when a connection is lost, and with it a handler in the middle.
        """
        calls, acks = self._calls, self._subscription.acks
        # The broker delivers it again.
        if calls.ended(native):
            return
        if acks is not None:
            acks.opened(calls.tag(native))
        if calls.may_be_refused(native):
            self._tasks.run(self._ask_for_refusal())
        if self._stopping.is_set():
            return self._tasks.run(self._turn_away(native, acks))
        # One context for both parts, so that what instrumentation sets in the first is there in the second.
        context = copy_context()
        begun = context.run(self._begun, native, acks)
        if begun is not None:
            self._tasks.run(self._process(native, acks, begun), context)

    async def _ask_for_refusal(self) -> None:
        if (refusal := await self._calls.refusal()) is not None:
            self.fail(refusal)

    async def _turn_away(self, native: Any, acks: Acks | None) -> None:
        # Only once nothing is consumed any more: it would come again at once.
        await self._subscription.cancelled()
        await self._processor.turn_away(native, acks)

    def _begun(self, native: Any, acks: Acks | None) -> StartedDelivery | None:
        """Start a delivery; return ``None`` where it is settled, or an error of ours ends the consumer."""
        self._in_callback = 1
        try:
            found = self._processor.begin(native, acks)
        except BaseException as error:
            self.fail(error)
            return None
        finally:
            self._in_callback = 0
        if isinstance(found, StartedDelivery):
            return found
        self._settled(found)
        return None

    async def _process(self, native: Any, acks: Acks | None, begun: StartedDelivery) -> None:
        try:
            outcome = await self._processor.process(native, acks, begun)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return self.fail(error)
        if outcome is not None:
            self._settled(outcome)

    def _settled(self, outcome: Outcome) -> None:
        if self._window.settled(outcome):
            self._subscription.interrupt()

    async def _suspend(self, held: HeldDelivery) -> bool:
        return await self._subscription.suspend(held)

    async def _supervise(self) -> None:
        try:
            await arun(look(self._dead_letters, self._guard.audit))
            await self._subscription.run()
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            self.fail(error)

    async def _tell(self, observing: Observing) -> None:
        """Tell each minute what a rollout has to tell, however quiet the queue is."""
        while True:
            await arun(observing.tick())
            await self._sleep(MINUTE)

    # The end

    def fail(self, error: BaseException) -> None:
        """Begin to stop because of an error, which ``run`` raises in the end."""
        self._window.fail(error)
        self._end()

    async def _end_by(self, error: BaseException) -> None:
        """Begin to stop because of an error, and return once nothing is consumed any more."""
        self.fail(error)
        await self._subscription.cancelled()

    def _end(self) -> asyncio.Task[None]:
        """Begin to stop, once; return the task that does it."""
        self._window.stop()
        self._stopping.set()
        if self._ending is None:
            self._ending = asyncio.create_task(self._wind_up())
        return self._ending

    async def _wind_up(self) -> None:
        leaving = Leaving()
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._supervisor is not None:
            await self._subscription.end(self._supervisor, leaving)
        await leaving.wait(self._subscription.cancelled())
        self._processor.retrier.stop()
        await self._tasks.end(self._grace, leaving, self._processor.left.set)
        await self._subscription.finish(leaving)
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.wait((self._telling,))
            # The audit may be at the broker, too.
            await leaving.wait(arun(self._guard.tick(last=True)))
        self._processor.work.stopped()
        self._guard.journal.stopped(self._calls.queue, self._window.counts)


def _wake(loop: asyncio.AbstractEventLoop, retrier: Retrier) -> None:
    """Have a consumer retry its deferred deliveries now; may be called from any thread."""
    # The loop may have ended meanwhile.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(retrier.wake)
