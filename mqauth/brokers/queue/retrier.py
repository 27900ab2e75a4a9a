"""Retries deferred deliveries in an event loop, with a jittered back-off, for as long as ``Hold`` allows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, Final

import tenacity

from mqauth.brokers.event_loop import Sleep, first_of
from mqauth.delivery.hold import HeldDelivery, Hold, is_deferred
from mqauth.judging.pipeline import Delivery, Outcome

_WAIT: Final = 0.1
_WAIT_MAX: Final = 5.0


class Retrier:
    """Retries the deliveries that are held.

    Args:
        hold: the held deliveries.
        attempt: takes a delivery as far as it gets.
        at_once: how many are tried at a time; ``None`` for any number.
        sleep: waits so many seconds.
        changed: called when a delivery begins or ceases to wait, or waits for another cause.
    """

    def __init__(
        self,
        hold: Hold,
        attempt: Callable[[Delivery], Awaitable[Outcome]],
        *,
        at_once: int | None,
        sleep: Sleep,
        changed: Callable[[], None],
    ) -> None:
        self._hold = hold
        self._attempt = attempt
        self._turn: AbstractAsyncContextManager[Any] = (
            nullcontext() if at_once is None else asyncio.Semaphore(at_once)
        )
        self._sleep = sleep
        self._changed = changed
        self._woken = asyncio.Event()
        self._suspended = asyncio.Event()
        self._stopping = asyncio.Event()

    async def hold(self, held: HeldDelivery) -> Outcome:
        """Retry a delivery for as long as it may be held; return its last outcome."""
        retrying = tenacity.AsyncRetrying(
            sleep=partial(self._pause, held),
            wait=tenacity.wait_random_exponential(multiplier=_WAIT, max=_WAIT_MAX),
            stop=lambda _: self._hold.is_over(held),
            retry=tenacity.retry_if_result(is_deferred),
            retry_error_callback=lambda _: held.outcome,
        )
        self._hold.put(held)
        self._changed()
        try:
            outcome: Outcome = await retrying(self._again, held)
            return outcome
        finally:
            self._hold.take(held)
            self._changed()

    async def _again(self, held: HeldDelivery) -> Outcome:
        async with self._turn:
            outcome = await self._attempt(held.delivery)
        self._hold.attempted(held, outcome)
        if held.waits:
            self._changed()
        return outcome

    def wake(self) -> None:
        """Try all deferred deliveries again now."""
        woken, self._woken = self._woken, asyncio.Event()
        woken.set()

    def suspend(self) -> None:
        """End the waiting of deliveries that go back when their queue is suspended."""
        self._hold.suspended = True
        self._suspended.set()

    def go_on(self) -> None:
        """Hold deliveries again: the queue is consumed again."""
        self._hold.suspended = False
        self._suspended.clear()

    def stop(self) -> None:
        """End all waiting that a stop may end."""
        self._hold.stopping = True
        self._stopping.set()

    async def sleep_until_woken(self, seconds: float) -> None:
        """Wait so many seconds, or until woken."""
        await first_of(self._sleep(seconds), self._woken.wait())

    async def _pause(self, held: HeldDelivery, seconds: float) -> None:
        """Wait so many seconds, or until woken or told to end."""
        told = [self._suspended.wait()] if self._hold.yields(held) else []
        told += [self._stopping.wait()] if self._hold.stops(held) else []
        await first_of(self._sleep(seconds), self._woken.wait(), *told)
