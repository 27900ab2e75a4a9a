"""Dead letters and audit records on RabbitMQ queues, each durable once the broker has confirmed it.

Dead letters are published by us, since ``basic.reject`` cannot carry a reason.

The recommended queues are declared here, and streams refused: see ``brokers.amqp_messages``.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

from aio_pika import DeliveryMode, exceptions
from aio_pika.abc import AbstractChannel, AbstractQueue, AbstractRobustChannel
from aiormq.abc import AbstractChannel as UnderlayChannel
from pamqp import commands

from mqauth.audit.record import AuditRecord
from mqauth.brokers.amqp_messages import (
    DEFAULT_DELIVERY_LIMIT,
    DEFAULT_MAX_BODY,
    LETTERS,
    UNPARSEABLE,
    exists,
    may_be_too_large,
    new_message_id,
    source_arguments,
)
from mqauth.brokers.dead_letters import (
    LOOK,
    RECORD_PROPERTIES,
    burying,
    check_queue,
    in_time,
)
from mqauth.brokers.rabbitmq.channel import LOST, closing_is_an_error, ready
from mqauth.brokers.rabbitmq.translate import Measured, carries, frame_limit, to_native
from mqauth.errors import Cause, Unavailable, require
from mqauth.flow import arun
from mqauth.letters.dead_letter import DeadLetter, Oversize, check_oversize
from mqauth.wire import strict_json as strictjson
from mqauth.wire.message import Message

_TOO_LARGE: Final = (exceptions.ChannelPreconditionFailed, ValueError, OverflowError)
"""Errors for a body that is over the broker's size, and of aio-pika or ``Measured`` for what cannot be sent."""


class _Sink:
    """A queue that something is published to through the default exchange, each time confirmed by the broker.

    Attributes:
        channel: the aio-pika channel.
        name: the queue's name.
    """

    cause: Cause

    def __init__(
        self, channel: AbstractChannel, name: str, *, timeout: float = 30
    ) -> None:
        confirms = getattr(channel, "publisher_confirms", False)
        require(
            confirms,
            "dead letters and audit records need a channel with publisher confirms",
        )
        check_queue(name, timeout)
        self.channel = channel
        self.name = name
        self._timeout = timeout

    async def declare(self) -> AbstractQueue:
        """Declare the recommended queue: quorum, no delivery limit, no TTL, refusing when full.

        Raises:
            aio_pika.exceptions.ChannelPreconditionFailed: it exists with other arguments.
        """
        return await declare_dead_letters(self.channel, self.name)

    async def exists(self) -> bool:
        """Return whether the broker has the queue.

        Raises:
            Unavailable: it does not answer.
        """
        async with in_time(LOOK, self.cause, LOST):
            with closing_is_an_error():
                await ready(self.channel)
                channel = await self.channel.get_underlay_channel()
            return await exists(partial(refusal, channel, self.name))

    async def _send(self, native: Measured) -> None:
        """Publish a message once the channel is open; return once the broker has confirmed it.

        Raises:
            MalformedMessage: its header frame is over what the broker takes.
            Unavailable: there is no such queue.
            aio_pika.exceptions.AMQPError: the broker refused it, or its connection ended.
        """
        with closing_is_an_error():
            await ready(self.channel)
            native.limit = await frame_limit(self.channel)
            try:
                result = await self.channel.default_exchange.publish(
                    native, self.name, mandatory=True
                )
            except exceptions.ChannelPreconditionFailed as error:
                if may_be_too_large(str(error), len(native.body)):
                    raise
                raise Unavailable(
                    self.cause, "the channel was closed for another message"
                ) from error
        if not isinstance(result, commands.Basic.Ack):
            raise Unavailable(self.cause, "the queue does not exist")


class DeadLetters(_Sink):
    """Publishes dead letters to one queue and waits for the broker's confirm.

    Args:
        channel: a connected aio-pika channel with publisher confirms, best on a connection of its own: under
            a memory alarm RabbitMQ stops reading from connections that publish, acks included.
        name: the dead-letter queue, reached through the default exchange.
        timeout: seconds to wait for the connection and the confirm.
        max_body: bytes of body the broker takes; more only where the rejected message itself was larger.
        oversize_letters: a message that fits in no other form is dead-lettered by ``"reference"``
            (coordinates, digest, sizes) or deferred, ``"stop"``.

    Raises:
        ConfigurationError: the channel has no publisher confirms, or a setting is unknown.
    """

    cause = Cause.DEAD_LETTER_UNAVAILABLE

    def __init__(
        self,
        channel: AbstractChannel,
        name: str,
        *,
        timeout: float = 30,
        max_body: int = DEFAULT_MAX_BODY,
        oversize_letters: Oversize = "reference",
    ) -> None:
        check_oversize(oversize_letters)
        super().__init__(channel, name, timeout=timeout)
        self._max_body = max_body
        self._oversize = oversize_letters

    async def publish(self, letter: DeadLetter, /) -> None:
        """Publish a letter in the first of its forms that fits, and return once the broker has confirmed it.

        Raises:
            Unavailable: ``dead_letter_unavailable``: unroutable, refused, timed out or not reachable.
        """

        async def send(form: Message) -> None:
            await self._send(to_native(form, message_id=new_message_id()))

        async with in_time(self._timeout, self.cause, LOST):
            await arun(
                burying(letter, send, carries, _TOO_LARGE, self._max_body, self._oversize)
            )


class AuditQueue(_Sink):
    """An audit sink that publishes each record as one persistent JSON message and waits for the confirm.

    The records have no ``prev`` and ``hash``: only the audit file is chained. Only mqauth and auditors should have
    rights on the queue.

    Args:
        channel: a connected aio-pika channel with publisher confirms, on a connection that consumes nothing.
        name: the queue, reached through the default exchange.
        timeout: seconds to wait for the connection and the confirm.

    Raises:
        ConfigurationError: the channel has no publisher confirms, or a setting is wrong.
    """

    cause = Cause.AUDIT_UNAVAILABLE

    async def write(self, record: AuditRecord, /) -> None:
        """Publish one record and return once the broker has confirmed it.

        Raises:
            Unavailable: ``audit_unavailable``: no such queue, full, timed out or not reachable.
        """
        message = Measured(
            strictjson.dumps(record.as_dict()),
            delivery_mode=DeliveryMode.PERSISTENT,
            # A new one each time, since aiormq matches returned messages by it.
            message_id=new_message_id(),
            **RECORD_PROPERTIES,
        )
        async with in_time(self._timeout, self.cause, LOST):
            await self._send(message)


async def declare_source(
    channel: AbstractChannel, name: str, *, delivery_limit: int = DEFAULT_DELIVERY_LIMIT
) -> AbstractQueue:
    """Declare a quorum queue to consume from, and ``<name>.unparseable`` for what no client can decode.

    Messages found there with the reason ``delivery_limit`` may be healthy neighbours of a poison message.

    Args:
        channel: connected.
        name: the queue; bind it yourself.
        delivery_limit: deliveries after which RabbitMQ moves a message to the unparseable ones.

    Raises:
        aio_pika.exceptions.ChannelPreconditionFailed: it exists with other arguments.
    """
    await declare_dead_letters(channel, name + UNPARSEABLE)
    return await _declare(channel, name, source_arguments(name, delivery_limit))


async def declare_dead_letters(channel: AbstractChannel, name: str) -> AbstractQueue:
    """Declare a quorum queue that keeps its messages: no delivery limit, no TTL, refusing when full.

    Raises:
        aio_pika.exceptions.ChannelPreconditionFailed: it exists with other arguments.
    """
    return await _declare(channel, name, dict(LETTERS))


async def _declare(
    channel: AbstractChannel, name: str, arguments: dict[str, Any]
) -> AbstractQueue:
    # A robust channel would declare it again after each reconnect, and stay closed where that fails.
    once: dict[str, Any] = (
        {"robust": False} if isinstance(channel, AbstractRobustChannel) else {}
    )
    return await channel.declare_queue(name, durable=True, arguments=arguments, **once)


async def refusal(channel: UnderlayChannel, name: str, **wanted: Any) -> str:
    """Return the broker's answer to a declaration, made on a channel of its own; empty where it agrees.

    Args:
        channel: aiormq's, whose connection is used.
        name: the queue.
        wanted: its properties.
    """
    try:
        with closing_is_an_error():
            asking = await channel.connection.channel(publisher_confirms=False)
            await asking.queue_declare(name, durable=True, **wanted)
            # Cancelled here, aiormq 7.2 would send a second Channel.Close, and RabbitMQ end the connection.
            await asyncio.shield(asking.close())
    except LOST as error:
        return str(error) or type(error).__name__
    return ""
