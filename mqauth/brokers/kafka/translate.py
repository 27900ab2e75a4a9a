"""kafka-python's records to ``Message``; what holds for every client is in ``log_records``."""

from __future__ import annotations

from typing import Any, Final

from mqauth.brokers.kafka.client import refuse_foreign
from mqauth.brokers.log.records import NO_LOG, Log, record_message, unreadable
from mqauth.wire.message import HeaderValue, Message

LOG_APPEND_TIME: Final = 1
"""``timestamp_type`` of a record whose timestamp the broker set (KIP-32); 0 is the producer's own."""


def from_native(record: Any, *, scope: str, log: Log = NO_LOG) -> Message:
    """Return the message of a ``ConsumerRecord``; whatever that holds, nothing is raised.

    Args:
        record: as ``KafkaConsumer.poll`` returned it, without deserializers.
        scope: the consumer group.
        log: which log it stands in (``Logs.of``).

    Raises:
        ConfigurationError: the record is aiokafka's or confluent-kafka's.
    """
    refuse_foreign(record)
    try:
        kind = record.timestamp_type
        return record_message(
            record.topic, record.partition, record.offset, record.timestamp,
            type(kind) is int and kind == LOG_APPEND_TIME, record.key, record.value, record.headers,
            scope, log, record,
        )  # fmt: skip
    except Exception:
        return unreadable(record)


def carries(_name: str, value: HeaderValue) -> bool:
    """Tell whether kafka-python can send a header again: it delivers ``None`` but refuses to send it."""
    return isinstance(value, bytes)
