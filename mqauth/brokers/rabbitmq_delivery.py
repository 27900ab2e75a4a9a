"""One RabbitMQ delivery from broker to settlement: processed, held while the world is out of reach, acked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Final, NamedTuple

from aio_pika.abc import AbstractIncomingMessage

from mqauth.brokers.rabbitmq_acks import Acks
from mqauth.brokers.rabbitmq_channel import is_stale, was_cancelled
from mqauth.brokers.rabbitmq_hold import CONSUMER_TIMEOUT, DEFAULT_HOLD, Held, Holder, Sleep
from mqauth.brokers.rabbitmq_leases import Leases
from mqauth.brokers.rabbitmq_slot import Slot
from mqauth.brokers.rabbitmq_topology import DEFAULT_DELIVERY_LIMIT
from mqauth.brokers.rabbitmq_translate import from_native
from mqauth.brokers.timer import Timer, call_later
from mqauth.deadletter import DeadLetterSink
from mqauth.delivery.progress import Progress, again
from mqauth.delivery.room import Room
from mqauth.errors import Cause, Reason, Rejection, StaleDelivery
from mqauth.flow import Waiting, arun, begin, resume
from mqauth.pipeline import Delivery, Handler, Outcome, Pipeline, Step, Verdict
from mqauth.verified import Responder, Verified, decoded, equip

_LOG: Final = logging.getLogger("mqauth.rabbitmq")
LEFT: Final = (
    "%s: %d messages at their last delivery were not settled; when the connection closes the broker puts them away"
    " without record and letter, where the queue has a dead-letter exchange there"
)
_DEFERRED: Final = Verdict.DEFERRED  # Python 3.11 takes its time to look a member up


class Begun(NamedTuple):
    """A delivery that a task is to go on with.

    Args:
        slot: its place in the window.
        delivery: how far it has come.
        first: what its first attempt came to, or waits for.
    """

    slot: Slot
    delivery: Delivery
    first: Outcome | Waiting[Outcome]


class Processor:
    """Carries deliveries of one queue through the pipeline and settles them.

    Args:
        queue: name of the queue.
        guard: the pipeline.
        handler: takes a ``Verified``; of either colour, though a synchronous one blocks the event loop.
        dead_letters: where rejected messages go.
        decode: makes ``Verified.value`` of the body, after verification.
        responder: publishes what ``Verified.reply`` is given.
        hold: seconds after which a cause of all suspends the queue.
        consumer_timeout: seconds after which the broker closes a channel for a delivery that is not acked.
        delivery_limit: how often the broker may be given a message back; negative for any number.
        room: counts what is held.
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
        queue: str,
        guard: Pipeline,
        handler: Handler,
        *,
        dead_letters: DeadLetterSink,
        decode: Callable[[bytes | None], Any] | None = None,
        responder: Responder | None = None,
        hold: float = DEFAULT_HOLD,
        consumer_timeout: float = CONSUMER_TIMEOUT,
        delivery_limit: int = DEFAULT_DELIVERY_LIMIT,
        room: Room | None = None,
        at_once: int | None = None,
        changed: Callable[[], None] = lambda: None,
        before_requeue: Callable[[Held], Awaitable[bool]] | None = None,
        on_failure: Callable[[BaseException], Awaitable[None]] | None = None,
        sleep: Sleep = asyncio.sleep,
        timer: Timer = call_later,
    ) -> None:
        self._queue = queue
        self._guard = guard
        self._handler = handler
        self._dead_letters = dead_letters
        self._decode = decode
        self._responder = responder
        self._before_requeue = before_requeue
        self._on_failure = on_failure
        self._limit = delivery_limit
        self.holder = Holder(
            queue,
            guard.clock,
            self._attempt,
            room=Room() if room is None else room,
            hold=None if before_requeue is None else hold,
            consumer_timeout=consumer_timeout,
            at_once=at_once,
            sleep=sleep,
            changed=changed,
        )
        self._leases = Leases(guard, timer=timer)
        self._progress = Progress(guard, is_stale)
        self.unsettled = 0
        self.left = 0

    def begin(self, incoming: AbstractIncomingMessage, acks: Acks | None) -> Begun | None:
        """Take a delivery as far as nothing is to be awaited; ``None`` where it is settled.

        Args:
            incoming: the delivery, of this moment.
            acks: of its channel, which know of it; without them it is not settled here.

        Returns:
            What ``process`` goes on with, in a task: nothing else may happen to the delivery.

        Raises:
            ConfigurationError: the pipeline cannot settle messages; the delivery stays unacked.
        """
        begun = self._begun(incoming, acks)
        first = begun.first
        if acks is None or isinstance(first, Waiting) or first.verdict is _DEFERRED:
            return begun
        if incoming.processed:
            acks.gone(incoming.delivery_tag or 0)
        else:
            acks.settle(incoming.delivery_tag or 0, begun.delivery)
        return None

    async def process(
        self, incoming: AbstractIncomingMessage, acks: Acks | None = None, begun: Begun | None = None
    ) -> Outcome | None:
        """Carry a delivery to its end and settle it, or give it back; ``None`` for one no longer ours.

        Args:
            incoming: the delivery.
            acks: of its channel, which know of it; without, it is acked by itself.
            begun: what ``begin`` returned; a handler that runs is carried to its end even where its channel ends.

        Raises:
            ConfigurationError: the pipeline cannot settle messages.
            BaseException: what a handler raised that is no ``Exception``. Its claim was released.
        """
        if begun is None and is_stale(incoming):
            return None
        begun = begun or self._begun(incoming, acks)
        slot, delivery = begun.slot, begun.delivery
        self._progress.begin(delivery)
        self._leases.add(delivery, slot.received)
        try:
            return await self._to_its_end(begun)
        except StaleDelivery:
            await self._let_go(slot, delivery)
            return None
        except BaseException as error:
            await self._failed(slot, delivery, error)
            raise
        finally:
            self._leases.remove(delivery)
            self._progress.end(delivery)

    async def _failed(self, slot: Slot, delivery: Delivery, error: BaseException) -> None:
        """Give back a delivery whose task ends, once nothing is consumed any more: it would come again at once."""
        if not isinstance(error, asyncio.CancelledError):
            if self._on_failure is not None:
                await self._on_failure(error)
            elif isinstance(error, Exception):
                return
        await self._let_go(slot, delivery)

    def _begun(self, incoming: AbstractIncomingMessage, acks: Acks | None) -> Begun:
        """Begin a delivery, with what is known of an earlier one."""
        delivery = self._progress.receive(from_native(incoming, queue=self._queue))
        since = self._guard.clock.monotonic()
        slot = Slot(incoming, acks, since, self._limit)
        delivery.fence = self._progress.fenced(delivery, slot.fence) if delivery.deferred else slot.fence
        first = begin(self._guard.process(delivery, self._handle, self._dead_letters))
        return Begun(slot, delivery, first)

    async def probe(self, delivery: Delivery) -> bool:
        """Tell whether a deferred delivery that was given back would get further now; its handler is not run."""
        if delivery.step is Step.HANDLE:
            await arun(self._guard.release(delivery))
            return delivery.claim is None
        if delivery.step is not Step.JUDGE:
            try:
                return (await self._attempt(delivery)).verdict is not Verdict.DEFERRED
            except StaleDelivery:
                return True  # it got as far as what was given back may get
        trial = again(delivery.message, delivery)
        outcome = await arun(self._guard.judge(trial))
        await self._release(trial)
        delivery.owner = trial.owner
        return outcome.verdict is not Verdict.DEFERRED

    async def _to_its_end(self, begun: Begun) -> Outcome:
        """Process, hold while deferred, then settle or give back."""
        slot, delivery, outcome = begun.slot, begun.delivery, begun.first
        if isinstance(outcome, Waiting):
            outcome = await self._attempt(delivery, outcome)
        if outcome.verdict is Verdict.DEFERRED:
            outcome = await self._put_off(Held(slot, delivery, outcome, self._guard.clock.now()))
        if outcome.verdict is Verdict.DEFERRED:
            await self._let_go(slot, delivery)
        else:
            await self._settle(slot, delivery)
        return outcome

    async def _put_off(self, held: Held) -> Outcome:
        """Hold a deferred delivery for as long as it may be; returns its last outcome."""
        _LOG.warning("deferred on %s: %s", self._queue, held.outcome.cause)
        try:
            outcome = await self.holder.hold(held)
            if outcome.verdict is Verdict.DEFERRED and await self._stays(held):
                outcome = await self.holder.hold(held)
            if outcome.verdict is Verdict.DEFERRED and held.is_given_up:
                self._give_up(held)
                outcome = await self.holder.hold(held)
            held.goes_back = outcome.verdict is Verdict.DEFERRED and held.slot.is_ours
            return outcome
        finally:
            held.ended.set()

    async def _stays(self, held: Held) -> bool:
        """Suspend the queue where the cause is everybody's; tell whether the delivery is to stay all the same."""
        everyones = held.everyones_since is not None or self.holder.suspended.is_set()
        if self._before_requeue is None or not everyones or held.is_kept or not held.slot.is_ours:
            return False
        held.stays = await self._before_requeue(held)
        return held.stays

    def _give_up(self, held: Held) -> None:
        """Reject a message whose handler asked for another time until its last delivery was over."""
        seconds = self._guard.clock.now() - held.delivery.received
        detail = (
            f"put off {held.put_off} times in its last delivery, in all for {seconds:.0f} s: {held.outcome.detail}"
        )
        held.delivery.reject(Rejection(Reason.HANDLER_FAILED, detail), Step.RELEASE)

    @property
    def held(self) -> Collection[Held]:
        """What is deferred now."""
        return self.holder.held.values()

    async def turn_away(self, incoming: AbstractIncomingMessage, acks: Acks | None) -> None:
        """Give back what came too late, unjudged."""
        await self._give_back(Slot(incoming, acks, self._guard.clock.monotonic(), self._limit))

    async def _attempt(self, delivery: Delivery, begun: Waiting[Outcome] | None = None) -> Outcome:
        """Take the delivery as far as the world allows."""
        try:
            if begun is not None:
                return await resume(begun)
            return await arun(self._guard.process(delivery, self._handle, self._dead_letters))
        except asyncio.CancelledError:
            if was_cancelled():
                raise
            # aiormq cancels the futures of a lost connection, and the handler awaited one of them
            detail = "what the handler waited for was cancelled"
            return Outcome(verdict=Verdict.DEFERRED, cause=Cause.HANDLER_DEFERRED, detail=detail)

    def _handle(self, verified: Verified) -> Any:
        """Call the handler with a message it can answer and whose value is decoded."""
        if self._decode is None and self._responder is None:
            return self._handler(verified)
        value = decoded(verified, self._decode)
        return self._handler(equip(verified, responder=self._responder, value=value))

    async def _settle(self, slot: Slot, delivery: Delivery) -> None:
        """Ack, now or soon, unless the handler did so itself."""
        if not await slot.settle(delivery, f"ack on {self._queue}"):
            self.lost((delivery,))

    def lost(self, deliveries: Sequence[Delivery]) -> None:
        """Keep the progress of settled deliveries that could not be acked: the broker delivers them again."""
        self.unsettled += len(deliveries)
        for delivery in deliveries:
            self._progress.keep(delivery)

    async def _let_go(self, slot: Slot, delivery: Delivery) -> None:
        """Give a delivery back unhandled: its claim released, its progress kept, requeued once."""
        await self._release(delivery)
        self._progress.keep(delivery)
        if delivery.step is not Step.SETTLE:  # acked, perhaps: twice would close the channel
            await self._give_back(slot)

    async def _release(self, delivery: Delivery) -> None:
        """Release a delivery's claim, be it one that the store may have taken although its answer was lost."""
        if delivery.step is not Step.JUDGE or delivery.claim is not None:
            await arun(self._guard.release(delivery))

    async def _give_back(self, slot: Slot) -> None:
        """Requeue a delivery, unless it is its last: that would put it away without record and letter."""
        if not slot.is_last:
            return await slot.give_back(f"requeue on {self._queue}")
        self.left += 1
        # who can be stopped says so once more then, of all together
        level = logging.CRITICAL if self._before_requeue is None else logging.WARNING
        _LOG.log(level, LEFT, self._queue, 1)
