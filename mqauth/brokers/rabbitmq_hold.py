"""Deferred deliveries, held unacked and tried again: for how long, and what ends it.

Each return to the broker spends one of a message's deliveries, so one that waits for a cause of its own stays
unacked until that is over, or the broker's consumer timeout is near. A cause of all suspends the queue after
``hold`` seconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import tenacity

from mqauth.brokers.rabbitmq_slot import Slot
from mqauth.clock import Clock
from mqauth.delivery.room import Room
from mqauth.errors import Cause
from mqauth.judging.delivery import Delivery, Outcome, Step, Verdict

DEFAULT_HOLD: Final = 60.0
CONSUMER_TIMEOUT: Final = 1800.0
"""Seconds after which RabbitMQ closes a channel that has not acked a delivery, unless it is set otherwise."""
_OF_TIMEOUT: Final = 0.9
_WAIT: Final = 0.1
_WAIT_MAX: Final = 5.0
_LOG: Final = logging.getLogger("mqauth.rabbitmq")
Sleep = Callable[[float], Awaitable[Any]]


@dataclass(slots=True)
class Held:
    """A delivery that is deferred.

    Args:
        slot: its place.
        delivery: how far it has come.
        outcome: why it waits now.
        since: UTC seconds.
        stays: whether it stays unacked while its consumer is suspended.
        everyones_since: monotonic seconds since which its cause is everybody's; ``None`` where it is not.
        put_off: how often its handler asked for another time.
        goes_back: whether it was ours then, and its cause not over.
        ended: set once it waits no longer.
    """

    slot: Slot
    delivery: Delivery
    outcome: Outcome
    since: float
    stays: bool = False
    everyones_since: float | None = None
    put_off: int = 0
    goes_back: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def why(self) -> tuple[Cause | None, float, str | None]:
        """Its cause, since when (UTC seconds), and one line for people."""
        return self.outcome.cause, self.since, self.outcome.detail

    @property
    def needs_ours(self) -> bool:
        """Whether trying it is the only way to find out that its cause is over, and needs it to be ours.

        Nothing may be recorded or buried of what was given back: somebody else may have handled it.
        """
        return self.delivery.step is Step.RECORD or self.delivery.step is Step.BURY

    @property
    def is_kept(self) -> bool:
        """Whether it is not given back when its consumer is suspended."""
        return self.stays or self.slot.is_last

    @property
    def is_given_up(self) -> bool:
        """Whether its handler asked for another time until the last of its deliveries was over."""
        return self.slot.is_ours and self.slot.is_last and self.outcome.cause is Cause.HANDLER_DEFERRED


class Holder:
    """Tries deferred deliveries again, with jittered exponential back-off.

    Args:
        queue: name of the queue.
        clock: the pipeline's.
        attempt: takes a delivery as far as the world allows.
        room: counts what is held.
        hold: seconds after which a cause of all suspends the queue; ``None`` where it cannot be suspended.
        consumer_timeout: what the broker is set to; a tenth less after its receipt a delivery goes back.
        at_once: how many are tried at a time; ``None`` for any number.
        sleep: waits so many seconds.
        changed: called when something begins or ceases to wait, or does so for another cause.
    """

    def __init__(
        self,
        queue: str,
        clock: Clock,
        attempt: Callable[[Delivery], Awaitable[Outcome]],
        *,
        room: Room,
        hold: float | None,
        consumer_timeout: float,
        at_once: int | None,
        sleep: Sleep,
        changed: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._clock = clock
        self._attempt = attempt
        self._room = room
        self._hold_seconds = hold
        self._oldest = _OF_TIMEOUT * consumer_timeout
        self._turn: AbstractAsyncContextManager[Any] = (
            nullcontext() if at_once is None else asyncio.Semaphore(at_once)
        )
        self._sleep = sleep
        self._changed = changed
        self._woken = asyncio.Event()
        self.suspended = asyncio.Event()
        self.stopping = asyncio.Event()
        self.held: dict[int, Held] = {}

    async def hold(self, held: Held) -> Outcome:
        """Try a delivery again for as long as it may be held; returns its last outcome."""
        retrying = tenacity.AsyncRetrying(
            sleep=partial(self._pause, held),
            wait=tenacity.wait_random_exponential(multiplier=_WAIT, max=_WAIT_MAX),
            stop=lambda _: self._is_over(held),
            retry=tenacity.retry_if_result(lambda result: result.verdict is Verdict.DEFERRED),
            retry_error_callback=lambda _: held.outcome,
        )
        self.held[id(held)] = held
        self._note(held, held.outcome)
        try:
            outcome: Outcome = await retrying(self._again, held)
            return outcome
        finally:
            del self.held[id(held)]
            self._room.take(id(held))
            self._changed()

    async def _again(self, held: Held) -> Outcome:
        """Try a delivery once, in its turn."""
        async with self._turn:
            outcome = await self._attempt(held.delivery)
        if outcome.verdict is Verdict.DEFERRED:
            self._note(held, outcome)
        return outcome

    def _note(self, held: Held, outcome: Outcome) -> None:
        """Note why a delivery waits now."""
        held.outcome = outcome
        held.put_off += outcome.cause is Cause.HANDLER_DEFERRED
        slot, cause, party = held.slot, outcome.cause, outcome.party
        self._room.put(id(held), tag=slot.tag, cause=cause, party=party, size=slot.size)
        if not self._room.is_everyones(cause, party):
            held.everyones_since = None
        elif held.everyones_since is None:
            held.everyones_since = self._clock.monotonic()
        self._changed()

    def _is_over(self, held: Held) -> bool:
        """Tell whether a delivery is to be held no longer."""
        slot, step = held.slot, held.delivery.step
        if not slot.is_ours and step is not Step.CONFIRM and step is not Step.RELEASE:
            return True
        if any(event.is_set() for event in self._told(held)):
            return True
        if self._hold_seconds is not None and held.everyones_since is not None and not held.is_kept:
            return self._clock.monotonic() - held.everyones_since >= self._hold_seconds
        return self._is_old(slot) and (not slot.is_last or held.is_given_up)

    def _is_old(self, slot: Slot) -> bool:
        """Tell whether the broker's consumer timeout is near."""
        return self._clock.monotonic() - slot.received >= self._oldest

    def _told(self, held: Held) -> list[asyncio.Event]:
        """Return what ends holding a delivery; one whose handler has ended waits for its confirm to the last."""
        events = [] if held.is_kept else [self.suspended]
        return events if held.delivery.step is Step.CONFIRM else [*events, self.stopping]

    def wake(self) -> None:
        """Have what is deferred tried again now."""
        woken, self._woken = self._woken, asyncio.Event()
        woken.set()

    async def doze(self, seconds: float) -> None:
        """Wait so many seconds, or until woken."""
        await _first(self._sleep(seconds), self._woken.wait())

    async def _pause(self, held: Held, seconds: float) -> None:
        """Wait so many seconds, or until woken or told to end."""
        told = [event.wait() for event in self._told(held)]
        await _first(self._sleep(seconds), self._woken.wait(), *told)


async def _first(*wanted: Awaitable[Any]) -> None:
    """Wait for the first of these."""
    waits = [asyncio.ensure_future(wait) for wait in wanted]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
