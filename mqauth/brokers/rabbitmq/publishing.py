"""The way of a sealed message to the broker: past aio-pika's ``Exchange.publish`` where nobody would miss it.

``Exchange.publish`` waits for the socket with aiormq's publish lock held, so that concurrent publishes go one by
one, and marshals what was marshalled before to know its size. aiormq's own ``basic_publish`` needs neither.

One message of an id in flight at a time: aiormq 7.2 tells a returned message by its id alone.

Of two messages of one id on one channel, of which the broker returns one, aiormq would give the return to the
other's caller too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

import aiormq
from aio_pika import exceptions
from aio_pika.abc import AbstractExchange, AbstractMessage
from pamqp import commands

from mqauth.brokers.rabbitmq.channel import is_untouched
from mqauth.brokers.rabbitmq.frame import Measured, agreed, check_frame, frame_limit, unsendable
from mqauth.brokers.rabbitmq.translate import headers_out
from mqauth.wire.message import Message

DRAIN_EVERY: Final = 32
"""Publishes of which one waits for the socket: a broker that stops reading stops all of them soon."""


class PublishPath(Protocol):
    """Takes what is to be sent when publish is called, and sends it when it is sealed."""

    def take(self, native: AbstractMessage, message_id: str, /) -> Any:
        """Return what is needed of the caller's message, which may change from now on.

        Raises:
            MalformedMessage: aio-pika cannot send it.
        """
        ...

    def ready(self, taken: Any, sealed: Message, /) -> Any:
        """Return it as it will be sent.

        Raises:
            MalformedMessage: its header frame is over its size, or cannot be encoded.
        """
        ...

    async def send(self, ready: Any, routing_key: str, *, mandatory: bool, immediate: bool) -> Any:
        """Publish it and return what the broker says, ``None`` without publisher confirms."""
        ...


class PublishPaths:
    """The ways of an exchange.

    Args:
        exchange: aio-pika's.
    """

    def __init__(self, exchange: AbstractExchange) -> None:
        self.through = ExchangePath(exchange)
        self._direct = DirectPath(exchange)
        self._exchange = exchange

    def now(self) -> PublishPath:
        """Return the way for one message: direct, unless ``publish`` is not aio-pika's own but instrumented."""
        return self._direct if is_untouched(self._exchange, "publish") else self.through


class Encoded:
    """Properties as pamqp asks for them, marshalled once."""

    __slots__ = ("body", "message_id", "raw")

    def __init__(self, message_id: str, raw: bytes, body: bytes) -> None:
        self.message_id = message_id
        self.raw = raw
        self.body = body

    def marshal(self) -> bytes:
        """Return their bytes."""
        return self.raw


class DirectPath:
    """Publishes through aiormq's channel and waits for the confirm, seldom for the socket.

    While a broker does not read, under a memory alarm, publishes that time out must not pile up in the transport.

    Args:
        exchange: aio-pika's.
    """

    def __init__(self, exchange: AbstractExchange) -> None:
        self._exchange: Any = exchange
        self._sent = 0

    def take(self, native: AbstractMessage, message_id: str, /) -> commands.Basic.Properties:
        """Return the message's properties."""
        try:
            found: commands.Basic.Properties = native.properties
        except Exception as error:
            raise unsendable(error) from error
        found.message_id = message_id
        return found

    def ready(self, taken: commands.Basic.Properties, sealed: Message, /) -> Encoded:
        """Return properties and body as bytes."""
        taken.headers = headers_out(sealed.headers)
        try:
            raw = taken.marshal()
        except Exception as error:
            raise unsendable(error) from error
        check_frame(raw)
        return Encoded(taken.message_id or "", raw, sealed.body or b"")

    async def send(self, ready: Encoded, routing_key: str, *, mandatory: bool, immediate: bool) -> Any:
        """Publish and wait for the confirm; without confirms, until it is written."""
        exchange = self._exchange
        if exchange.internal:
            raise ValueError(f"Can not publish to internal exchange: '{exchange.name}'!")
        if exchange.channel.is_closed:
            raise exceptions.ChannelInvalidStateError("the channel is closed")
        channel: aiormq.Channel = await exchange.channel.get_underlay_channel()
        check_frame(ready.raw, agreed(channel))
        self._sent += 1
        return await channel.basic_publish(
            ready.body,
            exchange=exchange.name,
            routing_key=routing_key,
            properties=ready,  # type: ignore[arg-type]
            mandatory=mandatory,
            immediate=immediate,
            wait=not channel.publisher_confirms or self._sent % DRAIN_EVERY == 0,
        )


class ExchangePath:
    """Publishes through ``Exchange.publish``, whatever it has become.

    Args:
        exchange: any.
    """

    def __init__(self, exchange: AbstractExchange) -> None:
        self._exchange = exchange

    def take(self, native: AbstractMessage, message_id: str, /) -> Measured:
        """Return a copy of the message."""
        found = Measured.of(native)
        found.message_id = message_id
        return found

    def ready(self, taken: Measured, sealed: Message, /) -> Measured:
        """Return the copy with the sealed body and headers, sharing nothing with the caller's."""
        taken.body = sealed.body or b""
        taken.headers = headers_out(sealed.headers)
        taken.check()
        return taken

    async def send(self, ready: Measured, routing_key: str, *, mandatory: bool, immediate: bool) -> Any:
        """Publish and wait for the confirm."""
        ready.limit = await frame_limit(getattr(self._exchange, "channel", None))
        return await self._exchange.publish(ready, routing_key, mandatory=mandatory, immediate=immediate)


@dataclass(slots=True)
class _Turn:
    """Who is publishing under one message id, and how many wait for their turn."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


_TURNS: Final[WeakKeyDictionary[Any, dict[str, _Turn]]] = WeakKeyDictionary()


@asynccontextmanager
async def one_at_a_time(exchange: AbstractExchange, message_id: str) -> AsyncIterator[None]:
    """Keep two messages of one id from being in flight on one channel: aiormq would swap their outcomes."""
    turns = _TURNS.setdefault(getattr(exchange, "channel", exchange), {})
    one_at_a_time = turns.setdefault(message_id, _Turn())
    one_at_a_time.users += 1
    try:
        async with one_at_a_time.lock:
            yield
    finally:
        one_at_a_time.users -= 1
        if not one_at_a_time.users:
            turns.pop(message_id, None)
