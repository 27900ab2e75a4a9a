"""What aio-pika's channels and connections do not say plainly.

Robust channels: waited for until they are open, and opened again where aio-pika leaves them closed.

After a channel was closed aio-pika 10.2 opens it anew and declares what was declared on it. Where that fails,
since a queue of ``get_queue`` or an exchange of ``get_exchange`` is missing, it tries no more: the channel stays
closed after the queue is back, until the connection itself is lost.

A connection that the broker has blocked by an alarm may be lost before it is unblocked. aiormq 7.2 wakes who
waits for it only when the broker says that it is unblocked, and a lost one never hears of it: a publish hangs, and
aio-pika, which waits with the channel's lock in hand, opens that channel no more. So they are woken when the
connection is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet, ref

from aio_pika import exceptions
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractRobustChannel

from mqauth.brokers.event_loop import was_cancelled
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


RETRY: Final = 1.0
"""Seconds between two attempts on one channel."""
SAY: Final = 30.0
"""Seconds between two lines in the log about one channel."""
_RESTORE: Final = 10.0
_PATIENCE: Final = 1.0
_POLL: Final = 0.02


@dataclass(slots=True)
class _Tried:
    """When a channel was last tried and told of, in seconds of the event loop."""

    at: float = float("-inf")
    said: float = float("-inf")

    def say(self, now: float, why: object) -> None:
        """Log why it is not open, unless that was said a moment ago."""
        if now - self.said >= SAY:
            self.said = now
            _LOG.error("a channel cannot be opened again, tried until it can: %s", why)


_TRIED: Final[WeakKeyDictionary[AbstractRobustChannel, _Tried]] = WeakKeyDictionary()
_WATCHED: Final[WeakSet[Any]] = WeakSet()
_UNBLOCKED: Final = "_Connection__connection_unblocked"


async def ready(channel: AbstractChannel) -> None:
    """Wait until a robust channel is open, again if need be; a plain one never reopens.

    ``ready()`` of aio-pika returns at once while a channel the broker has just closed is not yet reopened, and
    never for one that its owner closed.

    Raises:
        ClosedByOwnerError: channel or connection was closed by its owner.
        aio_pika.exceptions.AMQPError: it cannot be opened now, since something declared on it is missing.
    """
    while isinstance(channel, AbstractRobustChannel) and not await _is_open(channel):
        await reopen(channel)
        await asyncio.sleep(_POLL)
    watch(channel)


def watch(channel: object) -> None:
    """Have a channel's connection, once it is lost, wake who waits for the broker to unblock it."""
    connection = _transport(channel)
    if connection is None or connection in _WATCHED:
        return
    _WATCHED.add(connection)
    unblocked = ref(getattr(connection, _UNBLOCKED))
    connection.closing.add_done_callback(lambda _: _wake(unblocked()))


def _wake(unblocked: asyncio.Event | None) -> None:
    """Wake who waits for an event, where it is still there."""
    if unblocked is not None:
        unblocked.set()


async def reopen(channel: object) -> None:
    """Have aio-pika open a closed robust channel again, at most once a second; nothing for any other channel.

    One that its owner closed stays as it is, and one whose connection is down is aio-pika's own to open.

    Raises:
        aio_pika.exceptions.AMQPError: it cannot be opened now; the text names what is missing.
    """
    watch(channel)
    if not isinstance(channel, AbstractRobustChannel) or not channel.is_closed:
        return
    now, tried = asyncio.get_running_loop().time(), _TRIED.setdefault(channel, _Tried())
    if now - tried.at < RETRY:
        return
    tried.at = now
    if not _is_connected(channel):
        return tried.say(now, "its connection is down")
    try:
        async with asyncio.timeout(_RESTORE):
            with closing_is_an_error():
                await channel.restore()
    except LOST as error:
        tried.say(now, error)
        raise


async def _is_open(channel: AbstractRobustChannel) -> bool:
    """Tell whether a robust channel is open, after waiting a little for it."""
    closed = asyncio.ensure_future(channel.closed())
    connection = getattr(channel, "_connection", None)
    if closed.done() or getattr(connection, "is_closed", False):
        raise ClosedByOwnerError("the channel was closed by its owner")
    closed.cancel()
    try:
        async with asyncio.timeout(_PATIENCE):
            await channel.ready()
    except TimeoutError:
        return False
    return not channel.is_closed


def _is_connected(channel: object) -> bool:
    """Tell whether the channel's connection is up."""
    connection = _transport(channel)
    return connection is not None and not connection.is_closed


def _transport(channel: object) -> Any:
    """Return aiormq's connection of a channel, ``None`` while there is none."""
    return getattr(getattr(getattr(channel, "_connection", None), "transport", None), "connection", None)
