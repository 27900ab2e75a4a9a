"""aio-pika's calls for the question whether RabbitMQ overwrites append times (``brokers.queue.interceptor``)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from aio_pika.abc import AbstractIncomingMessage, AbstractRobustConnection
from aio_pika.exceptions import AMQPChannelError
from aiormq.abc import AbstractConnection, DeliveredMessage
from pamqp.commands import Basic

from mqauth.brokers.queue.interceptor import UnansweredError, prove, refused
from mqauth.brokers.rabbitmq.channel import LOST, RETRY, closing_is_an_error, is_stale
from mqauth.errors import StaleDelivery, require
from mqauth.judging.token import Times
from mqauth.logs import emit

_CLOSES: Final = 1.0
"""Seconds in which a channel is to be closed; a blocked connection answers nothing."""


async def proved(times: Times, source: AbstractIncomingMessage | AbstractRobustConnection) -> None:
    """Return once a broker has proved that it overwrites append times; it is asked until it answers.

    For whoever takes deliveries from a consumer that is not ours.

    Args:
        times: of the verifier.
        source: a delivery, or a connection that comes back by itself.

    Raises:
        ConfigurationError: the broker leaves a sender's stamp as it is, or refuses the question.
        StaleDelivery: the delivery's channel ended: the broker delivers it again.
    """
    while times.append_evidence is not None:
        connection = await _transport(source)
        try:
            return await prove(times, connection, echoed)
        except UnansweredError as error:
            emit("client.append_unproved", "append times are not proved yet: %s", error)
        await asyncio.sleep(RETRY)


async def _transport(source: AbstractIncomingMessage | AbstractRobustConnection) -> AbstractConnection:
    """Return aiormq's connection as it is now."""
    if isinstance(source, AbstractRobustConnection):
        await source.ready()
        return require(source.transport, "the connection is closed").connection
    if is_stale(source):
        raise StaleDelivery("its channel ended before its append time was proved")
    return source.channel.connection


async def echoed(connection: AbstractConnection, headers: dict[str, Any], body: bytes) -> Mapping[str, Any]:
    """Send a message to an exclusive queue on aiormq's connection, and return the headers it comes back with.

    Raises:
        ConfigurationError: the broker refuses.
        UnansweredError: the connection was lost.
    """
    answer: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()

    async def take(message: DeliveredMessage) -> None:
        # whoever knows the queue's name may send to it, too
        if message.body == body and not answer.done():
            answer.set_result(message.header.properties.headers or {})

    try:
        with closing_is_an_error():
            # confirms: a publish that is refused closes the channel, and its confirm raises why
            asking = await connection.channel()
            try:
                name = (await asking.queue_declare(exclusive=True, auto_delete=True)).queue or ""
                await asking.basic_consume(name, take, no_ack=True)
                await asking.basic_publish(body, routing_key=name, properties=Basic.Properties(headers=headers))
                return await answer
            finally:
                # the queue goes with its consumer; where its close is cancelled, aiormq 7.2 sends a second one
                with suppress(TimeoutError, *LOST):
                    await asyncio.wait_for(asyncio.shield(asking.close()), _CLOSES)
    except AMQPChannelError as error:
        raise refused(error) from error
    except LOST as error:
        raise UnansweredError(f"the broker was not asked: {error or type(error).__name__}") from error
