"""Carries the deliveries of a queue to their end in an event loop: processed, held, acked or given back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, Final, NamedTuple

import tenacity

from mqauth.brokers.amqp_messages import DEFAULT_DELIVERY_LIMIT
from mqauth.brokers.event_loop import Sleep, Timer, call_later, first_of, was_cancelled
from mqauth.brokers.queue.client import Acks, DeliveryClient
from mqauth.delivery.hold import (
    CONSUMER_TIMEOUT,
    MAX_HELD,
    HeldDelivery,
    Hold,
    is_deferred,
)
from mqauth.delivery.queue_work import INTERRUPTED, QueueLeases, QueueWork
from mqauth.delivery.slot import Slot
from mqauth.errors import StaleDelivery
from mqauth.flow import Waiting, arun, begin, resume
from mqauth.judging.pipeline import Delivery, Handler, Outcome, Pipeline
from mqauth.judging.verified import Decode, Responder, Unverifieds
from mqauth.letters.dead_letter import DeadLetterSink

_WAIT: Final = tenacity.wait_random_exponential(multiplier=0.1, max=5.0)
"""How long a deferred delivery waits before it is tried again."""


class StartedDelivery(NamedTuple):
    """A delivery whose first attempt was started, and that a task is to go on with.

    Args:
        slot: its slot in the window.
        acks: of its channel, with its tag noted as open; ``None`` where it is acked by itself.
        delivery: how far it has come.
        first: the outcome of its first attempt, or what that waits for.
    """

    slot: Slot
    acks: Acks | None
    delivery: Delivery
    first: Outcome | Waiting[Outcome]


class Processor:
    """Takes deliveries of one queue through the pipeline and settles them; deferred ones it holds and tries again.

    Args:
        calls: the client's.
        guard: the pipeline.
        handler: takes a ``Verified``; may be asynchronous. A synchronous one blocks the event loop.
        dead_letters: where rejected messages go.
        decode, unverified, consumer_timeout, delivery_limit: as ``DeliveryOptions`` has them.
        responder: publishes what ``Verified.reply`` is given.
        hold: seconds of a cause that concerns everyone after which the queue is suspended; ``None`` where it
            cannot be, since its consumer is somebody else's.
        max_held: deliveries held beside the window at most.
        at_once: how many of the held deliveries are tried at a time; ``None`` for any number.
        gives_back: whether a delivery that meets an error of ours is given back; else it stays unacked.
        sleep: waits so many seconds.
        timer: calls a function after so many seconds; claims are renewed by it.

    Attributes:
        left: set when a stop waits for the broker no longer.
    """

    def __init__(
        self,
        calls: DeliveryClient,
        guard: Pipeline,
        handler: Handler,
        *,
        dead_letters: DeadLetterSink,
        decode: Decode | None = None,
        responder: Responder | None = None,
        hold: float | None = None,
        consumer_timeout: float = CONSUMER_TIMEOUT,
        delivery_limit: int | None = None,
        max_held: int = MAX_HELD,
        at_once: int | None = None,
        gives_back: bool = False,
        sleep: Sleep = asyncio.sleep,
        timer: Timer = call_later,
        unverified: Unverifieds | None = None,
    ) -> None:
        self._calls = calls
        self._clock = guard.clock
        self._limit = DEFAULT_DELIVERY_LIMIT if delivery_limit is None else delivery_limit
        self._gives_back = gives_back
        self.work = QueueWork(
            calls.queue,
            guard,
            handler,
            dead_letters,
            ended=calls.ended,
            decode=decode,
            answer=responder,
            stops=hold is not None,
            unverified=unverified,
        )
        self.hold = Hold(
            guard.clock,
            seconds=hold,
            consumer_timeout=consumer_timeout,
            max_held=max_held,
            issuers=() if hold is None else guard.verifier.issuers,
        )
        self._turn: AbstractAsyncContextManager[Any] = (
            nullcontext() if at_once is None else asyncio.Semaphore(at_once)
        )
        self._sleep = sleep
        self._woken = asyncio.Event()
        self._leases = LeaseRenewal(guard, timer=timer)
        self.left = asyncio.Event()

    # What only the consumer of a queue knows

    def look(self) -> None:
        """Act on what has begun or ceased to be held."""

    async def suspend(self, held: HeldDelivery) -> bool:
        """Suspend the queue before a delivery is given back for a cause that concerns everyone.

        Returns:
            Whether it is to stay unacked, and to be tried until its cause is over.
        """
        return False

    async def end_by(self, error: BaseException) -> None:
        """End the consumer by an error, and return once nothing is consumed any more."""

    # What is the same for all

    def begin(self, native: Any, acks: Acks | None) -> StartedDelivery | Outcome:
        """Take a new delivery as far as nothing is to be awaited.

        Args:
            native: the delivery.
            acks: of its channel, with its tag noted as open; without them it is not settled here.

        Returns:
            Its outcome where it is settled; else what ``process`` is to be called with, in a task.

        Raises:
            ConfigurationError: the pipeline cannot settle messages; the delivery stays unacked.
        """
        begun = self._begun(native, acks)
        first = begun.first
        if acks is None or isinstance(first, Waiting) or is_deferred(first):
            return begun
        self._noted(native, acks, begun.delivery)
        return first

    async def process(
        self, native: Any, acks: Acks | None = None, begun: StartedDelivery | None = None
    ) -> Outcome | None:
        """Carry a delivery to its end and settle it, or give it back; return ``None`` for one no longer ours.

        A handler that runs is carried to its end even where its channel ends.

        Args:
            native: the delivery.
            acks: of its channel, with its tag noted as open; without them it is acked by itself.
            begun: what ``begin`` returned.

        Raises:
            ConfigurationError: the pipeline cannot settle messages.
            BaseException: what a handler raised that is no ``Exception``; its claim was released.
        """
        if begun is None:
            if self._calls.ended(native):
                return None
            begun = self._begun(native, acks)
        slot, delivery, outcome = begun.slot, begun.delivery, begun.first
        self.work.begin(delivery)
        self._leases.add(delivery, slot.received)
        try:
            if isinstance(outcome, Waiting):
                outcome = await self._attempt(delivery, outcome)
            if is_deferred(outcome):
                outcome = await self._put_off(
                    HeldDelivery(slot, delivery, outcome, self._clock.now())
                )
            if is_deferred(outcome):
                await self._let_go(begun)
            elif begun.acks is not None:
                self._noted(slot.native, begun.acks, delivery)
            elif not self._calls.is_settled(slot.native) and not await self._calls.ack(
                slot.native
            ):
                self.work.lost((delivery,))
            return outcome
        except StaleDelivery:
            await self._let_go(begun)
            return None
        except BaseException as error:
            try:
                await self._failed(begun, error)
            # The grace time of a stop ended meanwhile; that cancels a task once.
            except asyncio.CancelledError:
                await self._let_go(begun)
            raise
        finally:
            if self.work.end(delivery):
                self._leases.remove(delivery)

    async def probe(self, delivery: Delivery) -> bool:
        """Return whether a delivery that was given back would get further now; its handler is not run."""
        try:
            return await arun(self.work.probe(delivery))
        except asyncio.CancelledError:
            # The claim of the probe may be on its way to the store.
            await arun(self.work.end_probe())
            if was_cancelled():
                raise
            return False

    def wake(self) -> None:
        """Try all deferred deliveries again now; some of them may go back instead."""
        woken, self._woken = self._woken, asyncio.Event()
        woken.set()

    async def sleep_until_woken(self, seconds: float) -> None:
        """Wait so many seconds, or until woken."""
        await first_of(self._sleep(seconds), self._woken.wait())

    def _begun(self, native: Any, acks: Acks | None) -> StartedDelivery:
        slot = Slot(native, self._calls, self._clock.monotonic(), self._limit)
        delivery = self.work.receive(
            self._calls.message(native), partial(fence, self._calls, slot)
        )
        return StartedDelivery(slot, acks, delivery, begin(self.work.attempt(delivery)))

    async def _put_off(self, held: HeldDelivery) -> Outcome:
        """Hold a deferred delivery for as long as it may be; return its last outcome."""
        try:
            outcome = await self._retried(held)
            # The queue is suspended where the cause concerns everyone; then some deliveries stay unacked.
            if self.hold.wants_suspension(held) and await self.suspend(held):
                outcome = await self._retried(held)
            if held.is_given_up:
                held.give_up(self._clock.now())
                outcome = await self._retried(held)
            return outcome
        finally:
            held.end()
            self.look()

    async def _retried(self, held: HeldDelivery) -> Outcome:
        """Try a held delivery again, with a jittered back-off, for as long as ``Hold`` allows."""

        async def attempt() -> Outcome:
            async with self._turn:
                outcome = await self._attempt(held.delivery)
            self.hold.attempted(held, outcome)
            if held.waits:
                self.look()
            return outcome

        retrying = tenacity.AsyncRetrying(
            sleep=self.sleep_until_woken,
            wait=_WAIT,
            stop=lambda _: self.hold.is_over(held),
            retry=tenacity.retry_if_result(is_deferred),
            retry_error_callback=lambda _: held.outcome,
        )
        self.hold.put(held)
        self.look()
        try:
            outcome: Outcome = await retrying(attempt)
            return outcome
        finally:
            self.hold.take(held)
            self.look()

    async def _attempt(
        self, delivery: Delivery, begun: Waiting[Outcome] | None = None
    ) -> Outcome:
        try:
            if begun is not None:
                return await resume(begun)
            return await arun(self.work.attempt(delivery))
        except asyncio.CancelledError:
            if was_cancelled():
                raise
            return INTERRUPTED

    async def _failed(self, begun: StartedDelivery, error: BaseException) -> None:
        # Given back only once nothing is consumed any more: it would come again at once.
        if not isinstance(error, asyncio.CancelledError):
            if isinstance(error, Exception) and not self._gives_back:
                return
            await self.end_by(error)
        await self._let_go(begun)

    def _noted(self, native: Any, acks: Acks, delivery: Delivery) -> None:
        """Have a delivery acked soon, unless its handler settled it itself."""
        tag = self._calls.tag(native)
        if self._calls.is_settled(native):
            acks.gone(tag)
        else:
            acks.settle(tag, delivery)

    async def _let_go(self, begun: StartedDelivery) -> None:
        """Give a delivery back unhandled: its claim released, its progress kept."""
        if await arun(self.work.let_go(begun.delivery)):
            await self._give_back(begun.slot, begun.acks)

    async def _give_back(self, slot: Slot, acks: Acks | None) -> None:
        native = slot.native
        if (
            not self.work.returns(slot)
            or self._calls.is_settled(native)
            or not slot.is_ours
        ):
            return
        # Before the call: where that is cancelled while the socket is drained, the requeue was sent all the
        # same, and a second one would close the channel.
        slot.given_back()
        requeue = asyncio.ensure_future(self._calls.requeue(native))
        await first_of(asyncio.wait((requeue,)), self.left.wait())
        # The tag stays open until the requeue was sent: an ack of many could cover it meanwhile.
        if requeue.done() and requeue.result() and acks is not None:
            acks.gone(self._calls.tag(native))


class LeaseRenewal(QueueLeases):
    """Renews the claims of handlers that run long; its one timer stops while nothing is in flight.

    Args:
        guard: the pipeline that made the claims.
        timer: calls a function after so many seconds.
    """

    def __init__(self, guard: Pipeline, *, timer: Timer = call_later) -> None:
        super().__init__(guard.lease)
        self._guard = guard
        self._timer = timer
        self._ticking = False
        self._renewing: asyncio.Task[None] | None = None

    def add(self, delivery: Delivery, since: float) -> None:
        """Renew the claim of a delivery, made at ``since``, monotonic seconds, until ``remove``."""
        super().add(delivery, since)
        if not self._ticking:
            self._ticking = True
            self._timer(self.every, self._tick)

    def _tick(self) -> None:
        self._ticking = bool(self)
        if not self._ticking:
            return
        self._timer(self.every, self._tick)
        # A renewal that hangs in the store is not joined by a second one.
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(arun(self.renewing(self._guard)))


def fence(
    calls: DeliveryClient, slot: Slot, delivery: Delivery
) -> Awaitable[None] | None:
    """Let a delivery's next step pass, now or after a round trip on its channel: the ``fence`` of a ``Delivery``.

    Raises:
        StaleDelivery: it is not ours any more.
    """
    unproven = slot.unproven(delivery)
    if unproven is None:
        return None

    async def prove() -> None:
        slot.answered(unproven, lives=await calls.lives(slot.native))

    return prove()
