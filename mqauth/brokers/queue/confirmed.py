"""Dead letters, audit records and answers on queues: what holds for every client of RabbitMQ."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from mqauth.brokers.dead_letters import Errors, first_taken
from mqauth.errors import ConfigurationError, require
from mqauth.flow import Flow, call
from mqauth.judging.verified import Responder
from mqauth.letters.dead_letter import Carries, DeadLetter, Oversize
from mqauth.wire.message import Message

DEFAULT_MAX_BODY: Final = 16 * 1024 * 1024
"""RabbitMQ 4's default ``max_message_size``, bytes."""
RECORD_PROPERTIES: Final[dict[str, Any]] = {"content_type": "application/json", "type": "mqauth-audit-1"}
"""Of the message that holds an audit record."""


def check_queue(name: str, timeout: float) -> None:
    """Refuse a queue without a name, and a time to wait that is none.

    Raises:
        ConfigurationError: it is refused.
    """
    require(timeout > 0 and name, "a queue must be named, and timeout must be above 0 seconds")


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

    yield from first_taken(letter, lambda form: call(send, form), carries, fits, too_large, oversize)


def as_responder(replies: Any, kind: type, make: Callable[[Any], Any] | None, reply: Any) -> Responder | None:
    """Return what publishes answers, ``None`` where there is no signer for them.

    Args:
        replies: a producer of answers, or a signer.
        kind: the class of producers.
        make: makes a producer of a signer, ``None`` where there is nothing to publish through.
        reply: publishes an answer by a producer.

    Raises:
        ConfigurationError: a signer is given, and nothing to publish through.
    """
    if replies is None:
        return None
    if not isinstance(replies, kind):
        if make is None:
            raise ConfigurationError("replies= must be a Producer where dead letters go by another sink")
        replies = make(replies)
    return partial(reply, replies)
