"""One RabbitMQ delivery from broker to settlement: processed, held while the world is out of reach, acked.

RabbitMQ knows no offsets: a delivery given back comes again as another one, flagged ``redelivered``. Its
progress is kept here by content meanwhile, so that it neither expires in our hands nor runs its handler twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import tenacity
from aio_pika.abc import AbstractIncomingMessage

from mqauth.brokers.rabbitmq_channel import is_stale, told, was_cancelled
from mqauth.brokers.rabbitmq_translate import from_native
from mqauth.deadletter import DeadLetterSink, letter_id
from mqauth.errors import Cause
from mqauth.flow import arun
from mqauth.message import Message
from mqauth.pipeline import Delivery, Handler, Outcome, Pipeline, Step, Verdict
from mqauth.verified import Responder, Verified, equip

_LOG: Final = logging.getLogger("mqauth.rabbitmq")
_MAX_KEPT: Final = 10_000
_WAIT: Final = 0.1
_WAIT_MAX: Final = 5.0
OWN_CAUSES: Final = frozenset((Cause.CLAIM_HELD, Cause.HANDLER_DEFERRED))
"""Causes that concern one message, not a dependency of all."""
Sleep = Callable[[float], Awaitable[Any]]


@dataclass(slots=True)
class Held:
    """A delivery that is deferred, and why and since when (UTC seconds)."""

    delivery: Delivery
    outcome: Outcome
    since: float


@dataclass(slots=True)
class _Kept:
    """Progress of deliveries the broker will deliver again, by content; bounded, oldest dropped first."""

    found: OrderedDict[str, list[Delivery]] = field(default_factory=OrderedDict)

    def put(self, key: str, delivery: Delivery) -> None:
        """Keep the progress of one delivery."""
        self.found.setdefault(key, []).append(delivery)
        while len(self.found) > _MAX_KEPT:
            self.found.popitem(last=False)

    def take(self, key: str) -> Delivery | None:
        """Take the progress of one delivery back."""
        waiting = self.found.get(key)
        if not waiting:
            return None
        delivery = waiting.pop(0)
        if not waiting:
            del self.found[key]
        return delivery


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
        self._kept = _Kept()
        self.hurry = asyncio.Event()
        self.held: dict[int, Held] = {}
        self.unsettled = 0

    async def process(self, incoming: AbstractIncomingMessage) -> Outcome | None:
        """Carry a delivery to its end and settle it, or give it back; ``None`` for one no longer ours.

        Raises:
            ConfigurationError: the pipeline cannot settle messages; the delivery stays unacked.
        """
        if is_stale(incoming):
            return None
        delivery = self._receive(incoming)
        try:
            return await self._to_its_end(incoming, delivery)
        except asyncio.CancelledError:
            await self._let_go(incoming, delivery)
            raise

    async def probe(self, delivery: Delivery) -> bool:
        """Tell whether a deferred delivery would get further now; its handler is not run."""
        if delivery.step is not Step.JUDGE:
            return (await self._attempt(delivery)).verdict is not Verdict.DEFERRED
        trial = Delivery(message=delivery.message, received=delivery.received, deferred=True)
        outcome = await arun(self._guard.judge(trial))
        await arun(self._guard.release(trial))
        return outcome.verdict is not Verdict.DEFERRED

    async def _to_its_end(self, incoming: AbstractIncomingMessage, delivery: Delivery) -> Outcome:
        """Process, hold while deferred, then settle or give back."""
        outcome = await self._attempt(delivery)
        if outcome.verdict is Verdict.DEFERRED:
            outcome = await self._hold(incoming, delivery, outcome)
        if outcome.verdict is not Verdict.DEFERRED:
            await self._settle(incoming, delivery)
            return outcome
        everyones = self.hurry.is_set() or outcome.cause not in OWN_CAUSES
        if self._before_requeue is not None and everyones and not is_stale(incoming):
            await self._before_requeue(Held(delivery, outcome, self._guard.clock.now()))
        await self._let_go(incoming, delivery)
        return outcome

    def _receive(self, incoming: AbstractIncomingMessage) -> Delivery:
        """Return the delivery, with the progress of an earlier one of the same content where it is kept."""
        message = from_native(incoming, queue=self._queue)
        if not self._kept.found or not message.origin.redelivered:
            return self._guard.receive(message)
        kept = self._kept.take(self._key(message))
        if kept is None:
            return self._guard.receive(message)
        if kept.step is Step.JUDGE:
            return Delivery(message=message, received=kept.received, deferred=True)
        return kept

    def _key(self, message: Message) -> str:
        """Return the content a redelivery is known by."""
        return letter_id(message, self._guard.scope_of(message))

    async def _attempt(self, delivery: Delivery) -> Outcome:
        """Take the delivery as far as the world allows."""
        try:
            return await arun(self._guard.process(delivery, self._handle, self._dead_letters))
        except asyncio.CancelledError:
            if was_cancelled():
                raise
            # aiormq cancels the futures of a lost connection, and the handler awaited one of them
            detail = "what the handler waited for was cancelled"
            return Outcome(verdict=Verdict.DEFERRED, cause=Cause.HANDLER_DEFERRED, detail=detail)

    def _handle(self, verified: Verified) -> Any:
        """Call the handler with a message it can answer and whose value is decoded."""
        value = None if self._decode is None else self._decode(verified.body)
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

    async def _pause(self, seconds: float) -> None:
        """Wait so many seconds, or until told to hurry."""
        waits = [asyncio.ensure_future(self._sleep(seconds)), asyncio.ensure_future(self.hurry.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _settle(self, incoming: AbstractIncomingMessage, delivery: Delivery) -> None:
        """Ack; where the connection is gone the broker delivers again, and the progress is kept for that."""
        if not incoming.processed and not await told(incoming.ack, f"ack on {self._queue}"):
            self.unsettled += 1
            self._keep(delivery)

    async def _let_go(self, incoming: AbstractIncomingMessage, delivery: Delivery) -> None:
        """Give a delivery back unhandled: its claim released, its progress kept, requeued once."""
        await arun(self._guard.release(delivery))
        self._keep(delivery)
        acked = incoming.processed or delivery.step is Step.SETTLE  # perhaps: twice would close the channel
        if not acked and not is_stale(incoming):
            await told(incoming.nack, f"requeue on {self._queue}")

    def _keep(self, delivery: Delivery) -> None:
        """Keep the progress for the next delivery of the same content."""
        self._kept.put(self._key(delivery.message), delivery)
