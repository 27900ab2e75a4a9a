"""RabbitMQ dead letters: published by us with confirms, since ``basic.reject`` carries no reason."""

from __future__ import annotations

import asyncio
import uuid
from typing import Final, Literal

from aio_pika import exceptions
from aio_pika.abc import AbstractChannel, AbstractQueue
from pamqp import commands

from mqauth.brokers import rabbitmq_topology
from mqauth.brokers.rabbitmq_channel import LOST, closing_is_an_error
from mqauth.brokers.rabbitmq_frame import MAX_HEADER_FRAME, frame_size
from mqauth.brokers.rabbitmq_reopening import ready
from mqauth.brokers.rabbitmq_translate import carries, to_native
from mqauth.deadletter import PREFIX, DeadLetter
from mqauth.errors import Cause, ConfigurationError, MalformedMessage, Unavailable
from mqauth.message import Message

DEFAULT_MAX_BODY: Final = 16 * 1024 * 1024
"""RabbitMQ 4's default ``max_message_size``, bytes."""


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
        oversize_letters: Literal["reference", "stop"] = "reference",
    ) -> None:
        if not getattr(channel, "publisher_confirms", False):
            raise ConfigurationError("dead letters need a channel with publisher confirms")
        if timeout <= 0 or oversize_letters not in ("reference", "stop") or not name:
            raise ConfigurationError('name is set, timeout above 0, oversize_letters "reference" or "stop"')
        self.channel = channel
        self.name = name
        self._timeout = timeout
        self._max_body = max_body
        self._by_reference = oversize_letters == "reference"

    async def declare(self) -> AbstractQueue:
        """Declare the recommended dead-letter queue: quorum, no delivery limit, no TTL, refusing when full.

        Raises:
            aio_pika.exceptions.ChannelPreconditionFailed: it exists with other arguments.
        """
        return await rabbitmq_topology.declare_dead_letters(self.channel, self.name)

    async def publish(self, letter: DeadLetter, /) -> None:
        """Publish a letter in the first of its forms that fits, and return once the broker has confirmed it.

        Raises:
            Unavailable: ``dead_letter_unavailable``: unroutable, refused, timed out or not reachable.
        """
        try:
            async with asyncio.timeout(self._timeout):
                with closing_is_an_error():
                    await self._publish_first(letter)
        except TimeoutError as error:
            raise _unavailable(f"no confirm within {self._timeout} s") from error
        except LOST as error:
            raise _unavailable(type(error).__name__) from error

    async def _publish_first(self, letter: DeadLetter) -> None:
        """Try the forms in order; the broker itself may find one too large."""
        refused: Exception | None = None
        for form in letter.forms(carries, lambda form: self._fits(letter, form)):
            if not self._by_reference and (f"{PREFIX}form", "reference") in form.headers:
                break
            try:
                return await self._publish(form)
            except exceptions.ChannelPreconditionFailed as error:
                refused = error
                await ready(self.channel)
        raise _unavailable("no form of the letter fits the broker") from refused

    async def _publish(self, form: Message) -> None:
        """Publish one form; anything but the broker's ack is no dead letter."""
        native = to_native(form, message_id=uuid.uuid4().hex)
        await ready(self.channel)
        result = await self.channel.default_exchange.publish(native, self.name, mandatory=True)
        if not isinstance(result, commands.Basic.Ack):
            raise _unavailable("the dead-letter queue does not exist")

    def _fits(self, letter: DeadLetter, form: Message) -> bool:
        """Tell whether a form is within the sizes the broker takes."""
        limit = max(self._max_body, len(letter.message.body or b""))
        try:
            size = frame_size(to_native(form, message_id="0" * 32))
            return size <= MAX_HEADER_FRAME and len(form.body or b"") <= limit
        except (MalformedMessage, ValueError, OverflowError):
            return False


def _unavailable(detail: str) -> Unavailable:
    """Return why there is no dead letter yet."""
    return Unavailable(Cause.DEAD_LETTER_UNAVAILABLE, detail)
