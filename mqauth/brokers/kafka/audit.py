"""Audit records on a Kafka topic, sent by a producer of their own; durable once the broker has acked them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kafka.errors import KafkaError

from mqauth.audit.record import AuditRecord
from mqauth.brokers.kafka.confirm import Confirmed
from mqauth.errors import Cause, Unavailable
from mqauth.wire import strict_json as strictjson

if TYPE_CHECKING:
    from kafka import KafkaProducer


class AuditTopic:
    """An audit sink that sends each record as JSON, keyed by instance, and waits for the broker's confirm.

    Records stand there without ``prev`` and ``hash``: the chain is the file's. Those of one instance lie on one
    partition, in order. A topic with ``cleanup.policy=compact`` would lose all but the last of them.

    Args:
        client: a ``KafkaProducer(acks="all", enable_idempotence=False, allow_auto_create_topics=False)``; an
            idempotent one is poisoned for good by one refusal. Its ``max_block_ms`` is lowered to 5 s at most.
            The dead letters' client may serve.
        topic: the audit topic.
        timeout: seconds to wait for the confirm.

    Raises:
        ConfigurationError: the client is set up otherwise, or a setting is wrong.
    """

    def __init__(self, client: KafkaProducer, topic: str, *, timeout: float = 30) -> None:
        self.client: Any = client
        self._records = Confirmed(client, topic, timeout)
        self.name = topic

    def write(self, record: AuditRecord, /) -> None:
        """Send one record and return once the broker has confirmed it.

        Raises:
            Unavailable: ``audit_unavailable``: refused, timed out or not reachable.
        """
        key = record.instance.encode("utf-8", "replace")
        try:
            self._records.send(record.id, value=strictjson.dumps(record.as_dict()), key=key)
        except (KafkaError, ValueError, TypeError, OSError) as error:
            raise Unavailable(Cause.AUDIT_UNAVAILABLE, type(error).__name__) from error
