"""The RabbitMQ consumer: an aio-pika queue with the delivery engine, and a refusal of what cannot work.

``Queue`` makes the calls of aio-pika and aiormq for one queue: consume, cancel, ack, give back, and so on.

Deliveries of aiormq become aio-pika's ``IncomingMessage``, whatever they hold, from an instrumented queue too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Unpack
from weakref import WeakKeyDictionary, ref

from aio_pika.abc import (
    AbstractIncomingMessage,
    AbstractQueue,
    AbstractRobustChannel,
    AbstractRobustQueue,
)
from aio_pika.exceptions import AMQPChannelError
from aio_pika.message import IncomingMessage, decode_expiration
from aiormq.abc import AbstractChannel, DeliveredMessage

from mqauth.brokers.amqp_messages import (
    DEFAULT_DELIVERY_LIMIT,
    OFFSET,
    is_stream,
    stream_refused,
    warn_of_shared_connection,
)
from mqauth.brokers.dead_letters import responder_of
from mqauth.brokers.options import QueueOptions
from mqauth.brokers.queue.client import PART, OpenChannel, RoundTrip, Send, Take
from mqauth.brokers.queue.consumer import QueueConsumer
from mqauth.brokers.rabbitmq import channel as channels
from mqauth.brokers.rabbitmq.confirmed import refusal
from mqauth.brokers.rabbitmq.translate import failures_of, from_native
from mqauth.delivery.slot import NO_LIMIT
from mqauth.errors import ConfigurationError
from mqauth.judging.pipeline import Handler, Pipeline, V
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.logs import emit
from mqauth.wire.message import Message

if TYPE_CHECKING:
    from mqauth.brokers.rabbitmq.producer import Producer


class Consumer(QueueConsumer):
    """Gives the verified messages of one queue to a handler, and dead-letters the rest.

    Args:
        queue: a connected aio-pika queue, on a connection of its own; ``declare_source`` makes the
            recommended kind.
        guard: the pipeline.
        handler: takes a ``Verified``; may be asynchronous. A synchronous one blocks the event loop.
        dead_letters: where rejected messages go, best on another connection.
        replies: signs and publishes what ``Verified.reply`` is given, on a default exchange.
        options: as ``mqauth.brokers.options.QueueOptions`` has them.

    Raises:
        ConfigurationError: the pipeline has no audit, or a setting is out of its limits.
    """

    def __init__(
        self,
        queue: AbstractQueue,
        guard: Pipeline,
        handler: Handler[V],
        *,
        dead_letters: DeadLetterSink,
        replies: Producer | None = None,
        **options: Unpack[QueueOptions[V]],
    ) -> None:
        options["delivery_limit"] = limit_of(queue, options.get("delivery_limit"))
        responder = responder_of(replies)
        super().__init__(
            Queue(queue),
            guard,
            handler,
            dead_letters=dead_letters,
            responder=responder,
            **options,
        )
        if (getattr(queue, "arguments", None) or {}).get("x-queue-type") == "stream":
            raise stream_refused(queue.name)
        connection = getattr(queue.channel, "_connection", None)
        letters = getattr(getattr(dead_letters, "channel", None), "_connection", None)
        if connection is not None and connection is letters:
            warn_of_shared_connection(queue.name)
        if _is_classic(queue):
            emit(
                "client.classic_queue",
                "%s is no quorum queue: one undecodable message would stop it for ever",
                queue.name,
            )


def _is_classic(queue: AbstractQueue) -> bool:
    """Return whether a queue is known to be no quorum queue; one that was got by its name is not known."""
    declared = getattr(queue, "arguments", None) or {}
    return (
        not getattr(queue, "passive", False) and declared.get("x-queue-type") != "quorum"
    )


def limit_of(queue: AbstractQueue, configured: int | None) -> int:
    """Return the delivery limit of a queue: as configured, as declared here, or RabbitMQ's own."""
    if configured is not None or _is_classic(queue):
        return NO_LIMIT if configured is None else configured
    limit = (getattr(queue, "arguments", None) or {}).get("x-delivery-limit")
    return limit if isinstance(limit, int) else DEFAULT_DELIVERY_LIMIT


_MODES: Final = (None, 0, 1, 2)
"""Delivery modes that aio-pika can hold; 0 counts as none."""


class Delivered(IncomingMessage):
    """A delivery as aio-pika has it, made faster: aio-pika looks for a lock each time an attribute is set."""

    __slots__ = ()
    __setattr__ = object.__setattr__  # type: ignore[assignment]


class Unreadable(Delivered):
    """A delivery that aio-pika 10.2 cannot hold: its ``IncomingMessage`` raises, and no callback is called.

    AMQP has one octet for the delivery mode, and RabbitMQ takes any value; aio-pika's ``DeliveryMode`` has two.
    An expiration is text to AMQP, and a number to aio-pika.

    Args:
        message: as aiormq gives it.

    Attributes:
        fault: what aio-pika cannot hold.
    """

    __slots__ = ("fault",)

    def __init__(self, message: DeliveredMessage) -> None:
        header, properties = (
            copy.copy(message.header),
            copy.copy(message.header.properties),
        )
        header.properties, mode = properties, properties.delivery_mode
        self.fault = "a property that aio-pika cannot hold"
        try:
            decode_expiration(properties.expiration)
        except ValueError:
            self.fault, properties.expiration = "the expiration is no number", None
        if mode not in _MODES:
            self.fault, properties.delivery_mode = (
                f"delivery-mode {mode} is neither 1 nor 2",
                None,
            )
        super().__init__(replace(message, header=header))
        if mode not in _MODES:
            self.delivery_mode = mode  # type: ignore[assignment]


def delivered(message: DeliveredMessage) -> IncomingMessage:
    """Return what aiormq's ``basic_consume`` or ``basic_get`` gave as aio-pika has it; never raises.

    An ``Unreadable`` stands for a delivery that aio-pika cannot hold.
    """
    try:
        return Delivered(message)
    except Exception:
        return Unreadable(message)


def as_incoming(
    message: DeliveredMessage | AbstractIncomingMessage,
) -> AbstractIncomingMessage:
    """Return a delivery as aio-pika has it, whether aio-pika or aiormq gave it."""
    return delivered(message) if isinstance(message, DeliveredMessage) else message


async def subscribed(queue: AbstractQueue, channel: AbstractChannel, take: Take) -> str:
    """Consume a queue and return the consumer's tag.

    This goes past aio-pika's ``consume``, which makes two tasks for each delivery, unless it is instrumented.

    Args:
        queue: aio-pika's.
        channel: aiormq's, of the queue.
        take: gets each delivery.
    """
    if channels.is_untouched(queue, "consume"):
        return (
            await channel.basic_consume(queue.name, partial(_taken, take))
        ).consumer_tag or ""
    seen: Any = copy.copy(queue)
    seen.channel = _Reading(queue.channel, channel, take)
    settings = {"robust": False} if isinstance(seen, AbstractRobustQueue) else {}
    tag: str = await seen.consume(take, **settings)
    return tag


async def _taken(take: Take, message: DeliveredMessage) -> None:
    await take(delivered(message))


class _Reading:
    """A channel of aio-pika's, and aiormq's below it, whose consumers get only what aio-pika can hold.

    Args:
        channel: aio-pika's.
        below: aiormq's.
        take: gets the rest, past the instrumentation.
    """

    def __init__(self, channel: Any, below: AbstractChannel, take: Take) -> None:
        self._channel = channel
        self._below = below
        self._take = take

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    async def get_underlay_channel(self) -> Any:
        """Return itself, in place of aiormq's channel."""
        return self

    async def basic_consume(
        self, queue: str, consumer_callback: Callable[..., Any], **settings: Any
    ) -> Any:
        """Consume as aiormq does."""
        return await self._below.basic_consume(
            queue, partial(self._read, consumer_callback), **settings
        )

    async def _read(
        self, callback: Callable[..., Any], message: DeliveredMessage
    ) -> None:
        incoming = delivered(message)
        await (
            self._take(incoming)
            if isinstance(incoming, Unreadable)
            else callback(message)
        )


class Deliveries:
    """The calls for the deliveries of one queue (``DeliveryClient``).

    Args:
        queue: its name.
        scope: on whose behalf they are taken; by default the queue.
    """

    ended = staticmethod(channels.is_stale)
    returns = staticmethod(failures_of)

    def __init__(self, queue: str, scope: str | None = None) -> None:
        self.queue = queue
        self._scope = scope

    def message(self, native: AbstractIncomingMessage, /) -> Message:
        """Return a delivery as a message."""
        return from_native(native, queue=self.queue, scope=self._scope)

    def tag(self, native: AbstractIncomingMessage, /) -> int:
        """Return its number on its channel."""
        return native.delivery_tag or 0

    def consumer(self, native: AbstractIncomingMessage, /) -> str:
        """Return the tag of the consumer that it came to."""
        return native.consumer_tag or ""

    def size(self, native: AbstractIncomingMessage, /) -> int:
        """Return the bytes of its body."""
        return len(native.body or b"")

    def is_settled(self, native: AbstractIncomingMessage, /) -> bool:
        """Return whether its handler settled it itself."""
        return native.processed

    async def ack(self, native: AbstractIncomingMessage, /) -> bool:
        """Ack it alone; return ``False`` where its channel is gone."""
        return await channels.try_settle(native.ack, f"ack on {self.queue}")

    async def requeue(self, native: AbstractIncomingMessage, /) -> bool:
        """Give it back; return ``False`` where its channel is gone."""
        return await channels.try_settle(native.nack, f"requeue on {self.queue}")

    async def lives(self, native: AbstractIncomingMessage, /) -> bool:
        """Return whether its channel answers a question that is asked from now on; closed where it does not."""
        return await round_trip(native.channel).lives()


class Queue(Deliveries):
    """The calls for one queue (``QueueClient``).

    Args:
        queue: aio-pika's.
    """

    def __init__(self, queue: AbstractQueue) -> None:
        super().__init__(queue.name)
        self.reopens = isinstance(queue.channel, AbstractRobustChannel)
        self._native = queue
        self._channel: AbstractChannel | None = None

    def watch(
        self, closed: Callable[[str, bool], None], cancelled: Callable[[str], None]
    ) -> None:
        """Report from now on why the channel ended, and whether it did alone; and which consumer was cancelled."""
        self._closed, self._cancelled = closed, cancelled
        self._native.channel.close_callbacks.add(self._on_close)

    def unwatch(self) -> None:
        """Report it no longer."""
        self._native.channel.close_callbacks.discard(self._on_close)

    async def ready(self) -> None:
        """Wait until the channel is open."""
        await channels.ready(self._native.channel)

    async def open(self, prefetch: int) -> OpenChannel:
        """Set the window of the channel; return aiormq's channel."""
        with channels.closing_is_an_error():
            await self._native.channel.set_qos(prefetch_count=prefetch)
            self._channel = channel = await self._native.channel.get_underlay_channel()
            channel.on_consumer_cancel_callbacks.add(self._on_cancel)
        return OpenChannel(
            channel, sender(channel, self.queue), channel.connection, channels.echoed
        )

    async def consume(self, channel: AbstractChannel, take: Take) -> str:
        """Have each delivery on aiormq's channel given to ``take``; return the consumer's tag."""
        with channels.closing_is_an_error():
            return await subscribed(self._native, channel, take)

    async def cancel(self, consumer: str) -> None:
        """Cancel a consumer, and return when no more of its deliveries come."""
        try:
            with channels.closing_is_an_error():
                await self._native.cancel(consumer)
        except channels.LOST as error:
            emit(
                "client.cancel_failed",
                "cancelling the consumer of %s failed: %s",
                self.queue,
                type(error).__name__,
            )

    def is_temporary(self, error: BaseException) -> bool:
        """Return whether an error that kept it from consuming may pass; not where the owner closed the channel."""
        return isinstance(error, channels.LOST) and not isinstance(
            error, channels.ClosedByOwnerError
        )

    def is_blocked(self) -> bool:
        """Return whether the broker has blocked the connection."""
        return (
            self._channel is not None
            and not self._channel.is_closed
            and channels.is_blocked(self._channel)
        )

    def may_be_refused(self, native: AbstractIncomingMessage, /) -> bool:
        """Return whether a delivery has a stream's header, which any publisher can write too."""
        return OFFSET in native.headers

    async def refusal(self) -> ConfigurationError | None:
        """Ask the broker whether the queue is a stream; return the error for one, else ``None``."""
        if self._channel is None or not await is_stream(
            partial(refusal, self._channel, self.queue)
        ):
            return None
        return stream_refused(self.queue)

    def _on_close(self, _channel: object, error: BaseException | None) -> None:
        self._closed(type(error).__name__, isinstance(error, AMQPChannelError))

    def _on_cancel(self, frame: Any) -> None:
        self._cancelled(frame.consumer_tag)


_ROUND_TRIPS: Final[WeakKeyDictionary[Any, RoundTrip]] = WeakKeyDictionary()


def round_trip(channel: Any, *, part: float = PART) -> RoundTrip:
    """Return the round trips of aiormq's channel; ``part`` as in ``RoundTrip``, where they are new."""
    asked = _ROUND_TRIPS.get(channel)
    if asked is None:
        # A strong reference would keep the key of the dictionary alive.
        known = ref(channel)
        asked = RoundTrip(
            lambda: _answers(known()), lambda: channels.is_blocked(known()), part=part
        )
        _ROUND_TRIPS[channel] = asked
    return asked


async def _answers(channel: Any) -> bool:
    """Ask on a channel; return ``False`` where it ended. aiormq closes a channel whose call is cancelled.

    The question is ``channel.flow`` with ``active=true``, which a channel is anyway (AMQP 0-9-1, 1.5.2.3). Unlike
    ``basic.qos`` it needs no value of the consumer's.
    """
    try:
        with channels.closing_is_an_error():
            await channel.flow(active=True)
    except channels.LOST:
        return False
    return True


def sender(channel: AbstractChannel, queue: str) -> Send:
    """Return what sends the acks of aiormq's channel, and returns ``False`` where the channel is gone."""
    return lambda tag, multiple: channels.try_settle(
        partial(channel.basic_ack, tag, multiple=multiple), f"ack on {queue}"
    )
