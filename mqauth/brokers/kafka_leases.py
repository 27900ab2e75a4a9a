"""Claims kept while Kafka handlers run long.

A claim with a place outlives its lease by itself: elsewhere it is a replay, at the same place it is taken over,
lease or no lease. But its id is forgotten once no new copy can be accepted, and a handler may run longer than
that; and the claim of a *released* message (``mqauth.release``) has no place, so that a copy would run beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from mqauth.brokers.kafka_partition import Assigned
from mqauth.flow import run
from mqauth.pipeline import Delivery, Pipeline

_PARTS: Final = 3


class Leases:
    """Renews the claim of each delivery whose handler has run for a third of its lease, and so on.

    The polling thread looks; a handler that runs on it (``workers=0``) is not seen.

    Args:
        guard: the pipeline that claimed.
    """

    def __init__(self, guard: Pipeline) -> None:
        self._guard = guard
        self._every = guard.lease / _PARTS
        self._since: dict[Any, tuple[Delivery, float]] = {}

    def look(self, running: Iterable[Assigned]) -> None:
        """Renew what is due; a store out of reach is logged and stops nothing."""
        now = self._guard.clock.monotonic()
        seen: dict[Any, tuple[Delivery, float]] = {}
        for assigned in running:
            delivery = next(iter(tuple(assigned.waiting)), None)
            if delivery is None:
                continue
            known, since = self._since.get(assigned.partition, (None, now))
            since = since if known is delivery else now
            if now - since >= self._every:
                run(self._guard.renew(delivery))
                since = now
            seen[assigned.partition] = (delivery, since)
        self._since = seen
