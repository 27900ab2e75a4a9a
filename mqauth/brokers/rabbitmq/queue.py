"""The calls of aio-pika and aiormq for one queue: consume, cancel, ack, give back, and ask if a channel lives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary, ref

from aio_pika.abc import AbstractIncomingMessage, AbstractQueue, AbstractRobustChannel
from aio_pika.exceptions import AMQPChannelError
from aiormq.abc import AbstractChannel

from mqauth.brokers.amqp_topology import OFFSET, is_stream, stream_refused
from mqauth.brokers.queue.channel import PART, RoundTrip, Send
from mqauth.brokers.queue.client import OpenChannel, Take
from mqauth.brokers.rabbitmq import channel as channels
from mqauth.brokers.rabbitmq.incoming import subscribed
from mqauth.brokers.rabbitmq.interceptor import echoed
from mqauth.brokers.rabbitmq.topology import refusal
from mqauth.brokers.rabbitmq.translate import failures_of, from_native
from mqauth.errors import ConfigurationError
from mqauth.logs import emit
from mqauth.wire.message import Message


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
        self._type_unknown = True

    def watch(self, closed: Callable[[str, bool], None], cancelled: Callable[[str], None]) -> None:
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
        return OpenChannel(channel, sender(channel, self.queue), channel.connection, echoed)

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
        return isinstance(error, channels.LOST) and not isinstance(error, channels.ClosedByOwnerError)

    def is_blocked(self) -> bool:
        """Return whether the broker has blocked the connection."""
        return self._channel is not None and not self._channel.is_closed and channels.is_blocked(self._channel)

    def may_be_refused(self, native: AbstractIncomingMessage, /) -> bool:
        """Return, once, whether a delivery has a stream's header, which any publisher can write too."""
        if not self._type_unknown or OFFSET not in native.headers:
            return False
        self._type_unknown = False
        return True

    async def refusal(self) -> ConfigurationError | None:
        """Ask the broker whether the queue is a stream; return the error for one, else ``None``."""
        if self._channel is None or not await is_stream(partial(refusal, self._channel, self.queue)):
            return None
        return stream_refused(self.queue)

    def _on_close(self, _channel: object, error: BaseException | None) -> None:
        self._closed(type(error).__name__, isinstance(error, AMQPChannelError))

    def _on_cancel(self, frame: Any) -> None:
        self._cancelled(frame.consumer_tag)


_ROUND_TRIPS: Final[WeakKeyDictionary[Any, RoundTrip]] = WeakKeyDictionary()


def round_trip(channel: Any, *, part: float = PART) -> RoundTrip:
    """Return the round trips of aiormq's channel; ``part`` as in ``RoundTrip``, where they are new."""
    found = _ROUND_TRIPS.get(channel)
    if found is None:
        # A strong reference would keep the key of the dictionary alive.
        known = ref(channel)
        found = RoundTrip(lambda: _answers(known()), lambda: channels.is_blocked(known()), part=part)
        _ROUND_TRIPS[channel] = found
    return found


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

    async def send(tag: int, multiple: bool) -> bool:
        return await channels.try_settle(partial(channel.basic_ack, tag, multiple=multiple), f"ack on {queue}")

    return send
