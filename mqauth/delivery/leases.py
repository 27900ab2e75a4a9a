"""Claims kept while handlers run long: which renewals are due.

On RabbitMQ a redelivery would be handled a second time once the lease is over. On Kafka a claim with a place
outlives
its lease by itself: elsewhere it is a replay, at the same place it is taken over. But its id is forgotten once no
new copy can be accepted, and a handler may run longer than that; and the claim of a *released* message
(``mqauth.release``) has no place, so that a copy would run beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mqauth.pipeline import Delivery

_PARTS: Final = 3


class Leases:
    """Tells whose claim is to be renewed: after each third of its lease for which a handler has run.

    Args:
        lease: seconds a claim holds.
    """

    def __init__(self, lease: float) -> None:
        self._every = lease / _PARTS
        self._since: dict[int, tuple[Delivery, float]] = {}

    def due(self, running: Iterable[Delivery], now: float) -> list[Delivery]:
        """Return the deliveries whose claims are to be renewed now.

        Args:
            running: those whose handlers run; what is not among them any more is forgotten.
            now: monotonic seconds.
        """
        before, self._since, found = self._since, {}, list[Delivery]()
        for delivery in running:
            _, since = before.get(id(delivery), (delivery, now))
            if now - since >= self._every:
                found.append(delivery)
                since = now
            self._since[id(delivery)] = (delivery, since)
        return found
