"""Robust channels: waited for until they are open, and opened again where aio-pika leaves them closed.

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
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet, ref

from aio_pika.abc import AbstractChannel, AbstractRobustChannel

from mqauth.brokers.rabbitmq.channel import LOST, ClosedByOwnerError, closing_is_an_error

RETRY: Final = 1.0
"""Seconds between two attempts on one channel."""
SAY: Final = 30.0
"""Seconds between two lines in the log about one channel."""
_RESTORE: Final = 10.0
_PATIENCE: Final = 1.0
_POLL: Final = 0.02
_LOG: Final = logging.getLogger("mqauth.rabbitmq")


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
