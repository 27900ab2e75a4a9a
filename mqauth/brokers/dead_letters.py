"""Dead letters and audit records on their way to any broker: for every client.

A letter goes in the first of its forms that the broker takes. What is sent counts once the broker has confirmed
it, and what keeps it from that is named by its cause.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from mqauth.errors import Cause, Unavailable
from mqauth.flow import Flow, call
from mqauth.letters.dead_letter import Carries, DeadLetter, Oversize, undelivered
from mqauth.wire.message import Message

MAX_UNCONFIRMED: Final = 1000
"""Records of unknown outcome that are remembered; beyond it the oldest may be sent twice, with one id."""
Errors = type[Exception] | tuple[type[Exception], ...]


def first_taken(  # noqa: PLR0917 - a flow has no keywords
    letter: DeadLetter,
    send: Callable[[Message], Awaitable[Any] | Any],
    carries: Carries,
    fits: Callable[[Message], bool],
    too_large: Errors,
    oversize: Oversize = "reference",
) -> Flow[Any]:
    """Send a letter in the first of its forms that fits and that the broker does not find too large.

    Args:
        letter: the letter.
        send: sends a form, and returns once the broker has confirmed it.
        carries: tells which header names and values the client can send again.
        fits: tells whether a form is within the sizes that are known.
        too_large: what ``send`` raises of a form that is beyond the broker's size.
        oversize: whether a form that only names the message may be taken.

    Raises:
        Unavailable: ``dead_letter_unavailable``: no form fits; or what ``send`` raises.
    """
    refused: Exception | None = None
    for form in letter.forms(carries, fits, oversize):
        try:
            return (yield from call(send, form))
        except too_large as error:
            refused = error
    raise undelivered("no form of the letter fits the broker") from refused


@asynccontextmanager
async def in_time(seconds: float, cause: Cause, lost: Errors) -> AsyncIterator[None]:
    """Bound what is awaited within, and name what keeps it from the broker.

    Args:
        seconds: for all of it.
        cause: of what is raised.
        lost: what the client raises where the broker refuses or cannot be reached.

    Raises:
        Unavailable: with ``cause``: timed out, refused or not reachable.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise Unavailable(cause, f"no confirm within {seconds} s") from error
    except lost as error:
        raise Unavailable(cause, type(error).__name__) from error


class Unconfirmed:
    """What was sent and has no outcome yet, by its id: it is waited for again instead of sent twice."""

    def __init__(self) -> None:
        self._sent: dict[str, Any] = {}
        self._lock = threading.Lock()

    def take(self, name: str) -> Any:
        """Return what was kept under an id, and forget it; ``None`` where there is nothing."""
        with self._lock:
            return self._sent.pop(name, None)

    def keep(self, name: str, sent: Any) -> None:
        """Keep what the client gave for a record, in place of the oldest where there are too many."""
        with self._lock:
            while len(self._sent) >= MAX_UNCONFIRMED:
                self._sent.pop(next(iter(self._sent)), None)
            self._sent[name] = sent
