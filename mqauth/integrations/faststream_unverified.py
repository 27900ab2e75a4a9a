"""FastStream's second handler: for messages that a rung below ``enforce``, or an exemption, lets pass unproven.

FastStream chooses a subscriber's handler by filters. Here one filter names the handler that takes what nothing
proved, and every other one is asked only of what was verified.

mqauth settles: what a handler says by FastStream's acknowledgements is told to the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from inspect import unwrap
from typing import Any, Final, get_type_hints

from faststream import AckPolicy
from faststream.exceptions import NackMessage, RejectMessage
from faststream.message import AckStatus

from mqauth.errors import RejectNow, RetryLater, require
from mqauth.judging.rollout import EVERYWHERE
from mqauth.judging.verified import Unverified, Verified, kind_of

_PASSED: Final[ContextVar[Unverified | None]] = ContextVar(
    "mqauth_unverified", default=None
)
"""The message that is handled now, where nothing proved it."""


class UnverifiedFilter:
    """The filter of a handler that takes what nothing proved, and no verified message.

    Args:
        kind: the kind of an exemption; ``"*"`` for all without a kind.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    async def __call__(self, _message: Any) -> bool:
        """Return whether nothing proved the message that is handled now, and it is of this kind."""
        message = _PASSED.get()
        return message is not None and (kind_of(message) or EVERYWHERE) == self.kind

    def of(self, kind: str) -> UnverifiedFilter:
        """Return the filter of one kind of exemption."""
        return UnverifiedFilter(kind)


unverified: Final = UnverifiedFilter(EVERYWHERE)
"""Give it as it is: ``@subscriber(filter=unverified)``, or ``filter=unverified.of(kind)`` for a kind of exemption.

No other handler of the subscriber gets what nothing proved."""


def kinds_of(endpoint: Any) -> tuple[str, ...]:
    """Return the kinds for which a subscriber has such a handler; a publisher has none."""
    calls = getattr(endpoint, "calls", ())
    return tuple(
        call.filter.kind for call in calls if isinstance(call.filter, UnverifiedFilter)
    )


def check_handlers(subscriber: Any) -> None:
    """Refuse handlers that ask for what they never get.

    Raises:
        ConfigurationError: one behind ``filter=unverified`` takes a ``Verified``, or another an ``Unverified``.
    """
    for call in subscriber.calls:
        kind = Verified if isinstance(call.filter, UnverifiedFilter) else Unverified
        text = f"{call.name} never gets a message of the kind {kind.__name__}, which it takes: look at its filter"
        hints: dict[str, Any] = {}
        # a type of its own module that only its type checker knows is no name at run time
        with suppress(NameError, TypeError):
            hints = get_type_hints(unwrap(call.handler._original_call))
        require(kind not in hints.values(), text)


@contextmanager
def passing(subscriber: Any, message: Verified | Unverified) -> Iterator[None]:
    """Have a subscriber's filters choose for a message."""
    unproven = message if isinstance(message, Unverified) else None
    # All filters but ours ask for a proof first; a handler may have been added a moment ago.
    for call in subscriber.calls if unproven is not None else ():
        if (
            not isinstance(call.filter, UnverifiedFilter)
            and getattr(call.filter, "func", None) is not _proven
        ):
            call.filter = partial(_proven, call.filter)
    token = _PASSED.set(unproven)
    try:
        yield
    finally:
        _PASSED.reset(token)


async def _proven(chosen: Any, message: Any) -> bool:
    return _PASSED.get() is None and await chosen(message)


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
    said = {AckStatus.NACKED: NackMessage, AckStatus.REJECTED: RejectMessage}
    if status in said:
        raise said[status]


def ours(error: BaseException) -> BaseException:
    """Return what a handler raised as the pipeline knows it."""
    if isinstance(error, NackMessage):
        return RetryLater(str(error))
    return RejectNow(str(error)) if isinstance(error, RejectMessage) else error
