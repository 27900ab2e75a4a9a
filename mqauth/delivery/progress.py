"""How far deliveries have come that a queue will deliver again, or has: known by their content.

A queue knows no offsets: a delivery given back, or whose connection was lost, comes again as another one,
flagged ``redelivered``. What is known of the earlier one is used, so that a message neither expires in our
hands, be it held or in its handler, nor runs its handler twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from mqauth.deadletter import letter_id
from mqauth.message import Message
from mqauth.pipeline import Delivery, Pipeline, Step

MAX_KEPT: Final = 10_000


class Progress:
    """Deliveries in flight, and those given back; the latter bounded, the oldest dropped first.

    Args:
        guard: the pipeline they are of.
        ended: tells of a client's delivery whether it is not ours any more, since its channel ended.
    """

    def __init__(self, guard: Pipeline, ended: Callable[[Any], bool]) -> None:
        self._guard = guard
        self._ended = ended
        self._kept: OrderedDict[str, list[Delivery]] = OrderedDict()
        self._in_flight: dict[int, Delivery] = {}
        self._keys: dict[int, str] = {}

    def receive(self, message: Message) -> Delivery:
        """Return a delivery that goes on where an earlier one of the same content stopped, if there was one."""
        if not message.origin.redelivered or not (self._kept or self._in_flight):
            return self._guard.receive(message)
        key = self._key(message)
        if (kept := self._take(key)) is not None:
            return kept if kept.step is not Step.JUDGE else again(message, kept)
        lost = self._lost(key)
        if lost is None:
            return self._guard.receive(message)
        return Delivery(message=message, received=lost.received, deferred=True)

    def begin(self, delivery: Delivery) -> None:
        """Note that a delivery is in flight."""
        self._in_flight[id(delivery)] = delivery

    def end(self, delivery: Delivery) -> None:
        """Note that it is no longer."""
        self._in_flight.pop(id(delivery), None)
        self._keys.pop(id(delivery), None)

    def keep(self, delivery: Delivery) -> None:
        """Keep the progress of a delivery given back for the next one of the same content."""
        self._kept.setdefault(self._key(delivery.message), []).append(delivery)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    def _take(self, key: str) -> Delivery | None:
        """Take the progress of a delivery given back."""
        waiting = self._kept.get(key)
        if not waiting:
            return None
        delivery = waiting.pop(0)
        if not waiting:
            del self._kept[key]
        return delivery

    def _lost(self, key: str) -> Delivery | None:
        """Return the delivery of this content that outlived its connection and is still being handled."""
        for number, delivery in self._in_flight.items():
            if not self._ended(delivery.message.native):
                continue
            if number not in self._keys:
                self._keys[number] = self._key(delivery.message)
            if self._keys[number] == key:
                return delivery
        return None

    def _key(self, message: Message) -> str:
        """Return the content a redelivery is known by."""
        return letter_id(message, self._guard.scope_of(message))


def again(message: Message, earlier: Delivery) -> Delivery:
    """Return a delivery that is judged anew in an earlier one's name, which may hold a claim unknowingly.

    The store may have taken the earlier claim although its answer was lost.
    """
    return Delivery(message=message, received=earlier.received, deferred=True, owner=earlier.owner)
