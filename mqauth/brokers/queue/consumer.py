"""A consumer of a queue in an event loop, for every such client: takes deliveries, and winds up.

A delivery is begun on the spot, and what is to be awaited runs in a task of ours: a client may cancel its own when
a connection is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from mqauth.brokers.event_loop import DeliveryTasks, SignalHandlers
from mqauth.brokers.queue.channel import Acks
from mqauth.brokers.queue.client import QueueClient
from mqauth.brokers.queue.processor import Processor, StartedDelivery
from mqauth.brokers.queue.retrier import Retrier, Sleep
from mqauth.brokers.queue.subscription import Subscription
from mqauth.delivery.health import QueueHealth
from mqauth.delivery.hold import HELD_PER_PREFETCH, MAX_HELD, HeldDelivery, HoldCapacity
from mqauth.delivery.window import Window
from mqauth.errors import ConfigurationError
from mqauth.judging.pipeline import Handler, Outcome, Pipeline
from mqauth.judging.verified import Responder
from mqauth.letters.dead_letter import DeadLetterSink

_MIN_HOLD: Final = 1.0
_MOST: Final = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much a consumer takes, and for how long it holds it.

    Args:
        prefetch: deliveries at once, 1 to 65,535.
        coalesce_acks: ack many deliveries in one frame.
        grace: seconds that running handlers may take at a stop.
        hold: seconds, at least 1, of a cause of all after which the queue is suspended.
        consumer_timeout: seconds after which the broker closes a channel for a delivery that is not acked.
        delivery_limit: of the queue; negative for none.
        max_held: deliveries held beside the window, ten times ``prefetch`` and at most 1,000 by default.

    Raises:
        ConfigurationError: one is out of its limits.
    """

    prefetch: int
    coalesce_acks: bool
    grace: float
    hold: float
    consumer_timeout: float
    delivery_limit: int
    max_held: int | None

    def __post_init__(self) -> None:
        if not 1 <= self.prefetch <= _MOST or self.grace < 0 or not 0 <= (self.max_held or 0) <= MAX_HELD:
            raise ConfigurationError(f"prefetch is 1 to 65,535, max_held 0 to {MAX_HELD}, grace not negative")
        if not _MIN_HOLD <= self.hold < self.consumer_timeout:
            raise ConfigurationError("hold is at least 1 second, and shorter than consumer_timeout")

    @property
    def beside(self) -> int:
        """Deliveries held beside the window at most."""
        return min(HELD_PER_PREFETCH * self.prefetch, MAX_HELD) if self.max_held is None else self.max_held


class QueueConsumer:
    """Consumes until it is stopped, in the background of an ``async with`` block or for as long as ``run`` runs.

    Args:
        calls: the client's.
        guard: the pipeline.
        handler: takes a ``Verified``.
        settings: how much it takes and holds.
        dead_letters: where rejected messages go.
        decode: makes ``Verified.value`` of the body, after verification.
        responder: publishes what ``Verified.reply`` is given.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        calls: QueueClient,
        guard: Pipeline,
        handler: Handler,
        settings: Settings,
        *,
        dead_letters: DeadLetterSink,
        decode: Callable[[bytes | None], Any] | None,
        responder: Responder | None,
        sleep: Sleep,
    ) -> None:
        self._calls = calls
        self._guard = guard
        self._grace = settings.grace
        self._processor = Processor(
            calls,
            guard,
            handler,
            dead_letters=dead_letters,
            decode=decode,
            responder=responder,
            hold=settings.hold,
            consumer_timeout=settings.consumer_timeout,
            delivery_limit=settings.delivery_limit,
            capacity=HoldCapacity(settings.beside, issuers=guard.verifier.issuers),
            at_once=settings.prefetch,
            changed=self._look,
            before_requeue=self._suspend,
            on_failure=self._end_by,
            sleep=sleep,
        )
        self._window = Window(calls.queue, guard.clock, self._processor.hold, settings.prefetch)
        self._subscription = Subscription(
            calls, self._window, self._processor, self._on_message, coalesce=settings.coalesce_acks, sleep=sleep
        )
        self._tasks = DeliveryTasks()
        self._on_the_spot = 0
        self._stopping = asyncio.Event()
        self._unsubscribe: Callable[[], None] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    async def run(self, *, signals: bool = False) -> None:
        """Consume until ``stop`` is called or this task is cancelled, then stop gracefully.

        Args:
            signals: stop at SIGTERM and SIGINT too; only in a main thread.

        Raises:
            ConfigurationError: the pipeline or a plug-in is not fit; nothing was lost.
            Exception: the client's own, where the queue cannot be consumed, or a connection that does not come
                back by itself was lost.
        """
        with SignalHandlers(self._stop, enabled=signals):
            async with self:
                await self._stopping.wait()

    async def stop(self) -> None:
        """Take no new messages, let running handlers finish within the grace time, give the rest back.

        However often it is called, or its caller cancelled, it happens once. A handler that calls it is not
        waited for.
        """
        self._tasks.leave_out(asyncio.current_task())
        await asyncio.shield(self._end())

    async def __aenter__(self) -> Self:
        """Start consuming in the background."""
        if self._supervisor is not None:
            raise ConfigurationError("a consumer runs once: make another")
        self._unsubscribe = self._guard.on_change(
            partial(_wake, asyncio.get_running_loop(), self._processor.retrier)
        )
        self._supervisor = asyncio.create_task(self._supervise())
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
        """Stop gracefully, and raise what stopped the consumer if something did."""
        await self.stop()
        if self._window.failure is not None and error is None:
            raise self._window.failure

    def health(self) -> QueueHealth:
        """Return how the consumer is doing now."""
        return self._window.health(
            in_flight=len(self._tasks) + self._on_the_spot,
            unsettled=self._processor.work.unsettled,
            blocked=self._calls.is_blocked(),
        )

    # Deliveries

    async def _on_message(self, native: Any) -> None:
        """Process a delivery on the spot or in a task of ours."""
        calls, acks = self._calls, self._subscription.acks
        if calls.ended(native):
            return  # the broker delivers it again
        if acks is not None:
            acks.opened(calls.tag(native))
        if calls.is_doubtful(native):
            self._tasks.run(self._ask_for_refusal())
        if self._stopping.is_set():
            return self._tasks.run(self._turn_away(native, acks))
        context = copy_context()  # one for all of a delivery
        begun = context.run(self._begun, native, acks)
        if begun is not None:
            self._tasks.run(self._process(native, acks, begun), context)

    async def _ask_for_refusal(self) -> None:
        """End the consumer where its queue may not be consumed."""
        if (refusal := await self._calls.refusal()) is not None:
            self._fail(refusal)

    async def _turn_away(self, native: Any, acks: Acks | None) -> None:
        """Give back what came after the stop began, once nothing is consumed: it would come again at once."""
        await self._subscription.cancelled()
        await self._processor.turn_away(native, acks)

    def _begun(self, native: Any, acks: Acks | None) -> StartedDelivery | None:
        """Begin a delivery on the spot; ``None`` where it is settled, or an error of ours ends the consumer."""
        self._on_the_spot = 1
        try:
            found = self._processor.begin(native, acks)
        except BaseException as error:
            self._fail(error)
            return None
        finally:
            self._on_the_spot = 0
        if isinstance(found, StartedDelivery):
            return found
        self._settled(found)
        return None

    async def _process(self, native: Any, acks: Acks | None, begun: StartedDelivery) -> None:
        """Process a delivery; what ends the consumer was told to it before the delivery was given back."""
        try:
            outcome = await self._processor.process(native, acks, begun)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return self._fail(error)
        if outcome is not None:
            self._settled(outcome)

    def _settled(self, outcome: Outcome) -> None:
        """Note what a delivery came to."""
        if self._window.settled(outcome):
            self._subscription.interrupt()

    def _look(self) -> None:
        """See what follows from what is held now, or no longer."""
        self._subscription.look(len(self._tasks))

    async def _suspend(self, held: HeldDelivery) -> bool:
        """Suspend the queue before a delivery is given back; tell whether it is to stay all the same."""
        return await self._subscription.suspend(held)

    async def _supervise(self) -> None:
        """Keep consuming; what keeps it from that for good ends the consumer."""
        try:
            await self._subscription.run()
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            self._fail(error)

    # The end

    def _fail(self, error: BaseException) -> None:
        """Remember what ends the consumer, for ``run`` to raise, and begin to stop."""
        self._window.fail(error)
        self._end()

    async def _end_by(self, error: BaseException) -> None:
        """Begin to stop because of an error, and return once nothing is consumed any more."""
        self._fail(error)
        await self._subscription.cancelled()

    def _stop(self) -> None:
        """Begin nothing more."""
        self._window.stop()
        self._stopping.set()

    def _end(self) -> asyncio.Task[None]:
        """Begin to stop, once."""
        self._stop()
        if self._ending is None:
            self._ending = asyncio.create_task(self._wind_up())
        return self._ending

    async def _wind_up(self) -> None:
        """Stop consuming, see what runs to its end, and ack what was settled."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._supervisor is not None:
            await self._subscription.end(self._supervisor)
        await self._subscription.cancelled()
        self._processor.retrier.stop()
        await self._tasks.end(self._grace)
        await self._subscription.finish()
        self._processor.work.stopped()


def _wake(loop: asyncio.AbstractEventLoop, retrier: Retrier) -> None:
    """Have a consumer try again what it holds, from any thread."""
    with suppress(RuntimeError):  # its loop has ended meanwhile
        loop.call_soon_threadsafe(retrier.wake)
