"""Signed answers: what ``Verified.reply`` does on RabbitMQ.

RabbitMQ appends a suffix to a reply-to of ``amq.rabbitmq.reply-to``. The token of the request binds it without
the suffix, so whoever can republish a request can redirect its answer; the answer itself is bound to where it
is sent: its destination is the default exchange and the whole reply-to, which its receiver sees as routing key.
"""

from __future__ import annotations

from typing import Final

import aio_pika
from aio_pika import exceptions
from aio_pika.abc import PublishResultType

from mqauth.brokers.rabbitmq.deadletter import DeadLetters
from mqauth.brokers.rabbitmq.producer import Producer
from mqauth.errors import ConfigurationError, MalformedMessage, RetryLater, Unavailable
from mqauth.judging.verified import Responder, Verified
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.signer import Signer

DIRECT_REPLY: Final = "amq.rabbitmq.reply-to."
OUT_OF_REACH: Final = (exceptions.AMQPConnectionError, exceptions.ChannelInvalidStateError, OSError, Unavailable)
"""What publishing raises where channel, connection or signing key are gone, and the broker has refused nothing."""


def as_responder(replies: Signer | Producer | None, dead_letters: DeadLetterSink) -> Responder | None:
    """Return what publishes replies, ``None`` where there is no signer for them.

    Raises:
        ConfigurationError: a signer is given, and no channel to publish through.
    """
    if replies is None:
        return None
    if isinstance(replies, Producer):
        return responder(replies)
    if not isinstance(dead_letters, DeadLetters):
        raise ConfigurationError("replies= takes a Producer where dead letters go by another sink")
    return responder(Producer(dead_letters.channel.default_exchange, replies))


def responder(producer: Producer) -> Responder:
    """Return what ``Verified.reply`` calls: it publishes a signed answer to the message's reply-to.

    While its connection or its signing key cannot be reached the handler is put off. An answer that the broker
    refuses, since no queue takes it or it is too large, fails the handler.

    Args:
        producer: publishes through the default exchange.
    """

    async def reply(verified: Verified, body: bytes) -> PublishResultType | None:
        place = getattr(verified.native, "reply_to", None)
        if not isinstance(place, str) or not place:
            raise MalformedMessage("the message names no reply-to")
        answer = aio_pika.Message(body, correlation_id=verified.properties.get("correlation-id"))
        # RabbitMQ returns a mandatory direct reply although it delivers it (manual, Direct Reply-to).
        mandatory = not place.startswith(DIRECT_REPLY)
        try:
            return await producer.publish(answer, place, mandatory=mandatory)
        except OUT_OF_REACH as error:
            raise RetryLater(f"the answer could not be sent: {type(error).__name__}") from error

    return reply
