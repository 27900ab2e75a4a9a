"""A consumer of a queue in an event loop, for every such client: keeps consuming, sees trouble through, winds up.

A delivery is begun on the spot, and what is to be awaited runs in a task of ours: a client may cancel its own when
a connection is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self

import tenacity

from mqauth.brokers.queue_acks import Acks, Send
from mqauth.brokers.queue_delivery import Begun, DeliveryCalls, Processor
from mqauth.brokers.queue_hold import Holder, Sleep
from mqauth.brokers.queue_tasks import Signals, Tasks
from mqauth.deadletter import DeadLetterSink
from mqauth.delivery.facts import QueueHealth
from mqauth.delivery.hold import Held
from mqauth.delivery.room import MAX_HELD, PER_PLACE, Room
from mqauth.delivery.window import PROBE_WAIT, PROBE_WAIT_MAX, Window
from mqauth.errors import ConfigurationError
from mqauth.pipeline import Handler, Outcome, Pipeline
from mqauth.verified import Responder

_MIN_HOLD: Final = 1.0
_MOST: Final = 65_535
_STARTED_WITHIN: Final = 1.0
"""Seconds that a call has at a stop which begins to consume: a client may close the channel of a cancelled one."""
_LOG: Final = logging.getLogger("mqauth.delivery")
Take = Callable[[Any], Awaitable[None]]


class Opened(NamedTuple):
    """A channel on which to consume.

    Args:
        channel: the client's.
        send: sends its acks.
    """

    channel: Any
    send: Send


class QueueCalls(DeliveryCalls, Protocol):
    """What is asked of a client for one queue."""

    reopens: bool
    """Whether a channel that was lost comes back by itself, so that consuming is tried again."""

    def watch(self, closed: Callable[[str, bool], None], cancelled: Callable[[str], None]) -> None:
        """Tell from now on what happens to the channel.

        Args:
            closed: gets why it ended, and whether its connection did not.
            cancelled: gets the tag of a consumer that the broker cancelled.
        """
        ...

    def unwatch(self) -> None:
        """Tell so no longer."""
        ...

    async def ready(self) -> None:
        """Wait until the channel is open."""
        ...

    async def open(self, prefetch: int) -> Opened:
        """Set the window of the channel."""
        ...

    async def consume(self, channel: Any, take: Take) -> str:
        """Have each delivery on an opened channel given to ``take``; return the consumer's tag."""
        ...

    async def cancel(self, consumer: str) -> None:
        """Cancel a consumer, and return when nothing more of it comes; logs where its channel is gone."""
        ...

    def passes(self, error: BaseException) -> bool:
        """Tell whether what kept it from consuming may pass."""
        ...

    def is_blocked(self) -> bool:
        """Tell whether the broker has blocked the connection."""
        ...

    def is_doubtful(self, native: Any) -> bool:
        """Tell, once, whether a delivery looks like one of a queue that may not be consumed; ``refusal`` says."""
        ...

    async def refusal(self) -> ConfigurationError | None:
        """Return why the queue may not be consumed, where it may not."""
        ...


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
        return min(PER_PLACE * self.prefetch, MAX_HELD) if self.max_held is None else self.max_held


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
        calls: QueueCalls,
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
        self._settings = settings
        self._sleep = sleep
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
            room=Room(settings.beside, issuers=guard.verifier.issuers),
            at_once=settings.prefetch,
            changed=self._look,
            before_requeue=self._suspend,
            on_failure=self._end_by,
            sleep=sleep,
        )
        self._window = Window(calls.queue, guard.clock, self._processor.hold, settings.prefetch)
        self._acks: Acks | None = None
        self._tasks = Tasks()
        self._on_the_spot = 0
        self._started = asyncio.Event()
        self._interrupted = asyncio.Event()
        self._stopping = asyncio.Event()
        self._answered = asyncio.Event()
        self._unsubscribe: Callable[[], None] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._cancelling: asyncio.Task[None] | None = None
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
        with Signals(self._stop, enabled=signals):
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
        self._calls.watch(self._on_close, self._on_cancel)
        self._unsubscribe = self._guard.on_change(
            partial(_wake, asyncio.get_running_loop(), self._processor.holder)
        )
        self._supervisor = asyncio.create_task(self._supervise())
        await asyncio.wait(
            (started := asyncio.ensure_future(self._started.wait()), self._supervisor),
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
        calls, acks = self._calls, self._acks
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
        await self._cancelled()
        await self._processor.turn_away(native, acks)

    def _begun(self, native: Any, acks: Acks | None) -> Begun | None:
        """Begin a delivery on the spot; ``None`` where it is settled, or an error of ours ends the consumer."""
        self._on_the_spot = 1
        try:
            found = self._processor.begin(native, acks)
        except BaseException as error:
            self._fail(error)
            return None
        finally:
            self._on_the_spot = 0
        if isinstance(found, Begun):
            return found
        self._settled(found)
        return None

    async def _process(self, native: Any, acks: Acks | None, begun: Begun) -> None:
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
            self._interrupted.set()

    def _look(self) -> None:
        """See what follows from what is held now, or no longer."""
        if self._window.passes_by(len(self._tasks)):
            self._interrupted.set()
        if self._window.stalled is not None and self._window.stalled.is_over:
            self._answered.set()

    # Consuming

    async def _supervise(self) -> None:
        """Keep consuming: start, wait for trouble, see it through, start again."""
        try:
            while not self._stopping.is_set():
                self._window.absence.begin()
                await self._start()
                self._started.set()
                if self._window.stalled is None:
                    await self._trouble()
                # where there is a tag yet, the queue is suspended, or consumed anew with another window
                await self._cancelled()
                if self._window.stalled is not None:
                    await self._until_answered(self._window.stalled)
        except Exception as error:
            self._fail(error)

    async def _start(self) -> None:
        """Consume; on a channel that was fine before and comes back by itself, tried again until it can be had."""
        if not self._started.is_set() or not self._calls.reopens:
            return await self._consume()
        retrying = tenacity.AsyncRetrying(
            sleep=self._sleep,
            wait=tenacity.wait_random_exponential(multiplier=PROBE_WAIT, max=PROBE_WAIT_MAX),
            stop=tenacity.stop_never,
            retry=tenacity.retry_if_exception(self._calls.passes),
            before_sleep=self._failed_to_start,
        )
        await retrying(self._consume)

    def _failed_to_start(self, attempt: tenacity.RetryCallState) -> None:
        """Note why it could not consume."""
        self._window.absence.failed(None if attempt.outcome is None else attempt.outcome.exception())

    async def _consume(self) -> None:
        """Set the window and consume; a reconnect comes back here, so that the window is set first."""
        await self._calls.ready()
        self._interrupted.clear()
        opened = await self._calls.open(self._window.prefetch)
        self._window.opens()
        self._acks = self._acks_of(opened)
        self._window.consumes(await self._calls.consume(opened.channel, self._on_message))

    def _acks_of(self, opened: Opened) -> Acks | None:
        """Return the acks of a channel: the same while it lives, whose tags go on counting."""
        if not self._settings.coalesce_acks:
            return None
        if self._acks is None or self._acks.channel is not opened.channel:
            self._acks = Acks(opened.channel, opened.send, lost=self._processor.work.lost)
        self._acks.window = self._window.prefetch
        return self._acks

    async def _trouble(self) -> None:
        """Wait until consuming is interrupted; a window of 1 is opened again after a long calm."""
        try:
            await asyncio.wait_for(self._interrupted.wait(), self._window.calm())
        except TimeoutError:
            self._window.widen()

    def _on_close(self, why: str, channel_alone: bool) -> None:
        """Note that the channel ended."""
        self._interrupted.set()
        if self._acks is not None:
            self._acks.close()
        self._window.lost(why, channel_alone=channel_alone)

    def _on_cancel(self, consumer: str) -> None:
        """Start again after the broker itself cancelled the consumer."""
        if self._window.cancelled(consumer):
            self._interrupted.set()

    async def _cancelled(self) -> None:
        """Cancel the consumer at the broker, once, and return when nothing more comes."""
        if self._cancelling is None or self._cancelling.done():
            self._cancelling = asyncio.create_task(self._cancel())
        await asyncio.shield(self._cancelling)

    async def _cancel(self) -> None:
        """Cancel the consumer at the broker, if it has one."""
        if (consumer := self._window.leave()) is not None:
            await self._calls.cancel(consumer)

    # Suspension

    async def _suspend(self, held: Held) -> bool:
        """Cancel the consumer before a delivery is given back; tell whether it is to stay all the same."""
        self._processor.holder.suspend()
        stays = self._window.suspend(held)
        await self._cancelled()
        self._interrupted.set()
        return stays

    async def _until_answered(self, held: Held) -> None:
        """Wait until a deferred delivery gets further, tried by itself or probed with ever more slowly."""
        if not held.stays:
            await self._probed(held)
        while held.stays and not held.is_over:
            self._answered.clear()
            await self._answered.wait()
        self._processor.holder.go_on()
        self._window.go_on()

    async def _probed(self, held: Held) -> None:
        """Probe with a delivery that was given back, ever more slowly, until it would get further."""
        retrying = tenacity.AsyncRetrying(
            sleep=self._processor.holder.doze,
            wait=tenacity.wait_random_exponential(multiplier=self._window.probe_wait, max=PROBE_WAIT_MAX),
            stop=tenacity.stop_never,
            retry=tenacity.retry_if_result(lambda answered: answered is not True),
        )
        await self._sleep(0)
        await retrying(self._processor.probe, held.delivery)

    # The end

    def _fail(self, error: BaseException) -> None:
        """Remember what ends the consumer, for ``run`` to raise, and begin to stop."""
        self._window.fail(error)
        self._end()

    async def _end_by(self, error: BaseException) -> None:
        """Begin to stop because of an error, and return once nothing is consumed any more."""
        self._fail(error)
        await self._cancelled()

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
            await self._end_supervising(self._supervisor)
        await self._cancelled()
        self._processor.holder.stop()
        await self._tasks.end(self._settings.grace)
        if self._acks is not None:
            await self._acks.finish()
        self._calls.unwatch()
        self._processor.work.stopped()

    async def _end_supervising(self, supervisor: asyncio.Task[None]) -> None:
        """End the task that keeps consuming."""
        self._interrupted.set()
        if self._window.absence.lasts:
            await asyncio.wait((supervisor,), timeout=_STARTED_WITHIN)
        supervisor.cancel()
        await asyncio.gather(supervisor, return_exceptions=True)


def _wake(loop: asyncio.AbstractEventLoop, holder: Holder) -> None:
    """Have a consumer try again what it holds, from any thread."""
    with suppress(RuntimeError):  # its loop has ended meanwhile
        loop.call_soon_threadsafe(holder.wake)
