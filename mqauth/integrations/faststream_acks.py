"""What a FastStream handler says by ``ack``, ``nack`` and ``reject``, or by their exceptions."""

from __future__ import annotations

from functools import partial
from typing import Any

from faststream.exceptions import NackMessage, RejectMessage
from faststream.message import AckStatus

from mqauth.errors import RejectNow, RetryLater


def take_over(message: Any) -> None:
    """Have what a handler says by ``ack``, ``nack`` and ``reject`` noted, and not done: mqauth settles."""

    async def note(status: AckStatus, **_options: Any) -> None:
        message.committed = message.committed or status

    message.committed = None
    message.ack = partial(note, AckStatus.ACKED)
    message.nack = partial(note, AckStatus.NACKED)
    message.reject = partial(note, AckStatus.REJECTED)


def raise_for(status: AckStatus | None) -> None:
    """Raise the exception of FastStream's that says the same as a handler's call.

    Raises:
        NackMessage: the handler put the message off.
        RejectMessage: the handler wants it no more.
    """
    if status is AckStatus.NACKED:
        raise NackMessage
    if status is AckStatus.REJECTED:
        raise RejectMessage


def ours(error: BaseException) -> BaseException:
    """Return what our pipeline is to be told of an exception of a handler."""
    if isinstance(error, NackMessage):
        return RetryLater(str(error))
    return RejectNow(str(error)) if isinstance(error, RejectMessage) else error
