"""FastStream's acknowledgements: mqauth settles, and what a handler says by them is told to the pipeline."""

from __future__ import annotations

from functools import partial
from typing import Any

from faststream import AckPolicy
from faststream.exceptions import NackMessage, RejectMessage
from faststream.message import AckStatus

from mqauth.errors import RejectNow, RetryLater, require


def require_manual(subscriber: Any) -> None:
    """Refuse a subscriber whose messages FastStream settles.

    Raises:
        ConfigurationError: it does.
    """
    require(
        subscriber.ack_policy is AckPolicy.MANUAL,
        "mqauth settles what a protected broker gets: its subscribers, and routers, have AckPolicy.MANUAL",
    )


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
    """Return what a handler raised as the pipeline knows it."""
    if isinstance(error, NackMessage):
        return RetryLater(str(error))
    return RejectNow(str(error)) if isinstance(error, RejectMessage) else error
