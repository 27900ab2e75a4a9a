"""What reviewing needs of a broker: three methods and what the box is called; of either colour."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from mqauth.review.letter import Letter
from mqauth.wire.message import Message

BATCH = 200
"""Letters asked for at once."""


class LetterBox(Protocol):
    """A dead-letter queue or topic: looked through in passes, and what is not removed stays.

    One pass at a time. A crash in the middle of one changes nothing but what was removed.
    """

    @property
    def name(self) -> str:
        """The queue or topic."""
        ...

    @property
    def destination(self) -> str:
        """Its canonical destination, to which imported letters are published."""
        ...

    @property
    def expected(self) -> int:
        """Letters the broker said there were when the pass began, about; 0 where it does not say."""
        ...

    def browse(self, limit: int, /) -> Sequence[Letter] | Awaitable[Sequence[Letter]]:
        """Return the next letters of a pass, at most so many; none at its end, after which another begins.

        Args:
            limit: 0 ends the pass, and returns nothing.

        Raises:
            Unavailable: ``dead_letter_unavailable``, the broker cannot be asked; the pass has ended.
        """
        ...

    def publish(self, message: Message, /) -> Awaitable[None] | None:
        """Publish a message to its destination, and return once the broker has confirmed it.

        Raises:
            Unavailable: ``dead_letter_unavailable``: unroutable, refused, timed out or not reachable.
            MalformedMessage: the client cannot send it so that it arrives as it is.
        """
        ...

    def remove(self, letter: Letter, /) -> Awaitable[None] | None:
        """Remove, or mark as resolved, the very letter this pass returned.

        Raises:
            Unavailable: ``dead_letter_unavailable``; it may come again.
        """
        ...
