"""Keeps a queue consumed in an event loop: begins, waits for trouble, sees it through, and begins again."""

from __future__ import annotations

import asyncio
from typing import Final

import tenacity

from mqauth.brokers.queue.channel import Acks
from mqauth.brokers.queue.client import OpenChannel, QueueClient, Take
from mqauth.brokers.queue.processor import Processor
from mqauth.brokers.queue.retrier import Sleep
from mqauth.delivery.hold import HeldDelivery
from mqauth.delivery.window import PROBE_WAIT, PROBE_WAIT_MAX, Window

_STARTED_WITHIN: Final = 1.0
"""Seconds that a call has at a stop which begins to consume: a client may close the channel of a cancelled one."""


class Subscription:
    """The consumer at the broker.

    Args:
        calls: the client's.
        window: says what is wanted.
        processor: has what is held, and tries it.
        take: gets each delivery.
        coalesce: ack many deliveries in one frame.
        sleep: waits so many seconds.

    Attributes:
        acks: of the channel that is consumed on; ``None`` where each delivery is acked by itself.
        started: set once the queue was consumed.
    """

    def __init__(
        self, calls: QueueClient, window: Window, processor: Processor, take: Take, *, coalesce: bool, sleep: Sleep
    ) -> None:
        self._calls = calls
        self._window = window
        self._processor = processor
        self._take = take
        self._coalesce = coalesce
        self._sleep = sleep
        self.acks: Acks | None = None
        self.started = asyncio.Event()
        self._interrupted = asyncio.Event()
        self._answered = asyncio.Event()
        self._cancelling: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Keep consuming until nothing more is begun.

        Raises:
            Exception: the client's own, where the queue cannot be consumed.
        """
        self._calls.watch(self._on_close, self._on_cancel)
        while not self._window.stopping:
            self._window.outage.begin()
            await self._start()
            self.started.set()
            if self._window.stalled is None:
                await self._trouble()
            # where there is a tag yet, the queue is suspended, or consumed anew with another window
            await self.cancelled()
            if self._window.stalled is not None:
                await self._until_answered(self._window.stalled)

    def interrupt(self) -> None:
        """Consume anew, with the window as it is now."""
        self._interrupted.set()

    def look(self, busy: int) -> None:
        """See what follows from what is held now, or no longer.

        Args:
            busy: deliveries under way, the held ones included.
        """
        if self._window.passes_by(busy):
            self._interrupted.set()
        if self._window.stalled is not None and self._window.stalled.is_over:
            self._answered.set()

    async def suspend(self, held: HeldDelivery) -> bool:
        """Cancel the consumer before a delivery is given back; tell whether it is to stay all the same."""
        self._processor.retrier.suspend()
        stays = self._window.suspend(held)
        await self.cancelled()
        self._interrupted.set()
        return stays

    async def cancelled(self) -> None:
        """Cancel the consumer at the broker, once, and return when nothing more comes."""
        if self._cancelling is None or self._cancelling.done():
            self._cancelling = asyncio.create_task(self._cancel())
        await asyncio.shield(self._cancelling)

    async def end(self, running: asyncio.Task[None]) -> None:
        """End the task that runs ``run``; a call with which it begins to consume has a moment to return."""
        self._interrupted.set()
        if self._window.outage.lasts:
            await asyncio.wait((running,), timeout=_STARTED_WITHIN)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    async def finish(self) -> None:
        """Ack what was settled, and be told of the channel no longer."""
        if self.acks is not None:
            await self.acks.finish()
        self._calls.unwatch()

    async def _start(self) -> None:
        """Consume; on a channel that was fine before and comes back by itself, tried again until it can be had."""
        if not self.started.is_set() or not self._calls.reopens:
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
        self._window.outage.failed(None if attempt.outcome is None else attempt.outcome.exception())

    async def _consume(self) -> None:
        """Set the window and consume; a reconnect comes back here, so that the window is set first."""
        await self._calls.ready()
        self._interrupted.clear()
        opened = await self._calls.open(self._window.prefetch)
        self._window.opens()
        self.acks = self._acks_of(opened)
        self._window.consumes(await self._calls.consume(opened.channel, self._take))

    def _acks_of(self, opened: OpenChannel) -> Acks | None:
        """Return the acks of a channel: the same while it lives, whose tags go on counting."""
        if not self._coalesce:
            return None
        if self.acks is None or self.acks.channel is not opened.channel:
            self.acks = Acks(opened.channel, opened.send, lost=self._processor.work.lost)
        self.acks.window = self._window.prefetch
        return self.acks

    async def _trouble(self) -> None:
        """Wait until consuming is interrupted; a window of 1 is opened again after a long calm."""
        try:
            await asyncio.wait_for(self._interrupted.wait(), self._window.calm())
        except TimeoutError:
            self._window.widen()

    def _on_close(self, why: str, channel_alone: bool) -> None:
        """Note that the channel ended."""
        self._interrupted.set()
        if self.acks is not None:
            self.acks.close()
        self._window.lost(why, channel_alone=channel_alone)

    def _on_cancel(self, consumer: str) -> None:
        """Start again after the broker itself cancelled the consumer."""
        if self._window.cancelled(consumer):
            self._interrupted.set()

    async def _cancel(self) -> None:
        """Cancel the consumer at the broker, if it has one."""
        if (consumer := self._window.leave()) is not None:
            await self._calls.cancel(consumer)

    async def _until_answered(self, held: HeldDelivery) -> None:
        """Wait until a deferred delivery gets further, tried by itself or probed with ever more slowly."""
        if not held.stays:
            await self._probed(held)
        while held.stays and not held.is_over:
            self._answered.clear()
            await self._answered.wait()
        self._processor.retrier.go_on()
        self._window.go_on()

    async def _probed(self, held: HeldDelivery) -> None:
        """Probe with a delivery that was given back, ever more slowly, until it would get further."""
        retrying = tenacity.AsyncRetrying(
            sleep=self._processor.retrier.doze,
            wait=tenacity.wait_random_exponential(multiplier=self._window.probe_wait, max=PROBE_WAIT_MAX),
            stop=tenacity.stop_never,
            retry=tenacity.retry_if_result(lambda answered: answered is not True),
        )
        await self._sleep(0)
        await retrying(self._processor.probe, held.delivery)
