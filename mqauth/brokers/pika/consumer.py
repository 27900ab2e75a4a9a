"""pika's consumer: a queue with the delivery engine, and handlers on threads of their own.

``Queue`` makes the calls of pika for one queue: consume, cancel, ack, give back, and so on. ``echoed`` asks
whether RabbitMQ overwrites append times (``brokers.queue.client``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Unpack

from pika import BasicProperties, BlockingConnection
from pika.exceptions import AMQPChannelError

from mqauth.brokers.amqp_messages import (
    OFFSET,
    is_stream,
    stream_refused,
    warn_of_shared_connection,
)
from mqauth.brokers.dead_letters import responder_of
from mqauth.brokers.event_loop import (
    BackgroundRun,
    DeliveryTasks,
    on_thread,
    on_threads,
    tell,
)
from mqauth.brokers.options import QueueOptions
from mqauth.brokers.pika.confirmed import refusal
from mqauth.brokers.pika.link import LOST, Line, Link, drive, link_of
from mqauth.brokers.pika.producer import Producer
from mqauth.brokers.pika.translate import failures_of, read
from mqauth.brokers.queue.client import OpenChannel, Take, refusals
from mqauth.brokers.queue.consumer import QueueConsumer
from mqauth.brokers.queue.subscription import PREFETCH
from mqauth.delivery.health import QueueHealth
from mqauth.errors import ConfigurationError, require
from mqauth.judging.pipeline import Handler, Pipeline, V
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.logs import emit
from mqauth.wire.message import Message


class Consumer(BackgroundRun):
    """Gives the verified messages of one queue to a handler, and dead-letters the rest.

    While it runs it alone uses its connection, that of its dead letters, and that of an ``AuditQueue``, in the
    thread of ``run``, and answers their heartbeats. Where one of them is lost, it ends with pika's error: nothing
    is lost or condemned, and what was not settled comes again. Connect anew, make another consumer and run it.

    Args:
        connection: a connected ``pika.BlockingConnection`` of its own; it consumes on channels of its own.
        queue: name of the queue; ``declare_source`` makes the recommended kind.
        guard: the pipeline.
        handler: takes a ``Verified``. A plain function runs on a thread of its own, and may take its time: a stop
            waits for it, as nothing can interrupt it. An asynchronous one runs in the event loop of ``run``.
        dead_letters: where rejected messages go, best on another connection.
        replies: signs and publishes what ``Verified.reply`` is given, on the default exchange; it may have the
            connection of ``dead_letters``.
        options: as ``mqauth.brokers.options.QueueOptions`` has them.

    Raises:
        ConfigurationError: the pipeline has no audit, or a setting is out of its limits.
    """

    def __init__(
        self,
        connection: BlockingConnection,
        queue: str,
        guard: Pipeline,
        handler: Handler[V],
        *,
        dead_letters: DeadLetterSink,
        replies: Producer | None = None,
        **options: Unpack[QueueOptions[V]],
    ) -> None:
        link = link_of(connection)
        options["unverified"] = on_threads(options.get("unverified"))
        self._engine = QueueConsumer(
            Queue(link, queue),
            guard,
            on_thread(handler),
            dead_letters=dead_letters,
            responder=responder_of(replies),
            **options,
        )
        self._links = [link, *_links(dead_letters, guard.audit)]
        self._watched = [*self._links, *_links(replies)]
        # Most threads of one consumer's handlers; with a longer prefetch the rest waits for one.
        self._threads = min(options.get("prefetch", PREFETCH), 32)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False
        if link in self._links[1:]:
            warn_of_shared_connection(queue)

    def run(self, *, signals: bool = False) -> None:
        """Consume until ``stop`` is called, then stop gracefully; the connections are the caller's again.

        Args:
            signals: whether to stop at SIGTERM and SIGINT too; only in a main thread. A second SIGINT
                (Ctrl-C) ends the process at once.

        Raises:
            ConfigurationError: the pipeline or a plug-in does not fit; nothing was lost.
            Exception: pika's own, where the queue cannot be consumed, or a connection was lost.
        """
        self._engine.home.check()
        drive(self._run(signals), self._threads)

    def stop(self) -> None:
        """Let ``run`` end gracefully: take no new messages, let running handlers finish, give the rest back.

        May be called from any thread, a handler, or a signal handler; it does not wait.
        """
        self._stopped = True
        if self._loop is not None:
            tell(self._loop, self._stop)

    def health(self) -> QueueHealth:
        """Return how the consumer is doing now."""
        return self._engine.health()

    async def _run(self, signals: bool) -> None:
        self._loop = loop = asyncio.get_running_loop()
        for link in self._links:
            link.attach()
        for link in self._watched:
            link.watch(partial(tell, loop, self._engine.fail))
        if self._stopped:
            self._stop()
        await self._engine.run(signals=signals)

    def _stop(self) -> None:
        self._stopping = asyncio.ensure_future(self._engine.stop())


def _links(*wrappers: object) -> list[Link]:
    """Return the links of those wrappers that have a connection of pika's."""
    return [
        link for each in wrappers if isinstance(link := getattr(each, "link", None), Link)
    ]


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

    async def ack(self, native: Delivered, /) -> bool:
        """Ack it alone; return ``False`` where its channel is gone."""
        return await self._send(native.channel, self.tag(native), False)

    async def requeue(self, native: Delivered, /) -> bool:
        """Give it back; return ``False`` where its channel is gone."""
        return self._settle(
            partial(native.channel.native.basic_nack, self.tag(native)), "requeue"
        )

    async def lives(self, native: Delivered, /) -> bool:
        """Return whether its channel answers a question that is asked from now on; closed where it does not."""
        line: Line = native.channel
        return line.is_open and await line.round_trip.lives()

    def watch(
        self, closed: Callable[[str, bool], None], cancelled: Callable[[str], None]
    ) -> None:
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
            self._line = await self._link.channel(
                lambda reason: self._closed(
                    type(reason).__name__, isinstance(reason, AMQPChannelError)
                )
            )
            self._line.native.add_on_cancel_callback(
                lambda frame: self._cancelled(frame.method.consumer_tag)
            )

    async def open(self, prefetch: int) -> OpenChannel:
        """Set the window of the channel."""
        line = require(self._line, "the channel was not opened")
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
        """Return whether a delivery has a stream's header, which any publisher can write too."""
        return OFFSET in (native.properties.headers or {})

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


async def echoed(link: Link, headers: dict[str, Any], body: bytes) -> Mapping[str, Any]:
    """Send a message to an exclusive queue of a connection, and return the headers that it comes back with.

    Raises:
        ConfigurationError: the broker refuses.
        UnansweredError: the connection was lost.
    """
    with refusals(AMQPChannelError, LOST):
        line = await link.channel()
        try:
            answer = line.awaited()
            # where an earlier call is refused, nobody waits for it
            answer.add_done_callback(lambda done: done.cancelled() or done.exception())

            def take(
                _channel: object,
                _method: object,
                properties: BasicProperties,
                returned: bytes,
            ) -> None:
                # whoever knows the queue's name may send to it, too
                if returned == body and not answer.done():
                    answer.set_result(properties.headers or {})

            declared = await line.ask(
                line.native.queue_declare, "", exclusive=True, auto_delete=True
            )
            name = declared.method.queue
            await line.ask(line.native.basic_consume, name, take, auto_ack=True)
            line.native.basic_publish("", name, body, BasicProperties(headers=headers))
            returned: Mapping[str, Any] = await answer
            return returned
        finally:
            # the queue goes with its consumer
            if line.is_open:
                line.native.close()
