"""kafka-python's records to ``Message``; what holds for every client is in ``log_records``.

Which log a record stands in: a topic's name is not enough where there are two clusters, or it was made anew.

The cluster's id and, from Kafka 2.8 on, the topic's id (KIP-516) come with every metadata response; the client has
them at hand, so that asking costs no request.
"""

from __future__ import annotations

import base64
from typing import Any, Final
from uuid import UUID

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


class Logs:
    """Tells which log the records of a topic are in, by what a client's metadata say.

    What was known once stays until the metadata say something else: a response without an id, of a topic that is
    just being deleted or may not be seen for a moment, does not make another place of the records at hand.

    Args:
        client: a ``KafkaConsumer``.
    """

    def __init__(self, client: Any) -> None:
        self._metadata: Any = getattr(client, "_cluster", None)
        self._known: dict[str, Log] = {}

    def of(self, topic: str) -> Log:
        """Return the log of a topic; never asks the broker, and never raises."""
        before = self._known.get(topic, NO_LOG)
        found = Log(
            _cluster(self._metadata) or before.cluster, _topic_id(self._metadata, topic) or before.topic_id
        )
        if found != before:
            self._known[topic] = found
        return found


def _cluster(metadata: Any) -> str | None:
    """Return the id of the cluster, as far as the client knows it."""
    found = getattr(metadata, "cluster_id", None)
    return found if isinstance(found, str) and found else None


def _topic_id(metadata: Any, topic: str) -> str | None:
    """Return the id of a topic in Kafka's own spelling: base64url without padding, 22 characters."""
    ask = getattr(metadata, "topic_id", None)
    found = None if ask is None else ask(topic)
    if not isinstance(found, UUID) or not found.int:
        return None
    return base64.urlsafe_b64encode(found.bytes).rstrip(b"=").decode("ascii")
