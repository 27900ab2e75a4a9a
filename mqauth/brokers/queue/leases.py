"""Renews claims while handlers run long: one timer a consumer, and nothing at all for a short handler."""

from __future__ import annotations

import asyncio

from mqauth.brokers.timer import Timer, call_later
from mqauth.delivery.leases import Tended
from mqauth.flow import arun
from mqauth.judging.pipeline import Delivery, Pipeline


class Leases:
    """Renews what is due; the timer stops when nothing is in flight.

    Args:
        guard: the pipeline that claimed.
        timer: calls a function after so many seconds.
    """

    def __init__(self, guard: Pipeline, *, timer: Timer = call_later) -> None:
        self._guard = guard
        self._timer = timer
        self._tended = Tended(guard.lease)
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
