"""What is asked of aio-pika and aiormq to consume a queue: a channel, its window, a consumer, its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from aio_pika.abc import AbstractIncomingMessage, AbstractQueue, AbstractRobustChannel
from aio_pika.exceptions import AMQPChannelError
from aiormq.abc import AbstractChannel

from mqauth.brokers.queue.client import Opened, Take
from mqauth.brokers.rabbitmq.channel import LOST, ClosedByOwnerError, closing_is_an_error, is_blocked
from mqauth.brokers.rabbitmq.delivery import Deliveries, sender
from mqauth.brokers.rabbitmq.incoming import subscribed
from mqauth.brokers.rabbitmq.reopening import ready
from mqauth.brokers.rabbitmq.streams import OFFSET, is_stream, stream
from mqauth.errors import ConfigurationError

_LOG: Final = logging.getLogger("mqauth.rabbitmq")


class Queue(Deliveries):
    """Makes the calls for one queue: the ``QueueClient`` of ``queue_client``.

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
        """Tell from now on why the channel ended, and whether it did alone; and which consumer was cancelled."""
        self._closed, self._cancelled = closed, cancelled
        self._native.channel.close_callbacks.add(self._on_close)

    def unwatch(self) -> None:
        """Tell so no longer."""
        self._native.channel.close_callbacks.discard(self._on_close)

    async def ready(self) -> None:
        """Wait until the channel is open."""
        await ready(self._native.channel)

    async def open(self, prefetch: int) -> Opened:
        """Set the window of the channel; return aiormq's below it."""
        with closing_is_an_error():
            await self._native.channel.set_qos(prefetch_count=prefetch)
            self._channel = channel = await self._native.channel.get_underlay_channel()
            channel.on_consumer_cancel_callbacks.add(self._on_cancel)
        return Opened(channel, sender(channel, self.queue))

    async def consume(self, channel: AbstractChannel, take: Take) -> str:
        """Have each delivery on aiormq's channel given to ``take``; return the consumer's tag."""
        with closing_is_an_error():
            return await subscribed(self._native, channel, take)

    async def cancel(self, consumer: str) -> None:
        """Cancel a consumer, and return when nothing more of it comes."""
        try:
            with closing_is_an_error():
                await self._native.cancel(consumer)
        except LOST as error:
            _LOG.warning("cancelling the consumer of %s: %s", self.queue, type(error).__name__)

    def passes(self, error: BaseException) -> bool:
        """Tell whether what kept it from consuming may pass; not where the owner closed the channel."""
        return isinstance(error, LOST) and not isinstance(error, ClosedByOwnerError)

    def is_blocked(self) -> bool:
        """Tell whether the broker has blocked the connection."""
        return self._channel is not None and not self._channel.is_closed and is_blocked(self._channel)

    def is_doubtful(self, native: AbstractIncomingMessage, /) -> bool:
        """Tell, once, whether a delivery has a stream's mark, which any publisher can write too."""
        if not self._type_unknown or OFFSET not in native.headers:
            return False
        self._type_unknown = False
        return True

    async def refusal(self) -> ConfigurationError | None:
        """Ask the broker whether the queue is a stream; return what is said of one."""
        if self._channel is None or not await is_stream(self._channel, self.queue):
            return None
        return stream(self.queue)

    def _on_close(self, _channel: object, error: BaseException | None) -> None:
        """Tell that the channel ended."""
        self._closed(type(error).__name__, isinstance(error, AMQPChannelError))

    def _on_cancel(self, frame: Any) -> None:
        """Tell that the broker cancelled a consumer."""
        self._cancelled(frame.consumer_tag)
