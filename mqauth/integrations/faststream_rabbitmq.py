"""The calls for FastStream's ``RabbitBroker``: its deliveries, and what it publishes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

from aio_pika.abc import AbstractIncomingMessage, AbstractRobustConnection
from aiormq.abc import DeliveredMessage
from faststream.rabbit.parser import AioPikaParser
from faststream.rabbit.schemas import RABBIT_REPLY, QueueType, RabbitExchange

from mqauth.brokers.amqp_messages import DIRECT_REPLY, stream_refused
from mqauth.brokers.event_loop import signed
from mqauth.brokers.queue.processor import Processor
from mqauth.brokers.rabbitmq.channel import is_stale, proved, reopen
from mqauth.brokers.rabbitmq.consumer import Deliveries, limit_of
from mqauth.brokers.rabbitmq.producer import OUT_OF_REACH, Producer, UnroutableError
from mqauth.judging.token import Times
from mqauth.signer import Signer


class FastStreamDeliveries(Deliveries):
    """The calls for the deliveries of one queue.

    FastStream's ``TestBroker`` gives its deliveries no tag, and a channel that is always closed.
    """

    @staticmethod
    def ended(native: AbstractIncomingMessage, /) -> bool:
        """Return whether a delivery's channel ended."""
        return native.delivery_tag is not None and is_stale(native)

    async def lives(self, native: AbstractIncomingMessage, /) -> bool:
        """Return whether its channel answers."""
        return native.delivery_tag is None or await super().lives(native)


BATCHES = ()
"""Kinds of publishers that send batches."""
ANSWERS = FastStreamDeliveries(RABBIT_REPLY.name)
"""The calls for the answers of requests; RabbitMQ takes an answer as acked."""
_DEFAULT: Final = RabbitExchange()
"""The default exchange, which every channel has."""


def processor(subscriber: Any) -> Callable[..., Processor]:
    """Return what makes the ``Processor`` of a subscriber's deliveries.

    Raises:
        ConfigurationError: it consumes a stream.
    """
    queue = subscriber.queue.add_prefix(subscriber._outer_config.prefix)
    if queue.arguments.get("x-queue-type") == QueueType.STREAM.value:
        raise stream_refused(queue.name)
    declared: Any = SimpleNamespace(passive=not queue.declare, arguments=queue.arguments)
    return partial(
        Processor,
        FastStreamDeliveries(queue.name),
        delivery_limit=limit_of(declared, None),
    )


async def seal(
    broker: Any, command: Any, send: Any, signer: Signer, *, answers: bool
) -> None:
    """Encode what a command publishes, and sign it.

    Args:
        broker: FastStream's.
        command: changed: its body becomes the sealed message.
        send: the producer's method that publishes it.
        signer: signs.
        answers: whether an answer is awaited, by a direct reply.

    Raises:
        MalformedMessage: it cannot be sent, or would arrive as something else.
        aio_pika.exceptions.AMQPError: its channel was closed, and cannot be opened now.
    """
    # Another message may have closed the one channel of all that is published. A test broker has none.
    declarer = getattr(send.__self__, "declarer", None)
    if declarer is not None:
        await reopen((await declarer.declare_exchange(_DEFAULT)).channel)
    native = await AioPikaParser.encode_message(
        command.body,
        serializer=broker.config.fd_config._serializer,
        codec=send.__self__.codec,
        id_generator=broker.config.id_generator,
        reply_to=RABBIT_REPLY.name if answers else command.reply_to,
        headers=command.headers,
        correlation_id=command.correlation_id,
        **command.message_options,
    )
    sealed = await signed(
        signer,
        Producer(command.exchange, signer, max_body=broker._mqauth.max_body).seal,
        native,
        command.destination,
    )
    # one dict for both: middlewares that come after ours add trace headers to the command's
    command.body, command.headers = sealed, sealed.headers


def only_signed(_message: object, _verified: object) -> None:
    """Do nothing: reply-to is a property, which the token covers."""


def check(command: Any, returned: object) -> None:
    """Check what a publish returned.

    Raises:
        UnroutableError: no queue takes the message; FastStream would return it as if it were confirmed.
    """
    # RabbitMQ returns a mandatory direct reply although it delivers it (manual, Direct Reply-to)
    if isinstance(returned, DeliveredMessage) and not command.destination.startswith(
        DIRECT_REPLY
    ):
        raise UnroutableError(command.exchange.name, command.destination)


def is_out_of_reach(error: BaseException) -> bool:
    """Return whether a publish failed since the broker, or the signing key, is out of reach."""
    return isinstance(error, OUT_OF_REACH)


async def prove(
    times: Times, broker: Any, native: AbstractIncomingMessage | None = None
) -> None:
    """Have a broker prove that it overwrites append times; nothing is asked of FastStream's test broker.

    Args:
        times: of the verifier.
        broker: FastStream's, connected.
        native: a delivery, of whose connection it is asked.

    Raises:
        ConfigurationError: it does not, or refuses the question.
        StaleDelivery: the delivery's channel ended.
    """
    source = broker._connection if native is None else native
    if (
        isinstance(source, AbstractRobustConnection)
        or getattr(native, "delivery_tag", None) is not None
    ):
        await proved(times, source)
