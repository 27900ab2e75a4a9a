"""Dead letters and audit records on their way to a broker, for every client library."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from mqauth.errors import Cause, Unavailable
from mqauth.flow import Flow, call
from mqauth.letters.dead_letter import Carries, DeadLetter, Oversize, undelivered
from mqauth.logs import emit, harmless
from mqauth.wire.message import Message

MAX_UNCONFIRMED: Final = 1000
"""Records with an open outcome that are remembered at most."""
MAX_UNCONFIRMED_BYTES: Final = 16 * 1024 * 1024
"""Bytes of these records at most, but for the latest, which is always remembered."""
LOOK: Final = 5.0
"""Seconds for which a broker is asked whether it has a queue or topic."""
Errors = type[Exception] | tuple[type[Exception], ...]


def look(*sinks: Any) -> Flow[None]:
    """Warn of a queue or topic of dead letters, or audit records, that the broker does not have.

    To be called at the start: what is rejected, perhaps long after it, would wait for the queue. A sink without
    ``exists``, or a broker that does not tell, is left to the first message that is rejected.
    """
    for sink in sinks:
        with suppress(Exception):
            if (yield from call(sink.exists)) is False:
                emit(
                    "consumer.sink_missing", "%s does not exist: until it does, what is rejected waits unsettled",
                    harmless(sink.name), sink=harmless(sink.name),
                )  # fmt: skip


def first_taken(  # noqa: PLR0917 - a flow has no keywords
    letter: DeadLetter,
    send: Callable[[Message], Flow[Any]],
    carries: Carries,
    fits: Callable[[Message], bool],
    too_large: Errors,
    oversize: Oversize = "reference",
) -> Flow[Any]:
    """Send a letter in the first of its forms that fits and that the broker does not find too large.

    Args:
        letter: the letter.
        send: returns a flow that sends a form, and ends once the broker has confirmed it.
        carries: returns whether the client can send a header again.
        fits: returns whether a form is within the sizes that are known.
        too_large: what ``send`` raises for a form that is over the broker's size.
        oversize: whether a form that only refers to the message may be sent.

    Raises:
        Unavailable: ``dead_letter_unavailable`` where no form fits; or what ``send`` raises.
    """
    refused: Exception | None = None
    for form in letter.forms(carries, fits, oversize):
        try:
            return (yield from send(form))
        except too_large as error:
            refused = error
    raise undelivered("no form of the letter fits the broker") from refused


@asynccontextmanager
async def in_time(seconds: float, cause: Cause, lost: Errors) -> AsyncIterator[None]:
    """Limit the time of what is awaited inside, and turn errors of the broker into ``Unavailable``.

    Args:
        seconds: for all of it.
        cause: of the ``Unavailable`` that is raised.
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
    """Records that were sent and not yet confirmed, by their id: they are waited for again, not sent twice.

    Beyond the bounds the oldest are forgotten; they may be sent twice, under the same id.
    """

    def __init__(self) -> None:
        self._sent: dict[str, tuple[Any, int]] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def take(self, name: str) -> Any:
        """Return what was kept under an id, and forget it; ``None`` where there is nothing."""
        with self._lock:
            return self._pop(name)

    def keep(self, name: str, sent: Any, size: int) -> None:
        """Keep what the client returned for a record.

        Args:
            name: the record's id.
            sent: the client's future.
            size: bytes of the record. A sender of bad messages chooses it, so the bytes of all are bounded too.
        """
        with self._lock:
            self._pop(name)
            self._sent[name] = sent, size
            self._bytes += size
            while len(self._sent) > 1 and (
                len(self._sent) > MAX_UNCONFIRMED or self._bytes > MAX_UNCONFIRMED_BYTES
            ):
                self._pop(next(iter(self._sent)))

    def _pop(self, name: str) -> Any:
        sent, size = self._sent.pop(name, (None, 0))
        self._bytes -= size
        return sent
