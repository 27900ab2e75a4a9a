"""The RabbitMQ producer: seals a copy of each message, alone or with others, and publishes it; signed answers.

A sealed message is published past aio-pika's ``Exchange.publish``, unless that is instrumented. It waits for the
socket while it holds aiormq's publish lock, so that concurrent publishes go one by one; ``DirectPath`` writes all
of them at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

import aio_pika
from aio_pika import exceptions
from aio_pika.abc import AbstractExchange, AbstractMessage
from aiormq.abc import DeliveredMessage
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.frame import FrameTypes, marshal
from pamqp.header import ContentHeader

from mqauth.brokers.amqp_messages import (
    DEFAULT_MAX_BODY,
    check_frame,
    deferring,
    mandatory_reply,
    new_message_id,
)
from mqauth.brokers.closing import CLOSE_WITHIN
from mqauth.brokers.rabbitmq.channel import (
    ClosedByOwnerError,
    closing_is_an_error,
    is_untouched,
    reopen,
)
from mqauth.brokers.rabbitmq.translate import (
    Measured,
    agreed,
    frame_limit,
    headers_out,
    to_message,
    unsendable,
)
from mqauth.brokers.sealing import Sealing
from mqauth.errors import MalformedMessage, MqauthError, Unavailable, require
from mqauth.judging.verified import Responder, Verified
from mqauth.logs import emit
from mqauth.signer import DEFAULT_BATCH, Signer
from mqauth.wire.message import Message

if TYPE_CHECKING:
    # aio-pika before 10.1 has no name for it.
    from aio_pika.abc import PublishResultType

OUT_OF_REACH: Final = (
    exceptions.AMQPConnectionError,
    exceptions.ChannelInvalidStateError,
    OSError,
    Unavailable,
)
"""Errors of a publish where channel, connection or signing key are gone, and the broker has refused nothing."""


class UnroutableError(MqauthError, exceptions.DeliveryError):
    """The broker returned a mandatory message, since no queue takes its routing key; nothing was kept."""

    code = "unroutable"

    def __init__(self, exchange: str, routing_key: str) -> None:
        super().__init__(
            None, commands.Basic.Return(312, "NO_ROUTE", exchange, routing_key)
        )

    def __str__(self) -> str:
        return "no queue is bound for this exchange and routing key"


class Producer(AbstractAsyncContextManager["Producer"]):
    """Signs each message afresh and publishes it; the caller's message is never changed.

    Args:
        exchange: a connected aio-pika exchange, best on a channel with publisher confirms (the default).
        signer: signs as this producer.
        value_serializer: turns what ``publish`` is given, unless it is an aio-pika message already, into
            the body's bytes or a whole message; runs before sealing.
        batch: messages that concurrent ``publish`` calls may have sealed under one signature, 1 to 1,024;
            with 1 each has a token of its own.
        linger: seconds a message may wait for others to be sealed with, 0 to 10.
        max_body: bytes of body the broker takes, its ``max_message_size``: a larger message is refused alone.

    Raises:
        ConfigurationError: ``batch`` or ``linger`` is out of its limits, or this is no exchange.
    """

    def __init__(
        self,
        exchange: AbstractExchange,
        signer: Signer,
        *,
        value_serializer: Callable[[Any], bytes | AbstractMessage] | None = None,
        batch: int = DEFAULT_BATCH,
        linger: float = 0,
        max_body: int = DEFAULT_MAX_BODY,
    ) -> None:
        require(
            hasattr(exchange, "name"),
            f"a producer takes an exchange of aio-pika, not {type(exchange).__name__}",
        )
        self._channel = getattr(exchange, "channel", None)
        self._sealing = Sealing(
            signer,
            batch,
            linger,
            lambda: ClosedByOwnerError("the producer was closed"),
            ready=partial(reopen, self._channel),
        )
        self._exchange = exchange
        self._direct, self._through = DirectPath(exchange), ExchangePath(exchange)
        self._signer = signer
        self._serialize = value_serializer
        self._max_body = max_body
        self._confirms: bool = getattr(self._channel, "publisher_confirms", True)
        if not self._confirms:
            lossy = "a producer's channel has no publisher confirms: lost messages go unnoticed"
            emit("producer.no_confirms", lossy)

    async def publish(
        self,
        message: AbstractMessage | Any,
        routing_key: str,
        *,
        mandatory: bool = True,
        immediate: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - the exchange's own signature
    ) -> PublishResultType | None:
        """Sign a copy of a message and publish it, with the signature of aio-pika's ``Exchange.publish``.

        Args:
            message: an aio-pika message, or a value where there is a ``value_serializer``.
            routing_key: with the exchange it is the destination that the token binds.
            mandatory: have the broker return the message where no queue takes it.
            immediate: as in AMQP; RabbitMQ does not implement it.
            timeout: seconds for all of it, the wait for the connection included.

        Returns:
            What the exchange returns: the broker's ack, or ``None`` on a channel without confirms.

        Raises:
            MalformedMessage: the message cannot be sent, or would arrive as something else.
            UnroutableError: no queue takes it; also a ``DeliveryError`` of aio-pika.
            aio_pika.exceptions.DeliveryError: the broker refused it, because of a full queue for example.
            TimeoutError, aio_pika.exceptions.AMQPConnectionError: the outcome is unknown. It is never tried
                again here: publish again yourself, which makes a new token, and expect duplicates.
            ClosedByOwnerError: the producer was closed.
        """
        if self._serialize is not None and not isinstance(message, AbstractMessage):
            message = self._serialize(message)
            if isinstance(message, bytes):
                message = aio_pika.Message(message)
        if not isinstance(message, AbstractMessage):
            raise MalformedMessage(
                "publish takes an aio_pika.Message, or a value with value_serializer="
            )
        wire = self._wire(message, routing_key)
        path = (
            self._direct
            if self._confirms and is_untouched(self._exchange, "publish")
            else self._through
        )
        # The message as it is now.
        taken = path.take(message)
        send = partial(
            self._confirmed,
            path,
            taken,
            routing_key,
            mandatory=mandatory,
            immediate=immediate,
        )
        # No other message has an id that was just made.
        turn = (
            turn_of(self._exchange, message.message_id)
            if message.message_id
            else nullcontext()
        )
        async with asyncio.timeout(timeout), turn:
            return await self._sealing.publish(wire, send)

    def responder(self) -> Responder:
        """Return what publishes signed answers: what a consumer takes from its ``replies=``.

        Raises:
            ConfigurationError: this producer is on no default exchange.
        """
        require(
            not self._exchange.name, "replies= takes a producer on a default exchange"
        )
        return partial(_reply, self)

    async def close(self, timeout: float = CLOSE_WITHIN) -> None:  # noqa: ASYNC109
        """Seal what waits, and return when every publish has its outcome; the exchange stays as it is.

        Args:
            timeout: seconds, at most. A publish that still waits then ends with the error, too.

        Raises:
            UnconfirmedError: the broker has not confirmed everything.
        """
        await self._sealing.close(timeout)

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    def seal(self, message: AbstractMessage, routing_key: str) -> aio_pika.Message:
        """Return a copy of a message sealed by itself, to be published by the caller, once, to this exchange.

        Raises:
            MalformedMessage: the message cannot be sent, or would arrive as something else.
        """
        sealed = self._signer.sign(self._wire(message, routing_key))
        return self._through.ready(self._through.take(message), sealed)  # type: ignore[no-any-return]

    def _wire(self, message: AbstractMessage, routing_key: str) -> Message:
        # aiormq would add a message id after signing, so the message has one already.
        message_id = message.message_id or new_message_id()
        return to_message(
            message,
            exchange=self._exchange.name,
            routing_key=routing_key,
            message_id=message_id,
            max_body=self._max_body,
        )

    async def _confirmed(
        self,
        path: DirectPath | ExchangePath,
        taken: Any,
        routing_key: str,
        sealed: Message,
        **flags: bool,
    ) -> PublishResultType | None:
        """Publish, and raise what aio-pika may return: a message that came back."""
        ready = path.ready(taken, sealed)
        try:
            with closing_is_an_error():
                result = await path.send(ready, routing_key, **flags)
        except exceptions.PublishError:
            raise UnroutableError(self._exchange.name, routing_key) from None
        if isinstance(result, DeliveredMessage):
            raise UnroutableError(self._exchange.name, routing_key)
        return result  # type: ignore[no-any-return]


async def _reply(
    producer: Producer, verified: Verified, body: bytes
) -> PublishResultType | None:
    """Publish a signed answer to the message's reply-to: what ``Verified.reply`` calls.

    While the connection or the signing key cannot be reached the handler is deferred. An answer that the broker
    refuses, because no queue takes it or it is too large, fails the handler.
    """
    place = getattr(verified.native, "reply_to", None)
    mandatory = mandatory_reply(place)
    answer = aio_pika.Message(
        body, correlation_id=verified.properties.get("correlation-id")
    )
    with deferring(OUT_OF_REACH):
        return await producer.publish(answer, str(place), mandatory=mandatory)


class JointFrame:
    """The next frame of an aiormq channel: the messages that are ready when its connection writes it.

    aiormq's own ``basic_publish`` takes a lock, a timer and a system call for each message, and ten messages at
    most in each turn of the event loop. This does what it does for all that are ready: it counts them as the
    broker will, and leaves the future of each confirm where aiormq looks for it.

    A message that is alone is in aiormq's queue at once. While a broker does not read, under a memory alarm,
    messages pile up here and not in the transport.

    Args:
        channel: aiormq's.

    Attributes:
        unsent: the bytes and the id of each message that is not written yet, by the future of its confirm.
        queued: whether the socket has yet to take what was ready.
    """

    should_close, should_drain, queued, _tag = False, True, False, 0

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.unsent: dict[asyncio.Future[Any], tuple[bytes, str]] = {}
        self._counted: list[bytes] = []

    def drain(self) -> None:
        """Have written what is ready, where the socket has taken what was ready before."""
        channel, self.queued = self.channel, bool(self.unsent)
        # aiormq tells nobody whether the lock of a channel is free. Whoever waits for it has counted nothing yet.
        lock: asyncio.Lock | None = getattr(channel, "_Channel__lock", None)
        if not self.queued or channel.is_closed:
            return
        if lock is None or lock.locked() or channel.write_queue.full():
            # The channel cancels it once it is closed.
            channel.create_task(self._queue())
        else:
            channel.write_queue.put_nowait(self)
            self._count()

    @property
    def payload(self) -> bytes:
        """The bytes of what is ready; aiormq asks for them when it writes them."""
        # Nobody else has counted a message since, so what came since comes next.
        if self.channel.delivery_tag == self._tag:
            self._count()
        payload, self._counted = b"".join(self._counted), []
        return payload

    async def _queue(self) -> None:
        # A channel that is closed has failed all of it.
        with suppress(exceptions.ChannelInvalidStateError):
            async with self.channel.lock:
                await self.channel.write_queue.put(self)
                self._count()

    def _count(self) -> None:
        # Without those whose caller was cancelled.
        ready = [
            (confirm, *each)
            for confirm, each in self.unsent.items()
            if not confirm.done()
        ]
        self.unsent.clear()
        for confirm, payload, message_id in ready:
            self.channel.delivery_tag += 1
            self.channel.confirmations[self.channel.delivery_tag] = confirm
            self.channel.message_id_delivery_tag[message_id] = self.channel.delivery_tag
            self._counted.append(payload)
        self._tag = self.channel.delivery_tag


class DirectPath:
    """Publishes through aiormq's channel, what is ready in one write.

    Args:
        exchange: aio-pika's.
    """

    def __init__(self, exchange: AbstractExchange) -> None:
        self._exchange: Any = exchange
        self._frame = JointFrame(None)

    def take(self, native: AbstractMessage, /) -> Any:
        """Return the properties of the caller's message, which the caller may change from now on.

        Raises:
            MalformedMessage: aio-pika cannot send it.
        """
        try:
            return native.properties
        except Exception as error:
            raise unsendable(error) from error

    def ready(self, taken: Any, sealed: Message, /) -> Any:
        """Return what ``take`` returned with the sealed id, body and headers, encoded.

        Raises:
            MalformedMessage: its header frame is over its size, or cannot be encoded.
        """
        taken.headers, taken.message_id = (
            headers_out(sealed.headers),
            sealed.properties["message-id"],
        )
        try:
            raw = taken.marshal()
        except Exception as error:
            raise unsendable(error) from error
        check_frame(len(raw))
        # With what pamqp asks properties for: they are encoded once.
        return SimpleNamespace(
            id=taken.message_id, raw=raw, body=sealed.body or b"", marshal=lambda: raw
        )

    async def send(
        self, ready: Any, routing_key: str, *, mandatory: bool, immediate: bool
    ) -> Any:
        """Publish it, together with others that are ready, and wait for the confirm."""
        exchange = self._exchange
        # The same refusals as those of ``Exchange.publish``.
        if exchange.internal:
            raise ValueError(f"Can not publish to internal exchange: '{exchange.name}'!")
        if exchange.channel.is_closed:
            raise exceptions.ChannelInvalidStateError("the channel is closed")
        channel: Any = await exchange.channel.get_underlay_channel()
        check_frame(len(ready.raw), agreed(channel))
        body, size = ready.body, channel.max_content_size
        frames: list[FrameTypes] = [ContentHeader(body_size=len(body), properties=ready)]
        frames += [
            ContentBody(body[start : start + size]) for start in range(0, len(body), size)
        ]
        payload = _method(
            channel.number, exchange.name, routing_key, mandatory, immediate
        )
        if channel is not self._frame.channel:
            self._frame = JointFrame(channel)
        # The channel fails it once it is closed.
        frame, confirm = self._frame, channel.create_future()
        frame.unsent[confirm] = (
            payload + b"".join(marshal(each, channel.number) for each in frames),
            ready.id,
        )
        if not frame.queued:
            frame.drain()
        try:
            return await confirm
        finally:
            # What is given up while the broker does not read is not kept until it does.
            frame.unsent.pop(confirm, None)
            channel.message_id_delivery_tag.pop(ready.id, None)


@lru_cache(maxsize=256)
def _method(
    number: int, exchange: str, routing_key: str, mandatory: bool, immediate: bool
) -> bytes:
    """Return an encoded ``basic.publish`` on the channel of a number."""
    return marshal(
        commands.Basic.Publish(0, exchange, routing_key, mandatory, immediate), number
    )


class ExchangePath:
    """Publishes through ``Exchange.publish``, whatever instrumentation has made of it.

    Args:
        exchange: aio-pika's, or one like it.
    """

    def __init__(self, exchange: AbstractExchange) -> None:
        self._exchange = exchange

    take = staticmethod(Measured.of)

    def ready(self, taken: Any, sealed: Message, /) -> Any:
        """Return a copy of the caller's message with the sealed id, body and headers.

        Raises:
            MalformedMessage: its header frame is over its size, or cannot be encoded.
        """
        taken.headers, taken.message_id = (
            headers_out(sealed.headers),
            sealed.properties["message-id"],
        )
        taken.body = sealed.body or b""
        taken.check()
        return taken

    async def send(
        self, ready: Any, routing_key: str, *, mandatory: bool, immediate: bool
    ) -> Any:
        """Publish it and wait for the confirm; without publisher confirms return ``None``."""
        ready.limit = await frame_limit(getattr(self._exchange, "channel", None))
        return await self._exchange.publish(
            ready, routing_key, mandatory=mandatory, immediate=immediate
        )


_TURNS: Final[WeakKeyDictionary[Any, WeakValueDictionary[str, asyncio.Lock]]] = (
    WeakKeyDictionary()
)
"""The locks of message ids by channel, each for as long as somebody holds it or waits for it."""


def turn_of(exchange: AbstractExchange, message_id: str) -> asyncio.Lock:
    """Return a lock that keeps two messages with the same id from being in flight on one channel.

    aiormq 7.2 knows a returned message by its id alone: where the broker returns one of the two, aiormq would
    report that to the other's caller too.
    """
    turns = _TURNS.setdefault(
        getattr(exchange, "channel", exchange), WeakValueDictionary()
    )
    return turns.setdefault(message_id, asyncio.Lock())
