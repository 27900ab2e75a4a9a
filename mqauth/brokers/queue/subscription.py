"""Keeps a queue consumed in an event loop: consumes, waits until that ends or must end, and consumes anew."""

from __future__ import annotations

import asyncio
from typing import Final

import tenacity

from mqauth.brokers.event_loop import Leaving, Sleep
from mqauth.brokers.queue.channel import Acks
from mqauth.brokers.queue.client import QueueClient, Take
from mqauth.brokers.queue.interceptor import UnansweredError, prove
from mqauth.brokers.queue.processor import Processor
from mqauth.delivery.hold import HeldDelivery
from mqauth.delivery.window import PROBES, Window
from mqauth.judging.token import Times

AFTER_CANCEL: Final = 1.0
"""Seconds for which a queue is left alone after the broker has cancelled its consumer.

RabbitMQ 4.0 ends the connection (541) of whoever consumes a quorum queue while it is being deleted.
"""
_STARTED_WITHIN: Final = 1.0
"""Seconds that a stop gives a call that begins to consume: a client may close the channel of a cancelled call."""


class Subscription:
    """The consumer at the broker.

    Args:
        calls: the client's.
        window: says what to ask for.
        processor: has the held deliveries, and tries them.
        take: gets each delivery.
        times: of the verifier: whether the broker has to prove its append times.
        coalesce: whether to ack many deliveries in one frame.
        sleep: waits so many seconds.

    Attributes:
        acks: of the channel that is consumed on; ``None`` where each delivery is acked by itself.
        started: set once the queue was consumed.
    """

    def __init__(
        self, calls: QueueClient, window: Window, processor: Processor, take: Take, *, times: Times,
        coalesce: bool, sleep: Sleep,
    ) -> None:  # fmt: skip
        self._calls = calls
        self._times = times
        self._window = window
        self._processor = processor
        self._take = take
        self._coalesce = coalesce
        self._sleep = sleep
        self.acks: Acks | None = None
        self.started = asyncio.Event()
        self._interrupted = asyncio.Event()
        self._answered = asyncio.Event()
        self._starting = asyncio.Lock()
        self._withdrawn = False
        self._cancelling: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Keep consuming until the consumer stops.

        Raises:
            Exception: the client's own, where the queue cannot be consumed.
        """
        self._calls.watch(self._on_close, self._on_cancel)
        while not self._window.stopping:
            self._window.outage.begin()
            if self._withdrawn:
                self._withdrawn = False
                await self._sleep(AFTER_CANCEL)
            await self._start()
            self.started.set()
            # A window of 1 is opened again after a long time without a loss.
            if self._window.stalled is None:
                try:
                    await asyncio.wait_for(self._interrupted.wait(), self._window.calm())
                except TimeoutError:
                    self._window.widen()
            # Where the broker still has our consumer, the queue is suspended or consumed anew with another window.
            await self.cancelled()
            if self._window.stalled is not None:
                await self._until_cause_is_over(self._window.stalled)

    def interrupt(self) -> None:
        """Consume anew, with the window as it is now."""
        self._interrupted.set()

    def look(self, busy: int) -> None:
        """Act on what has begun or ceased to be held.

        Args:
            busy: deliveries in work, the held ones included.
        """
        if self._window.passes_by(busy):
            self._interrupted.set()
        if self._window.stalled is not None and self._window.stalled.is_over:
            self._answered.set()

    async def suspend(self, held: HeldDelivery) -> bool:
        """Cancel the consumer before a delivery is given back; return whether it is to stay unacked instead."""
        self._processor.retrier.suspend()
        stays = self._window.suspend(held)
        await self.cancelled()
        self._interrupted.set()
        return stays

    async def cancelled(self) -> None:
        """Cancel the consumer at the broker, once, and return when no more deliveries come.

        A consumer that is being started is waited for, and cancelled then.
        """
        if self._cancelling is None or self._cancelling.done():
            self._cancelling = asyncio.create_task(self._cancel())
        await asyncio.shield(self._cancelling)

    async def end(self, running: asyncio.Task[None], leaving: Leaving) -> None:
        """End the task that runs ``run``, while there is time."""
        self._interrupted.set()
        # A call that begins to consume has a moment to return.
        if self._window.outage.lasts:
            await leaving.wait(asyncio.wait((running,), timeout=_STARTED_WITHIN))
        running.cancel()
        await leaving.wait(asyncio.wait((running,)))

    async def finish(self, leaving: Leaving) -> None:
        """Ack what was settled, while there is time, and watch the channel no longer."""
        if self.acks is not None:
            await leaving.wait(self.acks.finish())
        self._calls.unwatch()

    async def _start(self) -> None:
        """Consume; where the channel comes back by itself, retry what an outage kept it from.

        Before it was possible once only an unanswered question is known to be that.
        """
        if not self._calls.reopens:
            return await self._consume()
        retrying = tenacity.AsyncRetrying(
            sleep=self._sleep,
            wait=tenacity.wait_random_exponential(multiplier=PROBES.first, max=PROBES.longest),
            stop=tenacity.stop_never,
            retry=tenacity.retry_if_exception(self._may_pass),
            before_sleep=self._failed_to_start,
        )
        await retrying(self._consume)

    def _may_pass(self, error: BaseException) -> bool:
        known = self.started.is_set() or isinstance(error, UnansweredError)
        return known and self._calls.is_temporary(error)

    def _failed_to_start(self, attempt: tenacity.RetryCallState) -> None:
        self._window.outage.failed(None if attempt.outcome is None else attempt.outcome.exception())

    async def _consume(self) -> None:
        # The window is set each time, since a channel that was opened anew has none.
        await self._calls.ready()
        self._interrupted.clear()
        async with self._starting:
            # Suspended meanwhile: a consumer would get what is being given back.
            if self._window.stalled is not None:
                return self._window.outage.end()
            opened = await self._calls.open(self._window.prefetch)
            # each connection anew: the broker may have another configuration by now
            await prove(self._times, opened.connection, opened.ask)
            self._window.opens()
            if self._coalesce:
                # The same ones while the channel lives, since its tags go on counting.
                if self.acks is None or self.acks.channel is not opened.channel:
                    self.acks = Acks(opened.channel, opened.send, lost=self._processor.work.lost)
                self.acks.window = self._window.prefetch
            self._window.consumes(await self._calls.consume(opened.channel, self._take))

    def _on_close(self, why: str, channel_alone: bool) -> None:
        self._interrupted.set()
        if self.acks is not None:
            self.acks.close()
        self._window.lost(why, channel_alone=channel_alone)

    def _on_cancel(self, consumer: str) -> None:
        # While a consumer is being started its tag is not known yet. Its cancel may come in one read with the
        # answer that has the tag, before the task that waits for the answer goes on.
        if self._window.consumer is None or self._window.cancelled(consumer):
            self._withdrawn = True
            self._interrupted.set()

    async def _cancel(self) -> None:
        # A consumer that is being started has no tag yet.
        async with self._starting:
            consumer = self._window.leave()
        if consumer is not None:
            await self._calls.cancel(consumer)

    async def _until_cause_is_over(self, held: HeldDelivery) -> None:
        """Wait until the delivery for which the queue is suspended gets further."""
        # Probed with only once it was given back: a probe could settle what is still to be given back.
        while not held.is_over:
            self._answered.clear()
            await self._answered.wait()
        # One that was given back is probed with, ever more slowly, until it would get further.
        if held.waits and not held.needs_ours:
            retrying = tenacity.AsyncRetrying(
                sleep=self._processor.retrier.sleep_until_woken,
                wait=tenacity.wait_random_exponential(multiplier=self._window.probe_wait, max=PROBES.longest),
                stop=tenacity.stop_never,
                retry=tenacity.retry_if_result(lambda answered: answered is not True),
            )
            await retrying(self._processor.probe, held.delivery)
        self._processor.retrier.go_on()
        self._window.go_on()
