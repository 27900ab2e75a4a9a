"""A letter box on the broker in memory."""

from __future__ import annotations

from collections.abc import Sequence

from mqauth import Cause, Message, Unavailable
from mqauth.brokers.memory import MemoryBroker, UnroutableError
from mqauth.judging.pipeline import Delivery
from mqauth.review import Letter


class MemoryLetterBox:
    """The dead letters of one queue of a ``MemoryBroker``.

    Args:
        broker: where the queue is.
        place: destination of the queue.
    """

    def __init__(self, broker: MemoryBroker, place: str) -> None:
        self._broker = broker
        self.name = self.destination = place
        self._held: dict[int, Message] = {}
        self._seen = self.expected = 0

    def depth(self) -> int:
        """Return how many letters wait."""
        return len(self._broker.waiting(self.name))

    def browse(self, limit: int, /) -> Sequence[Letter]:
        """Take the next letters; the end of the pass gives back those that were not removed."""
        if not self._held:
            self.expected = len(self._broker.waiting(self.name))
        found: list[Letter] = []
        while len(found) < limit and (taken := self._broker.take(self.name)) is not None:
            message = taken.message if isinstance(taken, Delivery) else taken
            self._held[self._seen] = message
            found.append(Letter(message=message, handle=self._seen))
            self._seen += 1
        if not found:
            for message in reversed(self._held.values()):
                self._broker.give_back(self.name, message)
            self._held = {}
        return found

    def publish(self, message: Message, /) -> None:
        """Publish a message to its destination.

        Raises:
            Unavailable: ``dead_letter_unavailable``, no such queue.
        """
        try:
            self._broker.publish(message)
        except UnroutableError as error:
            raise Unavailable(Cause.DEAD_LETTER_UNAVAILABLE, str(error)) from error

    def remove(self, letter: Letter, /) -> None:
        """Forget the letter."""
        self._held.pop(letter.handle, None)
