"""Claims kept while handlers run long: which renewals are due.

On RabbitMQ whoever gets the redelivery of a lost connection would handle it a second time once the lease is over.
On Kafka a claim with a place outlives its lease by itself: elsewhere it is a replay, at the same place it is taken
over. But its id is forgotten once no new copy can be accepted, and a handler may run longer than that; and the
claim of a *released* message (``mqauth.letters.release``) has no place, so that a copy would run beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from mqauth.judging.pipeline import Delivery, Step

_PARTS: Final = 3
_LOG: Final = logging.getLogger("mqauth.delivery")


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


class Tended:
    """The claims of a queue's deliveries in flight: looked at every third of a lease, renewed after the first.

    So each is renewed at the latest after two thirds of its lease, and a short handler costs nothing.

    Args:
        lease: seconds a claim holds.
    """

    def __init__(self, lease: float) -> None:
        self.every = lease / _PARTS
        self._since: dict[int, tuple[Delivery, float]] = {}

    def __bool__(self) -> bool:
        return bool(self._since)

    def add(self, delivery: Delivery, since: float) -> None:
        """Keep the claim of a delivery that was made at ``since``, monotonic seconds."""
        self._since[id(delivery)] = (delivery, since)

    def remove(self, delivery: Delivery) -> None:
        """Leave the claim of a delivery alone from now on."""
        self._since.pop(id(delivery), None)

    def due(self, now: float) -> list[Delivery]:
        """Return those whose handlers have run for a third of the lease, at ``now``, monotonic seconds."""
        before = now - self.every
        return [each for each, since in self._since.values() if since <= before and each.step is Step.HANDLE]

    def lost(self, delivery: Delivery) -> None:
        """Log that a claim is another's now, and leave it alone; unless its handler has ended meanwhile."""
        if delivery.step is Step.HANDLE:
            _LOG.error("a handler outlived its claim, its message may be handled twice")
            self.remove(delivery)
