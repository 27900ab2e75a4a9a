"""What aio-pika's channels and connections do not say plainly."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, Final

from aio_pika import exceptions
from aio_pika.abc import AbstractIncomingMessage

from mqauth.brokers.queue.tasks import was_cancelled
from mqauth.errors import MqauthError

LOST: Final = (exceptions.AMQPError, exceptions.ChannelInvalidStateError, OSError)
"""What aio-pika raises where a channel or connection is gone, or the broker says no."""
_LOG: Final = logging.getLogger("mqauth.rabbitmq")


class ClosedByOwnerError(MqauthError, exceptions.ChannelInvalidStateError):
    """Channel or connection were closed by their owner: nothing will reopen them."""

    code = "closed"


def is_stale(incoming: AbstractIncomingMessage) -> bool:
    """Tell whether a delivery is from before a reconnect: the broker delivers it again."""
    try:
        return incoming.channel.is_closed
    except exceptions.ChannelInvalidStateError:
        return True


@contextmanager
def closing_is_an_error() -> Iterator[None]:
    """Raise ``AMQPConnectionError`` for what aio-pika and aiormq 7.2 raise only because a connection ended.

    aiormq cancels what is awaited, or fails it with a bare ``Exception()`` where the connection ended between two
    frames; some states of a closed channel are a ``RuntimeError``. Every call of the client goes through here.
    """
    try:
        yield
    except asyncio.CancelledError:
        if was_cancelled():
            raise
        raise lost_unanswered() from None
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, RuntimeError):
            raise
        raise lost_unanswered() from error


def lost_unanswered() -> exceptions.AMQPConnectionError:
    """Return what is raised where aiormq cancels what is awaited."""
    return exceptions.AMQPConnectionError("the connection closed before an answer")


def is_blocked(channel: Any) -> bool:
    """Tell whether the broker has blocked the connection of aiormq's channel, by an alarm: it answers nothing.

    aiormq says so only by its connection's ``ready``, which waits; one that is ready at once is not blocked.
    """
    waits = channel.connection.ready()
    try:
        waits.send(None)
    except StopIteration:
        return False
    finally:
        waits.close()
    return True


async def told(act: Callable[[], Awaitable[None]], what: str) -> bool:
    """Ack or requeue; log and return ``False`` where the delivery's connection is gone.

    Args:
        act: does it.
        what: names it in the log.
    """
    try:
        with closing_is_an_error():
            await act()
    except LOST as error:
        _LOG.warning("%s failed, the broker will deliver again: %s", what, type(error).__name__)
        return False
    return True


def is_untouched(native: object, method: str) -> bool:
    """Tell whether a method is aio-pika's own, and not replaced by instrumentation that must see each call.

    A proxy of wrapt's gives itself out for the function it wraps, in ``__class__`` and ``__module__``, and
    ``functools.wraps`` copies ``__module__``; a function's own type and globals are its own.
    """
    found = [one for kind in type(native).__mro__ if (one := kind.__dict__.get(method)) is not None]
    if not found or method in getattr(native, "__dict__", ()):
        return False
    return all(type(one) is FunctionType and one.__globals__["__name__"].startswith("aio_pika.") for one in found)


def share_connection(one: object, other: object) -> bool:
    """Tell whether two channels are known to be of one connection."""
    connection = getattr(one, "_connection", None)
    return connection is not None and connection is getattr(other, "_connection", None)
