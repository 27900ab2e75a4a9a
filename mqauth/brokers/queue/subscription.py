"""Keeps a queue consumed in an event loop: consumes, waits until that ends or must end, and consumes anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Final

import tenacity

from mqauth.brokers.event_loop import DeliveryTasks, Sleep
from mqauth.brokers.queue.client import Acks, QueueClient, UnansweredError, prove
from mqauth.brokers.queue.processor import Processor, StartedDelivery
from mqauth.delivery.hold import HELD_PER_PREFETCH, MAX_HELD, SUSPENDS_AFTER, HeldDelivery
from mqauth.delivery.slot import Slot
from mqauth.delivery.window import PROBES, Window
from mqauth.judging.pipeline import Handler, Outcome, Pipeline

PREFETCH: Final = 10
"""Default of deliveries at once."""
AFTER_CANCEL: Final = 1.0
"""Seconds for which a queue is left alone after the broker has cancelled its consumer.

RabbitMQ 4.0 ends the connection (541) of whoever consumes a quorum queue while it is being deleted.
"""


class Subscription(Processor):
    """The consumer at the broker: has deliveries sent, takes each to its end, and suspends the queue.

    Args:
        calls: the client's.
        guard: the pipeline.
        handler: takes a ``Verified``.
        fail: begins to stop the consumer because of an error.
        prefetch, coalesce_acks, hold, max_held, sleep: as ``QueueOptions`` has them.
        settings: as ``Processor`` has them.

    Attributes:
        window: says what to ask the broker for.
        tasks: of the deliveries.
        acks: of the channel that is consumed on; ``None`` where each delivery is acked by itself.
        started: set once the queue was consumed.
        interrupted: set where consuming ended, or is to end.
    """

    def __init__(
        self,
        calls: QueueClient,
        guard: Pipeline,
        handler: Handler,
        *,
        fail: Callable[[BaseException], object],
        prefetch: int = PREFETCH,
        coalesce_acks: bool = True,
        hold: float = SUSPENDS_AFTER,
        max_held: int | None = None,
        sleep: Sleep = asyncio.sleep,
        **settings: Any,
    ) -> None:
        beside = (
            min(HELD_PER_PREFETCH * prefetch, MAX_HELD) if max_held is None else max_held
        )
        super().__init__(
            calls,
            guard,
            handler,
            hold=hold,
            max_held=beside,
            at_once=prefetch,
            gives_back=True,
            sleep=sleep,
            **settings,
        )
        self._calls: QueueClient = calls
        self._times = guard.verifier.times
        self._coalesce = coalesce_acks
        self._fail = fail
        self.window = Window(calls.queue, guard.clock, self.hold, prefetch)
        self.tasks = DeliveryTasks()
        self.in_callback = 0
        self.acks: Acks | None = None
        self.started = asyncio.Event()
        self.interrupted = asyncio.Event()
        self._answered = asyncio.Event()
        self._starting = asyncio.Lock()
        self._withdrawn = False
        self._type_unknown = True
        self._cancelling: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Keep consuming until the consumer stops.

        Raises:
            Exception: the client's own, where the queue cannot be consumed.
        """
        self._calls.watch(self._on_close, self._on_cancel)
        while not self.window.stopping:
            self.window.begins()
            if self._withdrawn:
                self._withdrawn = False
                await self._sleep(AFTER_CANCEL)
            await self._start()
            self.started.set()
            # A window of 1 is opened again after a long time without a loss.
            if self.window.stalled is None:
                try:
                    await asyncio.wait_for(self.interrupted.wait(), self.window.calm())
                except TimeoutError:
                    self.window.widen()
            # Where the broker still has our consumer, the queue is suspended or consumed anew with another window.
            await self.cancelled()
            if self.window.stalled is not None:
                await self._until_cause_is_over(self.window.stalled)

    # A suspension: begun before a delivery goes back, seen by ``run``, over when that delivery gets further

    async def suspend(self, held: HeldDelivery) -> bool:
        """Cancel the consumer before a delivery is given back; return whether it is to stay unacked instead."""
        # Woken once: those that go back follow, and those that stay are not tried again for each of them.
        if not self.hold.suspended:
            self.hold.suspended = True
            self.wake()
        stays = self.window.suspend(held)
        await self.cancelled()
        self.interrupted.set()
        return stays

    def look(self) -> None:
        """Act on what has begun or ceased to be held: consume anew beside it, or see that a suspension ends."""
        if self.window.passes_by(len(self.tasks)):
            self.interrupted.set()
        if self.window.stalled is not None and self.window.stalled.is_over:
            self._answered.set()

    async def _until_cause_is_over(self, held: HeldDelivery) -> None:
        """Wait until the delivery for which the queue is suspended gets further."""
        # Probed with only once it was given back: a probe could settle what is still to be given back.
        while not held.is_over:
            self._answered.clear()
            await self._answered.wait()
        # One that was given back is probed with, ever more slowly, until it would get further.
        if held.waits and not held.needs_ours:
            retrying = tenacity.AsyncRetrying(
                sleep=self.sleep_until_woken,
                wait=tenacity.wait_random_exponential(
                    multiplier=self.window.probe_wait, max=PROBES.longest
                ),
                stop=tenacity.stop_never,
                retry=tenacity.retry_if_result(lambda answered: answered is not True),
            )
            await retrying(self.probe, held.delivery)
        self.hold.suspended = False
        self.window.go_on()

    # Deliveries

    async def take(self, native: Any) -> None:
        """Process a delivery at once, and go on in a task of ours where something is to be awaited.

        A client may cancel its own task when a connection is lost, and with it a handler in the middle.
        """
        calls, acks = self._calls, self.acks
        # The broker delivers it again.
        if calls.ended(native):
            return
        if acks is not None:
            acks.opened(calls.tag(native))
        if self._type_unknown and calls.may_be_refused(native):
            self._type_unknown = False

            async def ask() -> None:
                if (refusal := await calls.refusal()) is not None:
                    self._fail(refusal)

            self.tasks.run(ask())
        if self.window.stopping:
            # Given back only once nothing is consumed any more: it would come again at once.
            self.tasks.run(self._turn_away(native, acks))
            return
        # One context for both parts, so that what instrumentation sets in the first is there in the second.
        context = copy_context()
        self.in_callback = 1
        try:
            begun = context.run(self.begin, native, acks)
        except BaseException as error:
            self._fail(error)
            return
        finally:
            self.in_callback = 0
        if isinstance(begun, StartedDelivery):
            self.tasks.run(self._carry(native, acks, begun), context)
        else:
            self._settled(begun)

    async def _turn_away(self, native: Any, acks: Acks | None) -> None:
        await self.cancelled()
        await self._give_back(
            Slot(native, self._calls, self._clock.monotonic(), self._limit), acks
        )

    async def _carry(
        self, native: Any, acks: Acks | None, begun: StartedDelivery
    ) -> None:
        try:
            outcome = await self.process(native, acks, begun)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fail(error)
            return
        if outcome is not None:
            self._settled(outcome)

    def _settled(self, outcome: Outcome) -> None:
        if self.window.settled(outcome):
            # Consumed anew, with the window as it is now.
            self.interrupted.set()

    # The end

    async def end_by(self, error: BaseException) -> None:
        """Begin to stop because of an error, and return once nothing is consumed any more."""
        self._fail(error)
        await self.cancelled()

    async def cancelled(self) -> None:
        """Cancel the consumer at the broker, once, and return when no more deliveries come.

        A consumer that is being started is waited for, and cancelled then.
        """

        async def cancel() -> None:
            # A consumer that is being started has no tag yet.
            async with self._starting:
                consumer = self.window.leave()
            if consumer is not None:
                await self._calls.cancel(consumer)

        if self._cancelling is None or self._cancelling.done():
            self._cancelling = asyncio.create_task(cancel())
        await asyncio.shield(self._cancelling)

    async def _start(self) -> None:
        """Consume; where the channel comes back by itself, retry what an outage kept it from.

        Before it was possible once only an unanswered question is known to be that.
        """

        def may_pass(error: BaseException) -> bool:
            known = self.started.is_set() or isinstance(error, UnansweredError)
            if (
                passes := known
                and self._calls.reopens
                and self._calls.is_temporary(error)
            ):
                self.window.cannot(error)
            return passes

        retrying = tenacity.AsyncRetrying(
            sleep=self._sleep,
            wait=tenacity.wait_random_exponential(
                multiplier=PROBES.first, max=PROBES.longest
            ),
            stop=tenacity.stop_never,
            retry=tenacity.retry_if_exception(may_pass),
        )
        await retrying(self._consume)

    async def _consume(self) -> None:
        # The window is set each time, since a channel that was opened anew has none.
        await self._calls.ready()
        self.interrupted.clear()
        async with self._starting:
            # Suspended meanwhile: a consumer would get what is being given back.
            if self.window.stalled is not None:
                return self.window.consumes(None)
            opened = await self._calls.open(self.window.prefetch)
            # each connection anew: the broker may have another configuration by now
            await prove(self._times, opened.connection, opened.ask)
            self.window.opens()
            if self._coalesce:
                # The same ones while the channel lives, since its tags go on counting.
                if self.acks is None or self.acks.channel is not opened.channel:
                    self.acks = Acks(opened.channel, opened.send, lost=self.work.lost)
                self.acks.window = self.window.prefetch
            self.window.consumes(await self._calls.consume(opened.channel, self.take))

    def _on_close(self, why: str, channel_alone: bool) -> None:
        self.interrupted.set()
        if self.acks is not None:
            self.acks.close()
        self.window.lost(why, channel_alone=channel_alone)

    def _on_cancel(self, consumer: str) -> None:
        # While a consumer is being started its tag is not known yet. Its cancel may come in one read with the
        # answer that has the tag, before the task that waits for the answer goes on.
        if self.window.consumer is None or self.window.cancelled(consumer):
            self._withdrawn = True
            self.interrupted.set()
