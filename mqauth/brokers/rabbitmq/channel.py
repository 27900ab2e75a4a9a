"""Channels and connections of aio-pika: their errors, their state, and channels that must be opened again.

After the broker has closed a channel, aio-pika 10.2 opens it again and declares what was declared on it. Where
that fails, because a queue of ``get_queue`` or an exchange of ``get_exchange`` is missing, it tries no more: the
channel stays closed after the queue is back, until the connection itself is lost. So ``reopen`` tries again.

A connection that the broker has blocked by an alarm may be lost before it is unblocked. aiormq 7.2 wakes those
who wait for that only when the broker says that it is unblocked, and a lost one never hears of it: a publish
hangs, and aio-pika, which waits while it holds the channel's lock, never opens that channel again. So ``watch``
wakes them when the connection is lost.

``echoed`` asks whether RabbitMQ overwrites append times (``brokers.queue.client``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final
from weakref import WeakSet

from aio_pika import exceptions
from aio_pika.abc import (
    AbstractChannel,
    AbstractIncomingMessage,
    AbstractRobustChannel,
    AbstractRobustConnection,
)
from aiormq.abc import AbstractConnection, DeliveredMessage
from pamqp.commands import Basic

from mqauth.brokers.event_loop import was_cancelled
from mqauth.brokers.queue.client import UnansweredError, prove, refusals
from mqauth.errors import MqauthError, StaleDelivery, require
from mqauth.judging.token import Times
from mqauth.logs import emit

LOST: Final = (exceptions.AMQPError, exceptions.ChannelInvalidStateError, OSError)
"""Errors of aio-pika where a channel or connection is gone, or the broker says no."""
RETRY: Final = 1.0
"""Seconds between two attempts to open one channel."""


class ClosedByOwnerError(MqauthError, exceptions.ChannelInvalidStateError):
    """Channel or connection was closed by its owner: nothing will open it again."""

    code = "closed"


def is_stale(incoming: AbstractIncomingMessage) -> bool:
    """Return whether a delivery is from before a reconnect: the broker delivers it again."""
    try:
        return incoming.channel.is_closed
    except exceptions.ChannelInvalidStateError:
        return True


@contextmanager
def closing_is_an_error() -> Iterator[None]:
    """Raise ``AMQPConnectionError`` for what aio-pika and aiormq 7.2 raise when a connection ended.

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
    """Return the error for a connection that closed before an answer."""
    return exceptions.AMQPConnectionError("the connection closed before an answer")


def is_blocked(channel: Any) -> bool:
    """Return whether the broker has blocked the connection of aiormq's channel by an alarm: it answers nothing.

    aiormq tells so only by its connection's ``ready``, which waits; where that returns at once, it is not blocked.
    """
    with closing(channel.connection.ready()) as waits, suppress(StopIteration):
        waits.send(None)
        return True
    return False


async def try_settle(act: Callable[[], Awaitable[None]], what: str) -> bool:
    """Ack or requeue; log and return ``False`` where the delivery's connection is gone.

    Args:
        act: does it.
        what: names it in the log.
    """
    try:
        with closing_is_an_error():
            await act()
    except LOST as error:
        emit(
            "client.settle_failed",
            "%s failed, the broker will deliver again: %s",
            what,
            type(error).__name__,
        )
        return False
    return True


def is_untouched(native: object, method: str) -> bool:
    """Return whether a method is aio-pika's own, and not replaced by instrumentation that must see each call.

    A proxy of wrapt pretends to be the function that it wraps, in ``__class__`` and ``__module__``, and
    ``functools.wraps`` copies ``__module__``. A function's own type and globals cannot be copied.
    """
    methods = [
        each
        for kind in type(native).__mro__
        if (each := kind.__dict__.get(method)) is not None
    ]
    if not methods or method in getattr(native, "__dict__", ()):
        return False
    return all(
        type(each) is FunctionType
        and each.__globals__["__name__"].startswith("aio_pika.")
        for each in methods
    )


@dataclass(slots=True)
class _Tried:
    """The newest attempt to open one channel; times are seconds of the event loop."""

    at: float = float("-inf")
    said: float = float("-inf")
    opening: asyncio.Task[Exception | None] | None = None

    def say(self, now: float, why: object) -> None:
        # Seconds between two log lines about one channel.
        if now - self.said >= 30.0:
            self.said = now
            emit(
                "client.channel_failed",
                "a channel cannot be opened again, tried until it can: %s",
                why,
            )


_WATCHED: Final[WeakSet[Any]] = WeakSet()


async def ready(channel: AbstractChannel) -> None:
    """Wait until a robust channel is open, and open it again if need be; a plain channel is never opened again.

    ``ready()`` of aio-pika returns at once while a channel that the broker has just closed is not open again yet,
    and never for one that its owner closed.

    Raises:
        ClosedByOwnerError: channel or connection was closed by its owner.
        aio_pika.exceptions.AMQPError: it cannot be opened now, since something declared on it is missing.
    """
    while isinstance(channel, AbstractRobustChannel):
        require(
            not _is_ended(channel),
            "the channel was closed by its owner",
            ClosedByOwnerError,
        )
        # It is waited for a little.
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await channel.ready()
            if not channel.is_closed:
                break
        await reopen(channel)
        await asyncio.sleep(0.02)
    watch(channel)


def watch(channel: object) -> None:
    """Once a channel's connection is lost, wake those who wait for the broker to unblock it."""
    connection = _transport(channel)
    if connection is None or connection in _WATCHED:
        return
    _WATCHED.add(connection)
    unblocked: asyncio.Event = connection._Connection__connection_unblocked
    connection.closing.add_done_callback(lambda _: unblocked.set())


async def reopen(channel: object) -> None:
    """Wait until a robust channel that the broker has closed is open again; do nothing for any other channel.

    A channel that its owner closed stays closed, and one whose connection is down is opened by aio-pika itself.
    Those who wait share one attempt, and within a second its failure: it may be somebody else's exchange that is
    missing.

    Raises:
        aio_pika.exceptions.AMQPError: it cannot be opened now; the text names what is missing.
        TimeoutError: the broker does not answer.
    """
    watch(channel)
    if not isinstance(channel, AbstractRobustChannel) or not channel.is_closed:
        return
    # On the channel itself: the error of an attempt leads back to its channel, so that a
    # table of channels would keep both for ever.
    tried: _Tried = vars(channel).setdefault("_mqauth_tried", _Tried())
    now = asyncio.get_running_loop().time()
    if not _is_up(channel):
        return tried.say(now, "its connection is down")
    opening = tried.opening
    if opening is not None and opening.done():
        # A failure counts for a second.
        failed = not opening.cancelled() and opening.result() is not None
        opening = opening if failed and now - tried.at < RETRY else None
    if opening is None:
        tried.at = now
        opening = tried.opening = asyncio.create_task(_restore(channel))
    error = await asyncio.shield(opening)
    if error is not None:
        tried.say(now, error)
        # Without the frames of all who were told before.
        raise error.with_traceback(None)


async def _restore(channel: AbstractRobustChannel) -> Exception | None:
    """Have aio-pika open a channel again; return what it raises."""
    try:
        async with asyncio.timeout(10.0):
            # aio-pika does nothing where it has not heard yet that the channel is closed.
            while channel.is_closed and not _is_ended(channel) and _is_up(channel):
                with closing_is_an_error():
                    await channel.restore()
                await asyncio.sleep(0.02 if channel.is_closed else 0)
    except Exception as error:
        return error
    return None


def _is_ended(channel: AbstractRobustChannel) -> bool:
    """Return whether the owner has closed a channel or its connection: nothing will open it again."""
    # Before aio-pika 10.2 it is the channel's own future, which must not be cancelled.
    closed = asyncio.ensure_future(asyncio.shield(channel.closed()))
    if closed.done():
        return True
    closed.cancel()
    return bool(getattr(getattr(channel, "_connection", None), "is_closed", False))


def _is_up(channel: object) -> bool:
    """Return whether the connection of a channel is up, as far as is known."""
    connection = _transport(channel)
    return connection is not None and not connection.is_closed


def _transport(channel: object) -> Any:
    """Return aiormq's connection of a channel, ``None`` while there is none."""
    return getattr(
        getattr(getattr(channel, "_connection", None), "transport", None),
        "connection",
        None,
    )


async def proved(
    times: Times, source: AbstractIncomingMessage | AbstractRobustConnection
) -> None:
    """Return once a broker has proved that it overwrites append times; it is asked until it answers.

    For whoever takes deliveries from a consumer that is not ours.

    Args:
        times: of the verifier.
        source: a delivery, or a connection that comes back by itself.

    Raises:
        ConfigurationError: the broker leaves a sender's stamp as it is, or refuses the question.
        StaleDelivery: the delivery's channel ended: the broker delivers it again.
    """
    while times.append_evidence is not None:
        # aiormq's connection as it is now
        if isinstance(source, AbstractRobustConnection):
            await source.ready()
            connection = require(source.transport, "the connection is closed").connection
        elif is_stale(source):
            raise StaleDelivery("its channel ended before its append time was proved")
        else:
            connection = source.channel.connection
        try:
            return await prove(times, connection, echoed)
        except UnansweredError as error:
            emit("client.append_unproved", "append times are not proved yet: %s", error)
        await asyncio.sleep(RETRY)


async def echoed(
    connection: AbstractConnection, headers: dict[str, Any], body: bytes
) -> Mapping[str, Any]:
    """Send a message to an exclusive queue on aiormq's connection, and return the headers it comes back with.

    Raises:
        ConfigurationError: the broker refuses.
        UnansweredError: the connection was lost.
    """
    answer: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()

    async def take(message: DeliveredMessage) -> None:
        # whoever knows the queue's name may send to it, too
        if message.body == body and not answer.done():
            answer.set_result(message.header.properties.headers or {})

    with refusals(exceptions.AMQPChannelError, LOST), closing_is_an_error():
        # confirms: a publish that is refused closes the channel, and its confirm raises why
        asking = await connection.channel()
        try:
            name = (
                await asking.queue_declare(exclusive=True, auto_delete=True)
            ).queue or ""
            await asking.basic_consume(name, take, no_ack=True)
            await asking.basic_publish(
                body, routing_key=name, properties=Basic.Properties(headers=headers)
            )
            return await answer
        finally:
            # the queue goes with its consumer; where its close is cancelled, aiormq 7.2 sends a second one
            with suppress(TimeoutError, *LOST):
                # Seconds in which a channel is to be closed; a blocked connection answers nothing.
                await asyncio.wait_for(asyncio.shield(asking.close()), 1.0)
