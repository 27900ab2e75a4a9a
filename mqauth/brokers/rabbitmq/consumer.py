"""The RabbitMQ consumer: an aio-pika queue with the delivery engine, and a refusal of what cannot work."""

from __future__ import annotations

import asyncio
from typing import Final

from aio_pika.abc import AbstractQueue

from mqauth.brokers.amqp_topology import DEFAULT_DELIVERY_LIMIT, stream_refused, warn_of_shared_connection
from mqauth.brokers.event_loop import Sleep
from mqauth.brokers.queue.consumer import QueueConsumer
from mqauth.brokers.rabbitmq.channel import share_connection
from mqauth.brokers.rabbitmq.producer import Producer, as_responder
from mqauth.brokers.rabbitmq.queue import Queue
from mqauth.delivery.hold import CONSUMER_TIMEOUT, SUSPENDS_AFTER
from mqauth.delivery.slot import NO_LIMIT
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.judging.unverified import Unverifieds
from mqauth.judging.verified import Decode
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.logs import emit
from mqauth.signer import Signer

DEFAULT_PREFETCH: Final = 10


class Consumer(QueueConsumer):
    """Gives the verified messages of one queue to a handler, and dead-letters the rest.

    Args:
        queue: a connected aio-pika queue, on a connection of its own; ``declare_source`` makes the
            recommended kind.
        guard: the pipeline.
        handler: takes a ``Verified``; may be asynchronous. A synchronous one blocks the event loop.
        dead_letters: where rejected messages go, best on another connection.
        prefetch: deliveries at once; their handlers run concurrently, so that 1 keeps the order.
        coalesce_acks: whether to ack many deliveries in one frame, at most 5 ms late, where the channel is the
            consumer's alone; without, each by itself as soon as it is settled.
        decode: makes ``Verified.value`` of the body, after verification; what it raises dead-letters the
            message as ``handler_failed``, at once.
        replies: signs what ``Verified.reply`` publishes, through the channel of ``dead_letters``; or a
            ``Producer`` on a default exchange.
        grace: seconds that running handlers may take at ``stop``.
        hold: seconds, at least 1, of a cause that concerns everyone after which the queue is suspended and the
            held deliveries go back to the broker, but for those that were handled and wait for their confirm. What
            waits for a cause of its own, or of one issuer, is held in any case.
        consumer_timeout: seconds after which the broker closes a channel for a delivery that is not acked, as it
            is set there (``consumer_timeout``); what is held goes back a tenth before.
        delivery_limit: of the queue; by default as declared, else RabbitMQ's 20. Negative for none. A message at
            its last delivery is not given back.
        max_held: deliveries held beside the window, by default ten times ``prefetch`` and at most 1,000, and
            16 MiB of their bodies; beyond it the queue waits for all.
        sleep: waits so many seconds.
        unverified: takes an ``Unverified``, where a rung below ``enforce`` or an exemption lets such messages
            pass; or a table of handlers by kind. It is another function than ``handler``.

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
        prefetch: int = DEFAULT_PREFETCH,
        coalesce_acks: bool = True,
        decode: Decode | None = None,
        replies: Signer | Producer | None = None,
        grace: float = 30,
        hold: float = SUSPENDS_AFTER,
        consumer_timeout: float = CONSUMER_TIMEOUT,
        delivery_limit: int | None = None,
        max_held: int | None = None,
        sleep: Sleep = asyncio.sleep,
        unverified: Unverifieds | None = None,
    ) -> None:
        super().__init__(
            Queue(queue), guard, handler,
            dead_letters=dead_letters, prefetch=prefetch, coalesce_acks=coalesce_acks, grace=grace, hold=hold,
            consumer_timeout=consumer_timeout, delivery_limit=limit_of(queue, delivery_limit), max_held=max_held,
            decode=decode, responder=as_responder(replies, dead_letters), sleep=sleep,
            unverified=unverified,
        )  # fmt: skip
        _check(queue, dead_letters)


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


def _check(queue: AbstractQueue, dead_letters: DeadLetterSink) -> None:
    """Refuse what cannot work, and warn of what will hurt."""
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
