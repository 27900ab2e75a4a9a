"""The calls of pika for one queue: consume, cancel, ack, give back, and ask if a channel lives.

pika's calls for the question whether RabbitMQ overwrites append times (``brokers.queue.interceptor``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from pika import BasicProperties
from pika.exceptions import AMQPChannelError

from mqauth.brokers.amqp_topology import OFFSET, is_stream, stream_refused
from mqauth.brokers.event_loop import DeliveryTasks
from mqauth.brokers.pika.confirmed import refusal
from mqauth.brokers.pika.link import LOST, Line, Link
from mqauth.brokers.pika.translate import failures_of, read
from mqauth.brokers.queue.client import OpenChannel, Take
from mqauth.brokers.queue.interceptor import UnansweredError, refused
from mqauth.errors import ConfigurationError
from mqauth.logs import emit
from mqauth.wire.message import Message


class Delivered(NamedTuple):
    """A delivery: what a callback of ``basic_consume`` gets. It is settled by the wrapper.

    Args:
        channel: the channel that it came on.
        method: has ``delivery_tag``, ``exchange``, ``routing_key``, ``redelivered`` and ``consumer_tag``.
        properties: its ``pika.BasicProperties``.
        body: the bytes.
    """

    channel: Any
    method: Any
    properties: Any
    body: bytes


class Deliveries:
    """The calls for the deliveries of one queue (``DeliveryClient``).

    Args:
        queue: its name.
        scope: on whose behalf they are taken; by default the queue.
    """

    def __init__(self, queue: str, scope: str | None = None) -> None:
        self.queue = queue
        self._scope = scope

    def ended(self, native: Delivered, /) -> bool:
        """Return whether its channel ended: the broker delivers it again."""
        return not native.channel.is_open

    def returns(self, native: Delivered, /) -> int:
        """Return how many deliveries of its message count against the queue's delivery limit."""
        return failures_of(native.method, native.properties.headers)

    def message(self, native: Delivered, /) -> Message:
        """Return a delivery as a message."""
        return read(native, queue=self.queue, scope=self._scope)

    def tag(self, native: Delivered, /) -> int:
        """Return its number on its channel."""
        return int(native.method.delivery_tag)

    def consumer(self, native: Delivered, /) -> str:
        """Return the tag of the consumer that it came to."""
        return str(native.method.consumer_tag)

    def size(self, native: Delivered, /) -> int:
        """Return the bytes of its body."""
        return len(native.body)

    def is_settled(self, _native: Delivered, /) -> bool:
        """Return ``False``: a handler has no channel to settle it by."""
        return False


class Queue(Deliveries):
    """The calls for one queue (``QueueClient``), each on a channel of its own.

    Args:
        link: the connection.
        queue: its name.
    """

    reopens = True

    def __init__(self, link: Link, queue: str) -> None:
        super().__init__(queue)
        self._link = link
        self._line: Line | None = None
        self._taking = DeliveryTasks()
        self._type_unknown = True

    async def ack(self, native: Delivered, /) -> bool:
        """Ack it alone; return ``False`` where its channel is gone."""
        return await self._send(native.channel, self.tag(native), False)

    async def requeue(self, native: Delivered, /) -> bool:
        """Give it back; return ``False`` where its channel is gone."""
        return self._settle(partial(native.channel.native.basic_nack, self.tag(native)), "requeue")

    async def lives(self, native: Delivered, /) -> bool:
        """Return whether its channel answers a question that is asked from now on; closed where it does not."""
        line: Line = native.channel
        return line.is_open and await line.round_trip.lives()

    def watch(self, closed: Callable[[str, bool], None], cancelled: Callable[[str], None]) -> None:
        """Report from now on why the channel ended, and whether it did alone; and which consumer was cancelled."""
        self._closed, self._cancelled = closed, cancelled

    def unwatch(self) -> None:
        """Report it no longer, and close the channel."""
        self._closed = lambda *_: None
        if self._line is not None and self._line.is_open:
            self._line.native.close()

    async def ready(self) -> None:
        """Open a channel where there is none."""
        if self._line is None or not self._line.is_open:
            self._line = await self._link.channel(self._on_close)
            self._line.native.add_on_cancel_callback(lambda frame: self._cancelled(frame.method.consumer_tag))

    async def open(self, prefetch: int) -> OpenChannel:
        """Set the window of the channel."""
        line = self._line
        if line is None:
            raise ConfigurationError("the channel was not opened")
        await line.ask(line.native.basic_qos, prefetch_count=prefetch)
        return OpenChannel(line, partial(self._send, line), self._link, echoed)

    async def consume(self, channel: Line, take: Take) -> str:
        """Have each delivery on a channel given to ``take``; return the consumer's tag."""

        def on_message(_channel: object, *parts: Any) -> None:
            self._taking.run(take(Delivered(channel, *parts)))  # type: ignore[arg-type]

        answer = await channel.ask(channel.native.basic_consume, self.queue, on_message)
        return str(answer.method.consumer_tag)

    async def cancel(self, consumer: str) -> None:
        """Cancel a consumer, and return when no more of its deliveries come."""
        try:
            if self._line is not None:
                await self._line.cancel(consumer)
        except LOST as error:
            emit(
                "client.cancel_failed",
                "cancelling the consumer of %s failed: %s",
                self.queue,
                type(error).__name__,
            )

    def is_temporary(self, error: BaseException) -> bool:
        """Return whether an error that kept it from consuming may pass: a channel can be opened anew."""
        return isinstance(error, LOST) and self._link.error is None

    def is_blocked(self) -> bool:
        """Return whether the broker has blocked the connection."""
        return self._link.blocked

    def may_be_refused(self, native: Delivered, /) -> bool:
        """Return, once, whether a delivery has a stream's header, which any publisher can write too."""
        if not self._type_unknown or OFFSET not in (native.properties.headers or {}):
            return False
        self._type_unknown = False
        return True

    async def refusal(self) -> ConfigurationError | None:
        """Ask the broker whether the queue is a stream; return the error for one, else ``None``."""
        ask = partial(refusal, self._link, self.queue)
        return stream_refused(self.queue) if await is_stream(ask) else None

    async def _send(self, line: Line, tag: int, multiple: bool) -> bool:
        return self._settle(partial(line.native.basic_ack, tag, multiple), "ack")

    def _settle(self, act: Callable[[], None], what: str) -> bool:
        """Ack or requeue; log and return ``False`` where the delivery's connection is gone."""
        try:
            act()
        except LOST as error:
            emit(
                "client.settle_failed",
                "%s on %s failed, the broker will deliver again: %s",
                what,
                self.queue,
                type(error).__name__,
            )
            return False
        return True

    def _on_close(self, reason: Exception) -> None:
        self._closed(type(reason).__name__, isinstance(reason, AMQPChannelError))


async def echoed(link: Link, headers: dict[str, Any], body: bytes) -> Mapping[str, Any]:
    """Send a message to an exclusive queue of a connection, and return the headers that it comes back with.

    Raises:
        ConfigurationError: the broker refuses.
        UnansweredError: the connection was lost.
    """
    try:
        line = await link.channel()
        try:
            answer = line.awaited()
            # where an earlier call is refused, nobody waits for it
            answer.add_done_callback(lambda done: done.cancelled() or done.exception())

            def take(_channel: object, _method: object, properties: BasicProperties, found: bytes) -> None:
                # whoever knows the queue's name may send to it, too
                if found == body and not answer.done():
                    answer.set_result(properties.headers or {})

            declared = await line.ask(line.native.queue_declare, "", exclusive=True, auto_delete=True)
            name = declared.method.queue
            await line.ask(line.native.basic_consume, name, take, auto_ack=True)
            line.native.basic_publish("", name, body, BasicProperties(headers=headers))
            found: Mapping[str, Any] = await answer
            return found
        finally:
            # the queue goes with its consumer
            if line.is_open:
                line.native.close()
    except AMQPChannelError as error:
        raise refused(error) from error
    except LOST as error:
        raise UnansweredError(f"the broker was not asked: {error or type(error).__name__}") from error
