"""RabbitMQ dead letters: published by us with confirms, since ``basic.reject`` carries no reason."""

from __future__ import annotations

from typing import Final

from aio_pika import exceptions
from aio_pika.abc import AbstractChannel, AbstractQueue

from mqauth.brokers.amqp.messages import new_message_id
from mqauth.brokers.letters import first_taken
from mqauth.brokers.rabbitmq.confirm import Confirmed
from mqauth.brokers.rabbitmq.topology import declare_dead_letters
from mqauth.brokers.rabbitmq.translate import carries, to_native
from mqauth.errors import Cause
from mqauth.flow import arun
from mqauth.letters.dead_letter import DeadLetter, Oversize, check_oversize
from mqauth.wire.message import Message

DEFAULT_MAX_BODY: Final = 16 * 1024 * 1024
"""RabbitMQ 4's default ``max_message_size``, bytes."""
_TOO_LARGE: Final = (exceptions.ChannelPreconditionFailed, ValueError, OverflowError)
"""What the broker says of a body over its size, and aio-pika or ``Measured`` of what cannot be sent."""


class DeadLetters:
    """Publishes dead letters to one queue and waits for the broker's confirm.

    Args:
        channel: a connected aio-pika channel with publisher confirms, best on a connection of its own: under
            a memory alarm RabbitMQ stops reading from connections that publish, acks included.
        name: the dead-letter queue, reached by the default exchange.
        timeout: seconds to wait for the connection and the confirm.
        max_body: bytes of body the broker takes; more only where the rejected message itself was larger.
        oversize_letters: a message that fits in no other form is dead-lettered by ``"reference"``
            (coordinates, digest, sizes) or deferred, ``"stop"``.

    Raises:
        ConfigurationError: the channel has no publisher confirms, or a setting is unknown.
    """

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
        self._queue = Confirmed(channel, name, timeout, Cause.DEAD_LETTER_UNAVAILABLE)
        self.channel = channel
        self.name = name
        self._max_body = max_body
        self._oversize = oversize_letters

    async def declare(self) -> AbstractQueue:
        """Declare the recommended dead-letter queue: quorum, no delivery limit, no TTL, refusing when full.

        Raises:
            aio_pika.exceptions.ChannelPreconditionFailed: it exists with other arguments.
        """
        return await declare_dead_letters(self.channel, self.name)

    async def publish(self, letter: DeadLetter, /) -> None:
        """Publish a letter in the first of its forms that fits, and return once the broker has confirmed it.

        Raises:
            Unavailable: ``dead_letter_unavailable``: unroutable, refused, timed out or not reachable.
        """
        limit = max(self._max_body, len(letter.message.body or b""))
        async with self._queue.in_time():
            await arun(
                first_taken(
                    letter, self._send, carries, lambda form: len(form.body or b"") <= limit, _TOO_LARGE,
                    self._oversize,
                )
            )  # fmt: skip

    async def _send(self, form: Message) -> None:
        """Publish one form, under a message id of its own."""
        await self._queue.publish(to_native(form, message_id=new_message_id()))
