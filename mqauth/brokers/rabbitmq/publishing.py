"""How a sealed message is published: past aio-pika's ``Exchange.publish``, unless that is instrumented.

``Exchange.publish`` waits for the socket while it holds aiormq's publish lock, so that concurrent publishes go
one by one, and it encodes the properties a second time to learn their size. aiormq's own ``basic_publish`` does
neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

import aiormq
from aio_pika import exceptions
from aio_pika.abc import AbstractExchange, AbstractMessage
from pamqp import commands

from mqauth.brokers.amqp_messages import check_frame
from mqauth.brokers.rabbitmq.channel import is_untouched
from mqauth.brokers.rabbitmq.translate import Measured, agreed, frame_limit, headers_out, unsendable
from mqauth.wire.message import Message

DRAIN_EVERY: Final = 32
"""One publish of so many waits for the socket, so that a broker that stops reading soon stops all publishers."""


@dataclass(slots=True)
class Encoded:
    """Properties in the form in which pamqp asks for them, encoded once, and the body."""

    message_id: str
    raw: bytes
    body: bytes

    def marshal(self) -> bytes:
        """Return the encoded properties."""
        return self.raw


class DirectPath:
    """Publishes through aiormq's channel and waits for the confirm, but seldom for the socket.

    While a broker does not read, under a memory alarm, publishes that time out must not pile up in the transport.

    Args:
        exchange: aio-pika's.
    """

    def __init__(self, exchange: AbstractExchange) -> None:
        self._exchange: Any = exchange
        self._sent = 0

    def take(self, native: AbstractMessage, message_id: str, /) -> Any:
        """Return the properties of the caller's message, which the caller may change from now on.

        Raises:
            MalformedMessage: aio-pika cannot send it.
        """
        try:
            found: commands.Basic.Properties = native.properties
        except Exception as error:
            raise unsendable(error) from error
        found.message_id = message_id
        return found

    def ready(self, taken: Any, sealed: Message, /) -> Any:
        """Return what ``take`` returned with the sealed body and headers, encoded.

        Raises:
            MalformedMessage: its header frame is over its size, or cannot be encoded.
        """
        taken.headers = headers_out(sealed.headers)
        try:
            raw = taken.marshal()
        except Exception as error:
            raise unsendable(error) from error
        check_frame(len(raw))
        return Encoded(taken.message_id or "", raw, sealed.body or b"")

    async def send(self, ready: Any, routing_key: str, *, mandatory: bool, immediate: bool) -> Any:
        """Publish it and wait for the confirm; without publisher confirms return ``None`` once it is written."""
        exchange = self._exchange
        # The same refusals as those of ``Exchange.publish``.
        if exchange.internal:
            raise ValueError(f"Can not publish to internal exchange: '{exchange.name}'!")
        if exchange.channel.is_closed:
            raise exceptions.ChannelInvalidStateError("the channel is closed")
        channel: aiormq.Channel = await exchange.channel.get_underlay_channel()
        check_frame(len(ready.raw), agreed(channel))
        self._sent += 1
        return await channel.basic_publish(
            ready.body,
            exchange=exchange.name,
            routing_key=routing_key,
            properties=ready,
            mandatory=mandatory,
            immediate=immediate,
            wait=not channel.publisher_confirms or self._sent % DRAIN_EVERY == 0,
        )


class ExchangePath:
    """Publishes through ``Exchange.publish``, whatever instrumentation has made of it.

    Args:
        exchange: aio-pika's, or one like it.
    """

    def __init__(self, exchange: AbstractExchange) -> None:
        self._exchange = exchange

    def take(self, native: AbstractMessage, message_id: str, /) -> Any:
        """Return a copy of the caller's message, which the caller may change from now on."""
        found = Measured.of(native)
        found.message_id = message_id
        return found

    def ready(self, taken: Any, sealed: Message, /) -> Any:
        """Return the copy with the sealed body and headers.

        Raises:
            MalformedMessage: its header frame is over its size, or cannot be encoded.
        """
        taken.body = sealed.body or b""
        taken.headers = headers_out(sealed.headers)
        taken.check()
        return taken

    async def send(self, ready: Any, routing_key: str, *, mandatory: bool, immediate: bool) -> Any:
        """Publish it and wait for the confirm; without publisher confirms return ``None``."""
        ready.limit = await frame_limit(getattr(self._exchange, "channel", None))
        return await self._exchange.publish(ready, routing_key, mandatory=mandatory, immediate=immediate)


PublishPath: TypeAlias = DirectPath | ExchangePath


class PublishPaths:
    """Both paths of one exchange.

    Args:
        exchange: aio-pika's.
    """

    def __init__(self, exchange: AbstractExchange) -> None:
        self.through = ExchangePath(exchange)
        self._direct = DirectPath(exchange)
        self._exchange = exchange

    def now(self) -> PublishPath:
        """Return the path for the next message: direct, unless ``publish`` is instrumented."""
        return self._direct if is_untouched(self._exchange, "publish") else self.through


@dataclass(slots=True)
class _Turn:
    """The lock of one message id, and how many hold it or wait for it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


_TURNS: Final[WeakKeyDictionary[Any, dict[str, _Turn]]] = WeakKeyDictionary()


@asynccontextmanager
async def one_at_a_time(exchange: AbstractExchange, message_id: str) -> AsyncIterator[None]:
    """Keep two messages with the same id from being in flight on one channel.

    aiormq 7.2 knows a returned message by its id alone: where the broker returns one of the two, aiormq would
    report that to the other's caller too.
    """
    turns = _TURNS.setdefault(getattr(exchange, "channel", exchange), {})
    turn = turns.setdefault(message_id, _Turn())
    turn.users += 1
    try:
        async with turn.lock:
            yield
    finally:
        turn.users -= 1
        if not turn.users:
            turns.pop(message_id, None)
