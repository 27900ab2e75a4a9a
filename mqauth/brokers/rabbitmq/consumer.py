"""The RabbitMQ consumer: an aio-pika queue with the delivery engine, and a refusal of what cannot work."""

from __future__ import annotations

from typing import Unpack

from aio_pika.abc import AbstractQueue

from mqauth.brokers.amqp_topology import DEFAULT_DELIVERY_LIMIT, stream_refused, warn_of_shared_connection
from mqauth.brokers.options import QueueOptions
from mqauth.brokers.queue.consumer import QueueConsumer
from mqauth.brokers.rabbitmq.channel import share_connection
from mqauth.brokers.rabbitmq.producer import Producer, as_responder
from mqauth.brokers.rabbitmq.queue import Queue
from mqauth.delivery.slot import NO_LIMIT
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.logs import emit
from mqauth.signer import Signer


class Consumer(QueueConsumer):
    """Gives the verified messages of one queue to a handler, and dead-letters the rest.

    Args:
        queue: a connected aio-pika queue, on a connection of its own; ``declare_source`` makes the
            recommended kind.
        guard: the pipeline.
        handler: takes a ``Verified``; may be asynchronous. A synchronous one blocks the event loop.
        dead_letters: where rejected messages go, best on another connection.
        replies: signs what ``Verified.reply`` publishes, through the channel of ``dead_letters``; or a
            ``Producer`` on a default exchange.
        options: as ``mqauth.brokers.options.QueueOptions`` has them.

    Raises:
        ConfigurationError: the pipeline has no audit, or a setting is out of its limits.
    """

    def __init__(
        self,
        queue: AbstractQueue,
        guard: Pipeline,
        handler: Handler,
        *,
        dead_letters: DeadLetterSink,
        replies: Signer | Producer | None = None,
        **options: Unpack[QueueOptions],
    ) -> None:
        options["delivery_limit"] = limit_of(queue, options.get("delivery_limit"))
        responder = as_responder(replies, dead_letters)
        super().__init__(Queue(queue), guard, handler, dead_letters=dead_letters, responder=responder, **options)
        if (getattr(queue, "arguments", None) or {}).get("x-queue-type") == "stream":
            raise stream_refused(queue.name)
        if share_connection(queue.channel, getattr(dead_letters, "channel", None)):
            warn_of_shared_connection(queue.name)
        if _is_classic(queue):
            emit(
                "client.classic_queue",
                "%s is no quorum queue: one undecodable message would stop it for ever",
                queue.name,
            )


def _is_classic(queue: AbstractQueue) -> bool:
    """Return whether a queue is known to be no quorum queue; one that was got by its name is not known."""
    declared = getattr(queue, "arguments", None) or {}
    return not getattr(queue, "passive", False) and declared.get("x-queue-type") != "quorum"


def limit_of(queue: AbstractQueue, configured: int | None) -> int:
    """Return the delivery limit of a queue: as configured, as declared here, or RabbitMQ's own."""
    if configured is not None or _is_classic(queue):
        return NO_LIMIT if configured is None else configured
    limit = (getattr(queue, "arguments", None) or {}).get("x-delivery-limit")
    return limit if isinstance(limit, int) else DEFAULT_DELIVERY_LIMIT
