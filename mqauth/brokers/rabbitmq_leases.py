"""Claims kept while handlers run long: one timer a consumer, and nothing at all for a short handler.

Without it a handler that outlasts its lease and whose connection was lost would be run a second time by
whoever gets the broker's redelivery.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from mqauth.brokers.timer import Timer, call_later
from mqauth.flow import arun
from mqauth.pipeline import Delivery, Pipeline, Step

_LOG: Final = logging.getLogger("mqauth.rabbitmq")
_PARTS: Final = 3


class Leases:
    """Renews the claims of deliveries in flight, each at the latest after two thirds of its lease.

    Every third of the lease it looks at what is in flight; the timer stops when there is nothing.

    Args:
        guard: the pipeline that claimed.
        timer: calls a function after so many seconds.
    """

    def __init__(self, guard: Pipeline, *, timer: Timer = call_later) -> None:
        self._guard = guard
        self._timer = timer
        self._every = guard.lease / _PARTS
        self._since: dict[int, tuple[Delivery, float]] = {}
        self._ticking = False
        self._renewing: asyncio.Task[None] | None = None

    def add(self, delivery: Delivery, since: float) -> None:
        """Keep the claim of a delivery that was made at ``since``, monotonic seconds."""
        self._since[id(delivery)] = (delivery, since)
        if not self._ticking:
            self._ticking = True
            self._timer(self._every, self._tick)

    def remove(self, delivery: Delivery) -> None:
        """Leave the claim of a delivery alone from now on."""
        self._since.pop(id(delivery), None)

    async def renew(self) -> None:
        """Renew the claim of each delivery whose handler has run for a third of the lease."""
        due = self._guard.clock.monotonic() - self._every
        for delivery in [delivery for delivery, since in self._since.values() if since <= due]:
            if delivery.step is not Step.HANDLE or await arun(self._guard.renew(delivery)):
                continue
            if delivery.step is Step.HANDLE:  # still, so that it was not the claim's own end
                _LOG.error("a handler outlived its claim, its message may be handled twice")
                self.remove(delivery)

    def _tick(self) -> None:
        """Renew what is due, unless the last time is not over, and come again while anything is in flight."""
        self._ticking = bool(self._since)
        if not self._ticking:
            return
        self._timer(self._every, self._tick)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self.renew())
