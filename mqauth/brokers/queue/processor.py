"""Carries the deliveries of a queue to their end inside an event loop: processed, held, acked or given back.

Renews claims while handlers run long: one timer a consumer, and nothing at all for a short handler.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, NamedTuple

from mqauth.brokers.event_loop import Timer, call_later, was_cancelled
from mqauth.brokers.queue.channel import Acks
from mqauth.brokers.queue.client import DeliveryClient
from mqauth.brokers.queue.retrier import Retrier, Sleep
from mqauth.delivery.hold import CONSUMER_TIMEOUT, SUSPENDS_AFTER, HeldDelivery, Hold, HoldCapacity, is_deferred
from mqauth.delivery.queue_work import INTERRUPTED, QueueLeases, QueueWork
from mqauth.delivery.slot import NO_LIMIT, Slot
from mqauth.errors import Rejection, StaleDelivery
from mqauth.flow import Waiting, arun, begin, resume
from mqauth.judging.pipeline import Delivery, Handler, Outcome, Pipeline
from mqauth.judging.verified import Responder
from mqauth.letters.dead_letter import DeadLetterSink

_LOG: Final = logging.getLogger("mqauth.delivery")


class StartedDelivery(NamedTuple):
    """A delivery that a task is to go on with.

    Args:
        slot: its place in the window.
        acks: of its channel, which know of it; without, it is acked by itself.
        delivery: how far it has come.
        first: what its first attempt came to, or waits for.
    """

    slot: Slot
    acks: Acks | None
    delivery: Delivery
    first: Outcome | Waiting[Outcome]


class Processor:
    """Carries deliveries of one queue through the pipeline and settles them.

    Args:
        calls: the client's.
        guard: the pipeline.
        handler: takes a ``Verified``; of either colour, though a synchronous one blocks the event loop.
        dead_letters: where rejected messages go.
        decode: makes ``Verified.value`` of the body, after verification.
        responder: publishes what ``Verified.reply`` is given.
        hold: seconds after which a cause of all suspends the queue.
        consumer_timeout: seconds after which the broker closes a channel for a delivery that is not acked.
        delivery_limit: how often the broker may be given a message back; negative for any number.
        capacity: counts what is held.
        at_once: how many of what is held are tried at a time; ``None`` for any number.
        before_requeue: awaited before a delivery is given back for a cause of all; true where it is to stay
            unacked, and to be tried until its cause is over. Without, nothing can be suspended.
        changed: called when something begins or ceases to be held.
        on_failure: awaited with what ends the consumer, before the delivery that met it is given back; without,
            a delivery that meets an error of ours stays unacked.
        sleep: waits so many seconds.
        timer: calls a function after so many seconds; claims are renewed by it.
    """

    def __init__(
        self,
        calls: DeliveryClient,
        guard: Pipeline,
        handler: Handler,
        *,
        dead_letters: DeadLetterSink,
        decode: Callable[[bytes | None], Any] | None = None,
        responder: Responder | None = None,
        hold: float = SUSPENDS_AFTER,
        consumer_timeout: float = CONSUMER_TIMEOUT,
        delivery_limit: int = NO_LIMIT,
        capacity: HoldCapacity | None = None,
        at_once: int | None = None,
        changed: Callable[[], None] = lambda: None,
        before_requeue: Callable[[HeldDelivery], Awaitable[bool]] | None = None,
        on_failure: Callable[[BaseException], Awaitable[None]] | None = None,
        sleep: Sleep = asyncio.sleep,
        timer: Timer = call_later,
    ) -> None:
        self._calls = calls
        self._clock = guard.clock
        self._limit = delivery_limit
        self._changed = changed
        self._before_requeue = before_requeue
        self._on_failure = on_failure
        self.work = QueueWork(
            calls.queue, guard, handler, dead_letters,
            ended=calls.ended, decode=decode, answer=responder, stops=before_requeue is not None,
        )  # fmt: skip
        self.hold = Hold(
            guard.clock,
            HoldCapacity() if capacity is None else capacity,
            seconds=None if before_requeue is None else hold,
            consumer_timeout=consumer_timeout,
        )
        self.retrier = Retrier(self.hold, self._attempt, at_once=at_once, sleep=sleep, changed=changed)
        self._leases = LeaseRenewal(guard, timer=timer)

    def begin(self, native: Any, acks: Acks | None) -> StartedDelivery | Outcome:
        """Take a delivery as far as nothing is to be awaited.

        Args:
            native: the delivery, of this moment.
            acks: of its channel, which know of it; without them it is not settled here.

        Returns:
            What it came to, where it is settled; else what ``process`` goes on with, in a task: nothing else may
            happen to the delivery.

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
        """Carry a delivery to its end and settle it, or give it back; ``None`` for one no longer ours.

        Args:
            native: the delivery.
            acks: of its channel, which know of it; without, it is acked by itself.
            begun: what ``begin`` returned; a handler that runs is carried to its end even where its channel ends.

        Raises:
            ConfigurationError: the pipeline cannot settle messages.
            BaseException: what a handler raised that is no ``Exception``. Its claim was released.
        """
        if begun is None and self._calls.ended(native):
            return None
        begun = begun or self._begun(native, acks)
        delivery = begun.delivery
        self.work.begin(delivery)
        self._leases.add(delivery, begun.slot.received)
        try:
            return await self._to_its_end(begun)
        except StaleDelivery:
            await self._let_go(begun)
            return None
        except BaseException as error:
            try:
                await self._failed(begun, error)
            except asyncio.CancelledError:  # the grace of a stop ended meanwhile, which cancels a task once
                await self._let_go(begun)
            raise
        finally:
            self._leases.remove(delivery)
            self.work.end(delivery)

    async def turn_away(self, native: Any, acks: Acks | None) -> None:
        """Give back what came too late, unjudged."""
        await self._give_back(self._slot(native), acks)

    async def probe(self, delivery: Delivery) -> bool:
        """Tell whether a deferred delivery that was given back would get further now; its handler is not run."""
        try:
            return await arun(self.work.probe(delivery))
        except asyncio.CancelledError:
            await arun(self.work.end_probe())  # its claim may be on the way to the store
            if was_cancelled():
                raise
            return False

    def _slot(self, native: Any) -> Slot:
        """Return the place of a delivery of this moment."""
        return Slot(native, self._calls, self._clock.monotonic(), self._limit)

    def _begun(self, native: Any, acks: Acks | None) -> StartedDelivery:
        """Begin a delivery, with what is known of an earlier one."""
        slot = self._slot(native)
        delivery = self.work.receive(self._calls.message(native), partial(passes, self._calls, slot))
        return StartedDelivery(slot, acks, delivery, begin(self.work.attempt(delivery)))

    async def _to_its_end(self, begun: StartedDelivery) -> Outcome:
        """Process, hold while deferred, then settle or give back."""
        slot, delivery, outcome = begun.slot, begun.delivery, begun.first
        if isinstance(outcome, Waiting):
            outcome = await self._attempt(delivery, outcome)
        if is_deferred(outcome):
            outcome = await self._put_off(HeldDelivery(slot, delivery, outcome, self._clock.now()))
        if is_deferred(outcome):
            await self._let_go(begun)
        else:
            await self._settle(begun)
        return outcome

    async def _put_off(self, held: HeldDelivery) -> Outcome:
        """Hold a deferred delivery for as long as it may be; returns its last outcome."""
        _LOG.warning("deferred on %s: %s", self._calls.queue, held.outcome.cause)
        try:
            outcome = await self.retrier.hold(held)
            if await self._stays(held):
                outcome = await self.retrier.hold(held)
            if held.is_given_up:
                held.give_up(self._clock.now())
                outcome = await self.retrier.hold(held)
            return outcome
        finally:
            held.end()
            self._changed()

    async def _stays(self, held: HeldDelivery) -> bool:
        """Suspend the queue where a cause is everybody's; tell whether the delivery is to stay all the same."""
        if self._before_requeue is None or not self.hold.wants_suspension(held):
            return False
        return await self._before_requeue(held)

    async def _attempt(self, delivery: Delivery, begun: Waiting[Outcome] | None = None) -> Outcome:
        """Take the delivery as far as the world allows."""
        try:
            if begun is not None:
                return await resume(begun)
            return await arun(self.work.attempt(delivery))
        except asyncio.CancelledError:
            if was_cancelled():
                raise
            return INTERRUPTED

    async def _failed(self, begun: StartedDelivery, error: BaseException) -> None:
        """Give back a delivery whose task ends, once nothing is consumed any more: it would come again at once."""
        if not isinstance(error, asyncio.CancelledError):
            if self._on_failure is not None:
                await self._on_failure(error)
            elif isinstance(error, Exception):
                return
        await self._let_go(begun)

    async def _settle(self, begun: StartedDelivery) -> None:
        """Ack, now or soon, unless the handler did so itself."""
        native, acks, delivery = begun.slot.native, begun.acks, begun.delivery
        if acks is not None:
            self._noted(native, acks, delivery)
        elif not self._calls.is_settled(native) and not await self._calls.ack(native):
            self.work.lost((delivery,))

    def _noted(self, native: Any, acks: Acks, delivery: Delivery) -> None:
        """Have a delivery acked soon, unless its handler did so itself."""
        tag = self._calls.tag(native)
        if self._calls.is_settled(native):
            acks.gone(tag)
        else:
            acks.settle(tag, delivery)

    async def _let_go(self, begun: StartedDelivery) -> None:
        """Give a delivery back unhandled: its claim released, its progress kept, requeued once."""
        if await arun(self.work.let_go(begun.delivery)):
            await self._give_back(begun.slot, begun.acks)

    async def _give_back(self, slot: Slot, acks: Acks | None) -> None:
        """Requeue a delivery that is ours to return, unless the handler settled it itself."""
        native = slot.native
        if not self.work.returns(slot) or self._calls.is_settled(native) or not slot.is_ours:
            return
        # Before the call: one that is cancelled while it is drained was sent, and a second closes the channel.
        slot.given_back()
        if await self._calls.requeue(native) and acks is not None:
            acks.gone(self._calls.tag(native))  # never before it was given back, or an ack would cover it


def passes(calls: DeliveryClient, slot: Slot, delivery: Delivery) -> Awaitable[None] | None:
    """Let a delivery's next step pass, now or after a round trip on its channel: the ``fence`` of a ``Delivery``.

    Raises:
        StaleDelivery: it is not ours any more.
    """
    unproven = slot.unproven(delivery)
    return None if unproven is None else _prove(calls, slot, unproven)


async def _prove(calls: DeliveryClient, slot: Slot, rejection: Rejection) -> None:
    """Ask the broker whether the delivery was ours when it was rejected."""
    slot.answered(rejection, lives=await calls.lives(slot.native))


class LeaseRenewal:
    """Renews what is due; the timer stops when nothing is in flight.

    Args:
        guard: the pipeline that claimed.
        timer: calls a function after so many seconds.
    """

    def __init__(self, guard: Pipeline, *, timer: Timer = call_later) -> None:
        self._guard = guard
        self._timer = timer
        self._tended = QueueLeases(guard.lease)
        self._ticking = False
        self._renewing: asyncio.Task[None] | None = None
        self.remove = self._tended.remove

    def add(self, delivery: Delivery, since: float) -> None:
        """Keep the claim of a delivery that was made at ``since``, monotonic seconds, until ``remove``."""
        self._tended.add(delivery, since)
        if not self._ticking:
            self._ticking = True
            self._timer(self._tended.every, self._tick)

    async def renew(self) -> None:
        """Renew the claims that are due."""
        for delivery in self._tended.due(self._guard.clock.monotonic()):
            if not await arun(self._guard.renew(delivery)):
                self._tended.lost(delivery)

    def _tick(self) -> None:
        """Renew what is due, unless the last time is not over, and come again while anything is in flight."""
        self._ticking = bool(self._tended)
        if not self._ticking:
            return
        self._timer(self._tended.every, self._tick)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self.renew())
