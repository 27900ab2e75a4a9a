"""One RabbitMQ delivery from broker to settlement: processed, held while the world is out of reach, acked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import tenacity
from aio_pika.abc import AbstractIncomingMessage

from mqauth.brokers.rabbitmq_acks import Acks
from mqauth.brokers.rabbitmq_channel import is_stale, told, was_cancelled
from mqauth.brokers.rabbitmq_leases import Leases, Timer, call_later
from mqauth.brokers.rabbitmq_progress import Progress, again
from mqauth.brokers.rabbitmq_translate import from_native
from mqauth.deadletter import DeadLetterSink
from mqauth.errors import Cause
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
    """A delivery that is deferred, and why and since when (UTC seconds)."""

    delivery: Delivery
    outcome: Outcome
    since: float


class Begun(NamedTuple):
    """A delivery that a task is to go on with.

    Args:
        delivery: how far it has come.
        since: when it was begun, monotonic seconds.
        first: what its first attempt came to, or waits for.
    """

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
        before_requeue: awaited before a delivery is given back for a cause that is not its own.
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
        before_requeue: Callable[[Held], Awaitable[None]] | None = None,
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
        self._sleep = sleep
        self._leases = Leases(guard, timer=timer)
        self._progress = Progress(guard)
        self.hurry = asyncio.Event()
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
        begun = self._begun(incoming)
        first = begun.first
        if acks is None or isinstance(first, Waiting) or first.verdict is _DEFERRED:
            return begun
        if incoming.processed:
            _gone(incoming, acks)
        else:
            acks.settle(_tag(incoming), begun.delivery)
        return None

    async def process(
        self, incoming: AbstractIncomingMessage, acks: Acks | None = None, begun: Begun | None = None
    ) -> Outcome | None:
        """Carry a delivery to its end and settle it, or give it back; ``None`` for one no longer ours.

        Args:
            incoming: the delivery.
            acks: of its channel, which know of it; without, it is acked by itself.
            begun: what ``begin`` returned; it is carried to its end even where its channel was lost since.

        Raises:
            ConfigurationError: the pipeline cannot settle messages; the delivery stays unacked.
        """
        if begun is None and is_stale(incoming):
            return None
        begun = begun or self._begun(incoming)
        delivery = begun.delivery
        self._progress.begin(incoming, delivery)
        self._leases.add(delivery, begun.since)
        try:
            return await self._to_its_end(incoming, begun, acks)
        except asyncio.CancelledError:
            await self._let_go(incoming, delivery, acks)
            raise
        finally:
            self._leases.remove(delivery)
            self._progress.end(delivery)

    def _begun(self, incoming: AbstractIncomingMessage) -> Begun:
        """Begin a delivery, with what is known of an earlier one."""
        delivery = self._progress.receive(from_native(incoming, queue=self._queue))
        since = self._guard.clock.monotonic()
        return Begun(delivery, since, begin(self._guard.process(delivery, self._handle, self._dead_letters)))

    async def probe(self, delivery: Delivery) -> bool:
        """Tell whether a deferred delivery would get further now; its handler is not run."""
        if delivery.step is not Step.JUDGE:
            return (await self._attempt(delivery)).verdict is not Verdict.DEFERRED
        trial = again(delivery.message, delivery)
        outcome = await arun(self._guard.judge(trial))
        if trial.step is not Step.JUDGE:
            await arun(self._guard.release(trial))
        delivery.owner = trial.owner
        return outcome.verdict is not Verdict.DEFERRED

    async def _to_its_end(self, incoming: AbstractIncomingMessage, begun: Begun, acks: Acks | None) -> Outcome:
        """Process, hold while deferred, then settle or give back."""
        delivery, outcome = begun.delivery, begun.first
        if isinstance(outcome, Waiting):
            outcome = await self._attempt(delivery, outcome)
        if outcome.verdict is Verdict.DEFERRED:
            outcome = await self._hold(incoming, delivery, outcome)
        if outcome.verdict is not Verdict.DEFERRED:
            await self._settle(incoming, delivery, acks)
            return outcome
        everyones = self.hurry.is_set() or outcome.cause not in OWN_CAUSES
        if self._before_requeue is not None and everyones and not is_stale(incoming):
            await self._before_requeue(Held(delivery, outcome, self._guard.clock.now()))
        await self._let_go(incoming, delivery, acks)
        return outcome

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

    async def _hold(self, incoming: AbstractIncomingMessage, delivery: Delivery, outcome: Outcome) -> Outcome:
        """Try a deferred delivery again, with jittered exponential back-off, for as long as it may be held."""
        clock = self._guard.clock
        started = clock.monotonic()
        self.held[id(delivery)] = Held(delivery, outcome, clock.now())
        _LOG.warning("deferred on %s: %s", self._queue, outcome.cause)
        retrying = tenacity.AsyncRetrying(
            sleep=self._pause,
            wait=tenacity.wait_random_exponential(multiplier=_WAIT, max=_WAIT_MAX),
            stop=lambda _: clock.monotonic() - started >= self._hold_seconds or self._is_over(incoming, delivery),
            retry=tenacity.retry_if_result(lambda result: result.verdict is Verdict.DEFERRED),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else outcome,
        )
        try:
            result: Outcome = await retrying(self._attempt, delivery)
            return result
        finally:
            self.held.pop(id(delivery), None)

    def _is_over(self, incoming: AbstractIncomingMessage, delivery: Delivery) -> bool:
        """Tell whether holding is pointless: told to hurry, or not ours any more and nothing begun."""
        return self.hurry.is_set() or (delivery.step is Step.JUDGE and is_stale(incoming))

    def wake(self) -> None:
        """Have what is deferred tried again now."""
        woken, self._woken = self._woken, asyncio.Event()
        woken.set()

    async def doze(self, seconds: float) -> None:
        """Wait so many seconds, or until woken."""
        await self._first(self._sleep(seconds), self._woken.wait())

    async def _pause(self, seconds: float) -> None:
        """Wait so many seconds, or until woken or told to hurry."""
        await self._first(self._sleep(seconds), self._woken.wait(), self.hurry.wait())

    async def _first(self, *wanted: Awaitable[Any]) -> None:
        """Wait for the first of these."""
        waits = [asyncio.ensure_future(wait) for wait in wanted]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _settle(self, incoming: AbstractIncomingMessage, delivery: Delivery, acks: Acks | None) -> None:
        """Ack, now or soon, unless the handler did so itself."""
        if incoming.processed:
            _gone(incoming, acks)
        elif acks is not None:
            acks.settle(_tag(incoming), delivery)
        elif not await told(incoming.ack, f"ack on {self._queue}"):
            self.lost((delivery,))

    def lost(self, deliveries: Sequence[Delivery]) -> None:
        """Keep the progress of settled deliveries that could not be acked: the broker delivers them again."""
        self.unsettled += len(deliveries)
        for delivery in deliveries:
            self._progress.keep(delivery)

    async def _let_go(self, incoming: AbstractIncomingMessage, delivery: Delivery, acks: Acks | None) -> None:
        """Give a delivery back unhandled: its claim released, its progress kept, requeued once."""
        if delivery.step is not Step.JUDGE:
            await arun(self._guard.release(delivery))
        self._progress.keep(delivery)
        acked = incoming.processed or delivery.step is Step.SETTLE  # perhaps: twice would close the channel
        if acked or is_stale(incoming):
            return
        if await told(incoming.nack, f"requeue on {self._queue}"):
            _gone(incoming, acks)


def _gone(incoming: AbstractIncomingMessage, acks: Acks | None) -> None:
    """Note that a delivery needs no ack any more; never before it was given back, or an ack would cover it."""
    if acks is not None:
        acks.gone(_tag(incoming))


def _tag(incoming: AbstractIncomingMessage) -> int:
    """Return the tag of a delivery that was consumed, and so has one."""
    return incoming.delivery_tag or 0
