"""Audit records on a RabbitMQ queue: each published with confirms, and durable once the broker has acked it."""

from __future__ import annotations

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractQueue

from mqauth.audit.record import AuditRecord
from mqauth.brokers.amqp.messages import new_message_id
from mqauth.brokers.rabbitmq.confirm import Confirmed
from mqauth.brokers.rabbitmq.frame import Measured
from mqauth.brokers.rabbitmq.topology import declare_dead_letters
from mqauth.errors import Cause
from mqauth.wire import strict_json as strictjson

CONTENT_TYPE = "application/json"
RECORD_TYPE = "mqauth-audit-1"


class AuditQueue:
    """An audit sink that publishes each record as one persistent JSON message and waits for the confirm.

    Records stand there without ``prev`` and ``hash``: the chain is the file's. Only mqauth and auditors should
    have rights on the queue.

    Args:
        channel: a connected aio-pika channel with publisher confirms, on a connection that consumes nothing.
        name: the queue, reached by the default exchange.
        timeout: seconds to wait for the connection and the confirm.

    Raises:
        ConfigurationError: the channel has no publisher confirms, or a setting is wrong.
    """

    def __init__(self, channel: AbstractChannel, name: str, *, timeout: float = 30) -> None:
        self._queue = Confirmed(channel, name, timeout, Cause.AUDIT_UNAVAILABLE)
        self.channel = channel
        self.name = name

    async def declare(self) -> AbstractQueue:
        """Declare the recommended queue: quorum, no delivery limit, no TTL, refusing when full.

        Raises:
            aio_pika.exceptions.ChannelPreconditionFailed: it exists with other arguments.
        """
        return await declare_dead_letters(self.channel, self.name)

    async def write(self, record: AuditRecord, /) -> None:
        """Publish one record and return once the broker has confirmed it.

        Raises:
            Unavailable: ``audit_unavailable``: no such queue, full, timed out or not reachable.
        """
        message = Measured(
            strictjson.dumps(record.as_dict()),
            content_type=CONTENT_TYPE,
            type=RECORD_TYPE,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=new_message_id(),  # returns are matched by it: one of its own each time
        )
        async with self._queue.in_time():
            await self._queue.publish(message)
