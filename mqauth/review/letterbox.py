"""A dead-letter queue or topic: what a broker has to do, and passes over it."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import MalformedMessage, Unavailable, require
from mqauth.flow import Flow, call
from mqauth.review.index import Index
from mqauth.review.letter import Letter, read
from mqauth.wire import json_form
from mqauth.wire.message import NO_ORIGIN, Message

BATCH = 200
"""Letters asked for at once."""


class LetterBox(Protocol):
    """A dead-letter queue or topic, read in passes. What is not removed stays. Synchronous or asynchronous.

    There is one pass at a time. A crash in the middle of one changes nothing but what was removed.
    """

    @property
    def name(self) -> str:
        """Name of the queue or topic."""

    @property
    def destination(self) -> str:
        """Its canonical destination, to which imported letters are published."""

    @property
    def expected(self) -> int:
        """About how many letters there were when the pass began; 0 where the broker does not say."""

    def browse(self, limit: int, /) -> Sequence[Letter] | Awaitable[Sequence[Letter]]:
        """Return the next letters of the pass; none at its end, after which a new pass begins.

        Args:
            limit: return at most so many; 0 ends the pass and returns none.

        Raises:
            Unavailable: ``dead_letter_unavailable``, the broker cannot be asked; the pass has ended.
        """

    def publish(self, message: Message, /) -> Awaitable[None] | None:
        """Publish a message to its destination, and return once the broker has confirmed it.

        Raises:
            Unavailable: ``dead_letter_unavailable``: unroutable, refused, timed out or not reachable.
            MalformedMessage: the client cannot send it so that it arrives as it is.
        """

    def remove(self, letter: Letter, /) -> Awaitable[None] | None:
        """Remove the very letter that this pass returned, or mark it as resolved.

        Raises:
            Unavailable: ``dead_letter_unavailable``; the letter may come again.
        """


def survey(
    box: LetterBox, *, clock: Clock = SYSTEM_CLOCK, progress: Callable[[int], None] = lambda count: None
) -> Flow[Index]:
    """Read a letter box into a new index, removing nothing.

    Args:
        box: the letter box.
        clock: tells the time at which the pass begins.
        progress: called with the number of letters read so far.

    Raises:
        Unavailable: the broker cannot be asked.
    """
    index = Index(clock.now())
    try:
        yield from fill(index, box, progress=progress)
    except BaseException:
        index.close()
        raise
    return index


def fill(
    index: Index,
    box: LetterBox,
    *,
    progress: Callable[[int], None] = lambda count: None,
    cancelled: threading.Event | None = None,
) -> Flow[None]:
    """Read a letter box into an index, which is ``complete`` at the end of the pass.

    Args:
        index: empty; others may read it meanwhile, and it keeps what was read where the pass fails.
        box: the letter box.
        progress: called with the number of letters read so far.
        cancelled: set from any thread, it ends the pass after the letters at hand.

    Raises:
        Unavailable: the broker cannot be asked.
    """
    try:
        while letters := (yield from call(box.browse, BATCH)):
            index.expected = box.expected
            index.add(letters)
            progress(index.size)
            # With all letters read only the end of the pass is left, and an index that is complete is worth more.
            whole = index.size == index.expected
            if cancelled is not None and cancelled.is_set() and not whole:
                yield from call(box.browse, 0)
                return
    except Unavailable:
        raise
    except Exception:
        yield from call(box.browse, 0)
        raise
    index.complete = True


def take_in(box: LetterBox, forms: Iterable[Any]) -> Flow[int]:
    """Publish exported letters to a letter box, each confirmed, and return how many.

    Args:
        box: of the same broker that they came from.
        forms: letters in the JSON form of a message.

    Raises:
        MalformedMessage: one is no letter, or is not sound; those before it are published.
        Unavailable: the broker refused one, or could not be reached.
    """
    count = 0
    for form in forms:
        message = json_form.from_form(form)
        require(
            read(Letter(message=message)).sound,
            f"letter {count + 1}: no dead letter with a valid id and digest",
            MalformedMessage,
        )
        yield from call(box.publish, replace(message, destination=box.destination, origin=NO_ORIGIN))
        count += 1
    return count
