"""One RabbitMQ delivery from broker to settlement: processed, held while the world is out of reach, acked."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import tenacity
from aio_pika.abc import AbstractIncomingMessage

from mqauth.brokers.rabbitmq_acks import Acks
from mqauth.brokers.rabbitmq_channel import is_stale, was_cancelled
from mqauth.brokers.rabbitmq_leases import Leases, Timer, call_later
from mqauth.brokers.rabbitmq_progress import Progress, again
from mqauth.brokers.rabbitmq_slot import Slot
from mqauth.brokers.rabbitmq_translate import from_native
from mqauth.deadletter import DeadLetterSink
from mqauth.errors import Cause, StaleDelivery
from mqauth.flow import Waiting, arun, begin, resume
from mqauth.pipeline import Delivery, Handler, Outcome, Pipeline, Step, Verdict
from mqauth.verified import Responder, Verified, decoded, equip

_LOG: Final = logging.getLogger("mqauth.rabbitmq")
_WAIT: Final = 0.1
_WAIT_MAX: Final = 5.0
OWN_CAUSES: Final = frozenset((Cause.CLAIM_HELD, Cause.HANDLER_DEFERRED))
"""Causes that concern one message, not a dependency of all."""
_DEFERRED: Final = Verdict.DEFERRED  # Python 3.11 takes its time to look a member up
Sleep = Callable[[float], Awaitable[Any]]


@dataclass(slots=True)
class Held:
    """A delivery that is deferred.

    Args:
        delivery: how far it has come.
        outcome: why.
        since: UTC seconds.
        stays: whether it stays unacked while its consumer is suspended.
        ended: set once one that stays waits no longer.
    """

    delivery: Delivery
    outcome: Outcome
    since: float
    stays: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def needs_ours(self) -> bool:
        """Whether trying it is the only way to find out that its cause is over, and needs it to be ours.

        Nothing may be recorded or buried of what was given back: somebody else may have handled it.
        """
        return self.delivery.step is Step.RECORD or self.delivery.step is Step.BURY


class Begun(NamedTuple):
    """A delivery that a task is to go on with.

    Args:
        slot: its place in the window.
        delivery: how far it has come.
        since: when it was begun, monotonic seconds.
        first: what its first attempt came to, or waits for.
    """

    slot: Slot
    delivery: Delivery
    since: float
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
        hold: seconds a deferred delivery is kept unacked.
        before_requeue: awaited before a delivery is given back for a cause that is not its own; true where it is
            to stay unacked, and to be tried until its cause is over.
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
        hold: float = 60,
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
        self._hold_seconds = hold
        self._before_requeue = before_requeue
        self._on_failure = on_failure
        self._sleep = sleep
        self._leases = Leases(guard, timer=timer)
        self._progress = Progress(guard)
        self.hurry = asyncio.Event()
        self._stopping = asyncio.Event()
        self._woken = asyncio.Event()
        self.held: dict[int, Held] = {}
        self.unsettled = 0

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
        self._progress.begin(incoming, delivery)
        self._leases.add(delivery, begun.since)
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
        slot = Slot(incoming, acks)
        delivery.fence = slot.fence
        since = self._guard.clock.monotonic()
        first = begin(self._guard.process(delivery, self._handle, self._dead_letters))
        return Begun(slot, delivery, since, first)

    async def probe(self, delivery: Delivery) -> bool:
        """Tell whether a deferred delivery that was given back would get further now; its handler is not run."""
        if delivery.step is Step.HANDLE:
            await arun(self._guard.release(delivery))
            return _is_at(delivery, Step.JUDGE)
        if delivery.step is not Step.JUDGE:
            try:
                return (await self._attempt(delivery)).verdict is not Verdict.DEFERRED
            except StaleDelivery:
                return True  # it got as far as what was given back may get
        trial = again(delivery.message, delivery)
        outcome = await arun(self._guard.judge(trial))
        if trial.step is not Step.JUDGE:
            await arun(self._guard.release(trial))
        delivery.owner = trial.owner
        return outcome.verdict is not Verdict.DEFERRED

    async def _to_its_end(self, begun: Begun) -> Outcome:
        """Process, hold while deferred, then settle or give back."""
        slot, delivery, outcome = begun.slot, begun.delivery, begun.first
        if isinstance(outcome, Waiting):
            outcome = await self._attempt(delivery, outcome)
        if outcome.verdict is Verdict.DEFERRED:
            outcome = await self._hold(slot, delivery, outcome)
        if outcome.verdict is not Verdict.DEFERRED:
            await self._settle(slot, delivery)
            return outcome
        everyones = self.hurry.is_set() or outcome.cause not in OWN_CAUSES
        if self._before_requeue is not None and everyones and slot.is_ours:
            held = Held(delivery, outcome, self._guard.clock.now())
            if await self._before_requeue(held):
                return await self._stay(slot, held)
        await self._let_go(slot, delivery)
        return outcome

    async def _stay(self, slot: Slot, held: Held) -> Outcome:
        """Hold a delivery while the consumer is suspended, until its cause is over or the consumer stops."""
        delivery = held.delivery
        try:
            outcome = await self._hold(slot, delivery, held.outcome, stays=True)
            if outcome.verdict is Verdict.DEFERRED:
                await self._let_go(slot, delivery)
            else:
                await self._settle(slot, delivery)
            return outcome
        finally:
            held.ended.set()

    def stop(self) -> None:
        """Have all that is deferred given back."""
        self._stopping.set()
        self.hurry.set()

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

    async def _hold(self, slot: Slot, delivery: Delivery, outcome: Outcome, *, stays: bool = False) -> Outcome:
        """Try a deferred delivery again, with jittered exponential back-off, for as long as it may be held."""
        clock = self._guard.clock
        started = clock.monotonic()
        limit = math.inf if stays else self._hold_seconds
        hurry = self._stopping if stays else self.hurry
        self.held[id(delivery)] = Held(delivery, outcome, clock.now())
        _LOG.warning("deferred on %s: %s", self._queue, outcome.cause)
        retrying = tenacity.AsyncRetrying(
            sleep=partial(self._pause, hurry),
            wait=tenacity.wait_random_exponential(multiplier=_WAIT, max=_WAIT_MAX),
            stop=lambda _: clock.monotonic() - started >= limit or hurry.is_set() or _is_pointless(slot, delivery),
            retry=tenacity.retry_if_result(lambda result: result.verdict is Verdict.DEFERRED),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else outcome,
        )
        try:
            result: Outcome = await retrying(self._attempt, delivery)
            return result
        finally:
            self.held.pop(id(delivery), None)

    def wake(self) -> None:
        """Have what is deferred tried again now."""
        woken, self._woken = self._woken, asyncio.Event()
        woken.set()

    async def doze(self, seconds: float) -> None:
        """Wait so many seconds, or until woken."""
        await self._first(self._sleep(seconds), self._woken.wait())

    async def _pause(self, hurry: asyncio.Event, seconds: float) -> None:
        """Wait so many seconds, or until woken or told to hurry."""
        await self._first(self._sleep(seconds), self._woken.wait(), hurry.wait())

    async def _first(self, *wanted: Awaitable[Any]) -> None:
        """Wait for the first of these."""
        waits = [asyncio.ensure_future(wait) for wait in wanted]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

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
        if delivery.step is not Step.JUDGE:
            await arun(self._guard.release(delivery))
        self._progress.keep(delivery)
        if delivery.step is not Step.SETTLE:  # acked, perhaps: twice would close the channel
            await slot.give_back(f"requeue on {self._queue}")


def _is_pointless(slot: Slot, delivery: Delivery) -> bool:
    """Tell whether a delivery that is not ours any more waits for something that its handler does not need."""
    return not slot.is_ours and delivery.step is not Step.CONFIRM and delivery.step is not Step.RELEASE


def _is_at(delivery: Delivery, step: Step) -> bool:
    """Tell whether a delivery has come to a step."""
    return delivery.step is step
