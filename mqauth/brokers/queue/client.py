"""The calls that a client of a queue must have: the wrapper of an asyncio client makes them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

from mqauth.brokers.queue.channel import Send
from mqauth.brokers.queue.interceptor import Ask
from mqauth.delivery.slot import DeliveryFacts
from mqauth.errors import ConfigurationError
from mqauth.wire.message import Message

Take = Callable[[Any], Awaitable[None]]


class DeliveryClient(DeliveryFacts, Protocol):
    """Calls for the deliveries of one queue; each is given as the client gave it."""

    queue: str

    def message(self, native: Any, /) -> Message:
        """Return a delivery as a message."""

    def tag(self, native: Any, /) -> int:
        """Return its number on its channel."""

    def is_settled(self, native: Any, /) -> bool:
        """Return whether its handler settled it itself."""

    async def ack(self, native: Any, /) -> bool:
        """Ack it alone; return ``False`` where its channel is gone."""

    async def requeue(self, native: Any, /) -> bool:
        """Give it back; return ``False`` where its channel is gone."""

    async def lives(self, native: Any, /) -> bool:
        """Return whether its channel answers a question that is asked from now on; closed where it does not."""


class OpenChannel(NamedTuple):
    """A channel on which to consume.

    Args:
        channel: the client's.
        send: sends its acks.
        connection: the client's, below it.
        ask: asks the broker on that connection whether it overwrites append times.
    """

    channel: Any
    send: Send
    connection: Any
    ask: Ask


class QueueClient(DeliveryClient, Protocol):
    """Calls for one queue."""

    reopens: bool
    """Whether a channel that was lost comes back by itself, so that consuming is tried again."""

    def watch(self, closed: Callable[[str, bool], None], cancelled: Callable[[str], None]) -> None:
        """Report from now on what happens to the channel.

        Args:
            closed: gets why it ended, and whether its connection did not.
            cancelled: gets the tag of a consumer that the broker cancelled.
        """

    def unwatch(self) -> None:
        """Report it no longer."""

    async def ready(self) -> None:
        """Wait until the channel is open."""

    async def open(self, prefetch: int) -> OpenChannel:
        """Set the window of the channel."""

    async def consume(self, channel: Any, take: Take) -> str:
        """Have each delivery on an opened channel given to ``take``; return the consumer's tag."""

    async def cancel(self, consumer: str) -> None:
        """Cancel a consumer, and return when no more of its deliveries come; log where its channel is gone."""

    def is_temporary(self, error: BaseException) -> bool:
        """Return whether an error that kept it from consuming may pass."""

    def is_blocked(self) -> bool:
        """Return whether the broker has blocked the connection."""

    def may_be_refused(self, native: Any) -> bool:
        """Return, once, whether a delivery looks like one of a queue that may not be consumed: ask ``refusal``."""

    async def refusal(self) -> ConfigurationError | None:
        """Return why the queue may not be consumed, ``None`` where it may."""
