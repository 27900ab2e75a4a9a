"""Publishes that are confirmed by the broker, and what is published so: dead letters and audit records.

Dead letters are published by us, since ``basic.reject`` cannot carry a reason.

The recommended queues are declared here: see ``brokers.amqp_messages``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from typing import Any, Final

from pika import BasicProperties, BlockingConnection, exceptions, spec
from pika.adapters.blocking_connection import BlockingChannel

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
from mqauth.brokers.pika.link import LOST, Line, Link, here, link_of
from mqauth.brokers.pika.translate import (
    PERSISTENT,
    carries,
    check_properties,
    to_properties,
)
from mqauth.errors import Cause, MqauthError, Unavailable, refusing
from mqauth.flow import arun
from mqauth.letters.dead_letter import DeadLetter, Oversize, check_oversize
from mqauth.wire import strict_json as strictjson
from mqauth.wire.message import Message

_REFUSED: Final = (ValueError, OverflowError)
"""``TooLargeError``, and what pika raises for what it cannot send."""


class UnroutableError(MqauthError, exceptions.UnroutableError):
    """The broker returned a mandatory message, since no queue takes its routing key; nothing was kept."""

    code = "unroutable"

    def __init__(self) -> None:
        super().__init__([])

    def __str__(self) -> str:
        return "no queue is bound for this exchange and routing key"


class TooLargeError(ValueError):
    """The broker closed the channel for a message, because of its size for example."""


class Publisher:
    """Publishes on a channel of its own with publisher confirms, many messages at once.

    Args:
        connection: pika's.
    """

    def __init__(self, connection: Any) -> None:
        self.link = link_of(connection)
        self._line: Line | None = None
        self._opening: asyncio.Task[None] | None = None
        self._count = 0
        self._unconfirmed: dict[
            int, tuple[str, asyncio.Future[Exception | None], int]
        ] = {}
        self._returned: set[str] = set()

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: BasicProperties,
        *,
        mandatory: bool,
    ) -> None:
        """Publish a message once the channel is open; return once the broker has confirmed it.

        Args:
            exchange: empty for the default exchange.
            routing_key: where to.
            body: the bytes.
            properties: with a message id.
            mandatory: have the broker return the message where no queue takes it.

        Raises:
            MalformedMessage: its header frame is over what the broker takes.
            UnroutableError: no queue takes it.
            pika.exceptions.NackError: the broker refused it.
            TooLargeError: the broker closed the channel for it.
            pika.exceptions.AMQPError: the channel or its connection ended.
        """
        check_properties(properties, self.link.frame_size)
        line, name = await self.ready(), str(properties.message_id)
        # A returned message is known by its id alone, so no two of one id are in flight.
        while same := [
            confirm for known, confirm, _ in self._unconfirmed.values() if known == name
        ]:
            await asyncio.wait(same)
            line = await self.ready()
        confirm: asyncio.Future[Exception | None] = (
            asyncio.get_running_loop().create_future()
        )
        # Counted only once it was sent: the broker counts what it gets, and confirms by that number. pika reads
        # the confirm, or the end of the channel, in a later turn of the loop.
        line.native.basic_publish(exchange, routing_key, body, properties, mandatory)
        self._count += 1
        self._unconfirmed[self._count] = name, confirm, len(body)
        if (error := await asyncio.shield(confirm)) is not None:
            raise error

    async def ready(self) -> Line:
        """Return the channel, opened anew where it was closed; those who wait share one opening.

        While the broker blocks the connection it waits: what is written then stays in pika's buffer, which has no
        bound, and each retry would add another copy of the body.

        Raises:
            Exception: pika's: the connection ended.
        """
        self.link.attach()
        while self.link.blocked or self._line is None or not self._line.is_open:
            await self.link.unblocked()
            if self._line is not None and self._line.is_open:
                continue
            if self._opening is None or self._opening.done():
                self._opening = asyncio.create_task(self._open())
            await asyncio.shield(self._opening)
        return self._line

    async def _open(self) -> None:
        line = await self.link.channel(self._on_close)
        line.native.add_on_return_callback(
            lambda _, __, returned, ___: self._returned.add(returned.message_id)
        )
        await line.ask(line.native.confirm_delivery, self._on_confirm)
        self._line, self._count = line, 0

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        acked = isinstance(method, spec.Basic.Ack)
        tags = (
            [tag for tag in self._unconfirmed if tag <= method.delivery_tag]
            if method.multiple
            else []
        )
        for tag in tags or [method.delivery_tag]:
            name, confirm, _ = self._unconfirmed.pop(tag)
            self._settle(name, confirm, None if acked else exceptions.NackError([]))

    def _on_close(self, reason: Exception) -> None:
        refused = (
            isinstance(reason, exceptions.ChannelClosedByBroker)
            and reason.reply_code == 406
        )
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        for name, confirm, size in unconfirmed.values():
            ours = refused and may_be_too_large(str(reason), size)
            self._settle(name, confirm, TooLargeError(str(reason)) if ours else reason)

    def _settle(
        self,
        name: str,
        confirm: asyncio.Future[Exception | None],
        error: Exception | None,
    ) -> None:
        if name in self._returned:
            self._returned.discard(name)
            error = UnroutableError()
        if not confirm.done():
            confirm.set_result(error)


class _Sink:
    """A queue that something is published to, through the default exchange.

    Attributes:
        name: the queue's name.
        link: the link of its connection.
    """

    cause: Cause

    def __init__(
        self, connection: BlockingConnection, name: str, *, timeout: float = 30
    ) -> None:
        check_queue(name, timeout)
        self._connection = connection
        self._publisher = Publisher(connection)
        self._timeout = timeout
        self.link = self._publisher.link
        self.name = name

    def declare(self) -> None:
        """Declare the recommended queue: quorum, no delivery limit, no TTL, refusing when full.

        Raises:
            pika.exceptions.ChannelClosedByBroker: it exists with other arguments.
        """
        channel = self._connection.channel()
        declare_dead_letters(channel, self.name)
        channel.close()

    def exists(self) -> Awaitable[bool] | bool:
        """Return whether the broker has the queue; in an event loop that is to be awaited.

        Raises:
            Unavailable: it does not answer.
        """

        async def ask() -> bool:
            async with in_time(LOOK, self.cause, LOST):
                return await exists(partial(refusal, self.link, self.name))

        return here(ask())

    async def _send(self, body: bytes, properties: BasicProperties) -> None:
        with refusing(
            UnroutableError, "the queue does not exist", partial(Unavailable, self.cause)
        ):
            await self._publisher.publish("", self.name, body, properties, mandatory=True)


class DeadLetters(_Sink):
    """Publishes dead letters to one queue and waits for the broker's confirm.

    Args:
        connection: a connected ``pika.BlockingConnection``, best one of its own: under a memory alarm RabbitMQ
            stops reading from connections that publish, acks included.
        name: the dead-letter queue, reached through the default exchange.
        timeout: seconds to wait for the confirm.
        max_body: bytes of body the broker takes; more only where the rejected message itself was larger.
        oversize_letters: a message that fits in no other form is dead-lettered by ``"reference"``
            (coordinates, digest, sizes) or deferred, ``"stop"``.

    Raises:
        ConfigurationError: a setting is unknown.
    """

    cause = Cause.DEAD_LETTER_UNAVAILABLE

    def __init__(
        self,
        connection: BlockingConnection,
        name: str,
        *,
        timeout: float = 30,
        max_body: int = DEFAULT_MAX_BODY,
        oversize_letters: Oversize = "reference",
    ) -> None:
        check_oversize(oversize_letters)
        super().__init__(connection, name, timeout=timeout)
        self._max_body = max_body
        self._oversize = oversize_letters

    def publish(self, letter: DeadLetter, /) -> Awaitable[None] | None:
        """Publish a letter in the first of its forms that fits, and return once the broker has confirmed it.

        In an event loop that is to be awaited.

        Raises:
            Unavailable: ``dead_letter_unavailable``: unroutable, refused, timed out or not reachable.
        """

        async def send(form: Message) -> None:
            await self._send(
                form.body or b"", to_properties(form, message_id=new_message_id())
            )

        async def publish() -> None:
            async with in_time(self._timeout, self.cause, LOST):
                await arun(
                    burying(
                        letter, send, carries, _REFUSED, self._max_body, self._oversize
                    )
                )

        return here(publish())


class AuditQueue(_Sink):
    """An audit sink that publishes each record as one persistent JSON message and waits for the confirm.

    The records have no ``prev`` and ``hash``: only the audit file is chained. Only mqauth and auditors should have
    rights on the queue.

    Args:
        connection: a connected ``pika.BlockingConnection`` that consumes nothing.
        name: the queue, reached through the default exchange.
        timeout: seconds to wait for the confirm.

    Raises:
        ConfigurationError: a setting is wrong.
    """

    cause = Cause.AUDIT_UNAVAILABLE

    def write(self, record: AuditRecord, /) -> Awaitable[None] | None:
        """Publish one record and return once the broker has confirmed it; in an event loop that is to be awaited.

        Raises:
            Unavailable: ``audit_unavailable``: no such queue, full, timed out or not reachable.
        """

        async def write() -> None:
            async with in_time(self._timeout, self.cause, LOST):
                await self._send(strictjson.dumps(record.as_dict()), properties)

        properties = BasicProperties(
            delivery_mode=PERSISTENT, message_id=new_message_id(), **RECORD_PROPERTIES
        )
        return here(write())


def declare_source(
    channel: BlockingChannel, name: str, *, delivery_limit: int = DEFAULT_DELIVERY_LIMIT
) -> None:
    """Declare a quorum queue to consume from, and ``<name>.unparseable`` for what no client can decode.

    Messages found there with the reason ``delivery_limit`` may be healthy neighbours of a poison message.

    Args:
        channel: connected.
        name: the queue; bind it yourself.
        delivery_limit: deliveries after which RabbitMQ moves a message to the unparseable ones.

    Raises:
        pika.exceptions.ChannelClosedByBroker: it exists with other arguments.
    """
    declare_dead_letters(channel, name + UNPARSEABLE)
    _declare(channel, name, source_arguments(name, delivery_limit))


def declare_dead_letters(channel: BlockingChannel, name: str) -> None:
    """Declare a quorum queue that keeps its messages: no delivery limit, no TTL, refusing when full.

    Raises:
        pika.exceptions.ChannelClosedByBroker: it exists with other arguments.
    """
    _declare(channel, name, dict(LETTERS))


async def refusal(link: Link, name: str, **wanted: Any) -> str:
    """Return the broker's answer to a declaration, made on a channel of its own; empty where it agrees.

    Args:
        link: the connection.
        name: the queue.
        wanted: its properties.
    """
    try:
        line = await link.channel()
        await line.ask(line.native.queue_declare, name, durable=True, **wanted)
        line.native.close()
    except LOST as error:
        return str(error) or type(error).__name__
    return ""


def _declare(channel: BlockingChannel, name: str, arguments: dict[str, Any]) -> None:
    channel.queue_declare(name, durable=True, arguments=arguments)
