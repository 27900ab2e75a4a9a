"""Messages to one RabbitMQ queue of which the broker's confirm is waited for: dead letters, audit records."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from aio_pika.abc import AbstractChannel
from pamqp import commands

from mqauth.brokers.letters import in_time
from mqauth.brokers.rabbitmq.channel import LOST, closing_is_an_error
from mqauth.brokers.rabbitmq.frame import Measured, frame_limit
from mqauth.brokers.rabbitmq.reopening import ready
from mqauth.errors import Cause, ConfigurationError, Unavailable


class Confirmed:
    """Publishes to one queue, which the default exchange reaches, and waits for the broker's confirm.

    Args:
        channel: a connected aio-pika channel with publisher confirms.
        name: the queue.
        timeout: seconds to wait for the connection and the confirm.
        cause: what it is called while there is no confirm.

    Raises:
        ConfigurationError: the channel has no publisher confirms, or a setting is wrong.
    """

    def __init__(self, channel: AbstractChannel, name: str, timeout: float, cause: Cause) -> None:
        if not getattr(channel, "publisher_confirms", False):
            raise ConfigurationError("dead letters and audit records need a channel with publisher confirms")
        if timeout <= 0 or not name:
            raise ConfigurationError("name is set, timeout above 0")
        self._channel = channel
        self._name = name
        self._timeout = timeout
        self._cause = cause

    def in_time(self) -> AbstractAsyncContextManager[None]:
        """Bound what is published within, and name what keeps it from the broker.

        Raises:
            Unavailable: timed out, refused or not reachable.
        """
        return in_time(self._timeout, self._cause, LOST)

    async def publish(self, native: Measured) -> None:
        """Publish a message once the channel is open; return once the broker has confirmed it.

        Raises:
            MalformedMessage: its header frame is over what the broker takes.
            Unavailable: there is no such queue.
            aio_pika.exceptions.AMQPError: the broker refused it, or its connection ended.
        """
        with closing_is_an_error():
            await ready(self._channel)
            native.limit = await frame_limit(self._channel)
            result = await self._channel.default_exchange.publish(native, self._name, mandatory=True)
        if not isinstance(result, commands.Basic.Ack):
            raise Unavailable(self._cause, "the queue does not exist")
