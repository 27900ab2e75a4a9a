"""The RabbitMQ producer: seals a copy of each message and publishes it through an aio-pika exchange."""

from __future__ import annotations

import asyncio
import copy
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary

import aio_pika
import aiormq.abc
from aio_pika import exceptions
from aio_pika.abc import AbstractExchange, AbstractMessage, PublishResultType
from pamqp import commands

from mqauth.brokers.rabbitmq_channel import closing_is_an_error
from mqauth.brokers.rabbitmq_translate import headers_out
from mqauth.brokers.rabbitmq_wire import check_frame, to_message
from mqauth.errors import MalformedMessage, MqauthError
from mqauth.signer import Signer

_LOG: Final = logging.getLogger("mqauth.rabbitmq")
_TURNS: Final[WeakKeyDictionary[Any, dict[str, _Turn]]] = WeakKeyDictionary()


class UnroutableError(MqauthError, exceptions.DeliveryError):
    """The broker returned a mandatory message: no queue takes its routing key; nothing was kept."""

    code = "unroutable"

    def __init__(self, exchange: str, routing_key: str) -> None:
        super().__init__(None, commands.Basic.Return(312, "NO_ROUTE", exchange, routing_key))

    def __str__(self) -> str:
        return "no queue is bound for this exchange and routing key"


class Producer:
    """Signs each message afresh and publishes it; the caller's message is never changed.

    Args:
        exchange: a connected aio-pika exchange, best on a channel with publisher confirms (the default).
        signer: signs as this producer.
        value_serializer: turns what ``publish`` is given, unless it is an aio-pika message already, into
            the body's bytes or a whole message; runs before sealing.
    """

    def __init__(
        self,
        exchange: AbstractExchange,
        signer: Signer,
        *,
        value_serializer: Callable[[Any], bytes | AbstractMessage] | None = None,
    ) -> None:
        self._exchange = exchange
        self._signer = signer
        self._serialize = value_serializer
        if not getattr(getattr(exchange, "channel", None), "publisher_confirms", True):
            _LOG.warning("a producer's channel has no publisher confirms: lost messages go unnoticed")

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
            routing_key: with the exchange it is the destination the token binds.
            mandatory: have the broker return the message where no queue takes it.
            immediate: as in AMQP; RabbitMQ does not implement it.
            timeout: seconds for all of it, the wait for the connection included.

        Returns:
            What the exchange returns: the broker's ack, or ``None`` on a channel without confirms.

        Raises:
            MalformedMessage: the message cannot be sent, or would arrive as something else.
            UnroutableError: no queue takes it; also a ``DeliveryError`` of aio-pika.
            aio_pika.exceptions.DeliveryError: the broker refused it, a full queue for example.
            TimeoutError, aio_pika.exceptions.AMQPConnectionError: the outcome is unknown. It is never tried
                again here: publish again yourself, which makes a new token, and expect duplicates.
        """
        sealed = self._seal(self._as_message(message), routing_key)
        async with asyncio.timeout(timeout), _alone(self._exchange, sealed.message_id):
            return await self._confirmed(sealed, routing_key, mandatory=mandatory, immediate=immediate)

    def seal(self, message: AbstractMessage, routing_key: str) -> aio_pika.Message:
        """Return a sealed copy of a message, for those who publish it themselves, once, to this exchange.

        Raises:
            MalformedMessage: the message cannot be sent, or would arrive as something else.
        """
        return self._seal(message, routing_key)

    def _as_message(self, message: Any) -> AbstractMessage:
        """Return the message to publish, serialized where it is a value."""
        if self._serialize is not None and not isinstance(message, AbstractMessage):
            message = self._serialize(message)
            if isinstance(message, bytes):
                message = aio_pika.Message(message)
        if not isinstance(message, AbstractMessage):
            raise MalformedMessage("publish takes an aio_pika.Message, or a value with value_serializer=")
        return message

    def _seal(self, message: AbstractMessage, routing_key: str) -> aio_pika.Message:
        """Return a signed copy that shares nothing with the message."""
        sealed: aio_pika.Message = copy.copy(message)  # type: ignore[assignment]
        sealed.message_id = sealed.message_id or uuid.uuid4().hex  # aiormq would add one after signing
        wire = to_message(sealed, exchange=self._exchange.name, routing_key=routing_key)
        sealed.body = wire.body or b""
        sealed.headers = headers_out(self._signer.sign(wire).headers)
        check_frame(sealed)
        return sealed

    async def _confirmed(
        self, sealed: aio_pika.Message, routing_key: str, *, mandatory: bool, immediate: bool
    ) -> PublishResultType | None:
        """Publish and turn what aio-pika may hide into errors."""
        try:
            with closing_is_an_error():
                result = await self._exchange.publish(
                    sealed, routing_key, mandatory=mandatory, immediate=immediate
                )
        except exceptions.PublishError:
            raise UnroutableError(self._exchange.name, routing_key) from None
        if isinstance(result, aiormq.abc.DeliveredMessage):
            raise UnroutableError(self._exchange.name, routing_key)
        return result


@dataclass(slots=True)
class _Turn:
    """Who is publishing under one message id, and how many wait for their turn."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


@asynccontextmanager
async def _alone(exchange: AbstractExchange, message_id: str | None) -> AsyncIterator[None]:
    """Keep two messages of one id from being in flight on one channel: aiormq would swap their outcomes."""
    turns = _TURNS.setdefault(getattr(exchange, "channel", exchange), {})
    turn = turns.setdefault(message_id or "", _Turn())
    turn.users += 1
    try:
        async with turn.lock:
            yield
    finally:
        turn.users -= 1
        if not turn.users:
            turns.pop(message_id or "", None)
