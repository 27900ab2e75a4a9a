"""Dead letters and audit records on their way to a broker, for every client library.

``burying`` is for every client of RabbitMQ.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from mqauth.errors import Cause, Errors, Unavailable, require
from mqauth.flow import Flow, call
from mqauth.letters.dead_letter import Carries, DeadLetter, Oversize, undelivered
from mqauth.wire.message import Message

LOOK: Final = 5.0
"""Seconds for which a broker is asked whether it has a queue or topic."""


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


RECORD_PROPERTIES: Final[dict[str, Any]] = {
    "content_type": "application/json",
    "type": "mqauth-audit-1",
}
"""Of the message that holds an audit record."""


def check_queue(name: str, timeout: float) -> None:
    """Refuse a queue without a name, and a time to wait that is none.

    Raises:
        ConfigurationError: it is refused.
    """
    require(
        timeout > 0 and name, "a queue must be named, and timeout must be above 0 seconds"
    )


def burying(  # noqa: PLR0917 - a flow has no keywords
    letter: DeadLetter,
    send: Callable[[Message], Any],
    carries: Carries,
    too_large: Errors,
    max_body: int,
    oversize: Oversize,
) -> Flow[None]:
    """Publish a letter in the first of its forms that fits.

    Args:
        letter: the letter.
        send: publishes a form; returns, or its awaitable does, once the broker has confirmed it.
        carries: returns whether the client can send a header again.
        too_large: what ``send`` raises for a form that the broker or the client does not take.
        max_body: bytes of body the broker takes; more only where the rejected message itself was larger.
        oversize: whether a form that only refers to the message may be sent.

    Raises:
        Unavailable: ``dead_letter_unavailable`` where no form fits; or what ``send`` raises.
    """
    limit = max(max_body, len(letter.message.body or b""))

    def fits(form: Message) -> bool:
        return len(form.body or b"") <= limit

    yield from first_taken(
        letter, lambda form: call(send, form), carries, fits, too_large, oversize
    )


def responder_of(replies: Any) -> Any:
    """Return what sends answers by a producer, ``None`` where there is none.

    A consumer asks its producer of answers for it, so that one without loads nothing that signs and sends.

    Raises:
        ConfigurationError: it is no producer, or one that cannot answer.
    """
    if replies is None:
        return None
    require(
        hasattr(replies, "responder"),
        f"replies= takes a Producer, not {type(replies).__name__}",
    )
    return replies.responder()
