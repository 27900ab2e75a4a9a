"""Records of a Kafka topic, read again at their offsets."""

from __future__ import annotations

import math
import threading
from typing import Any, Final

import kafka as kafka_python
from kafka.errors import (
    InvalidTopicError,
    KafkaError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from mqauth.brokers.kafka import poison as kafka_poison
from mqauth.brokers.kafka.client import settings_of
from mqauth.brokers.kafka.translate import Logs, from_native
from mqauth.errors import Cause, ConfigurationError, Unavailable
from mqauth.review.recall import RecordPlace
from mqauth.wire.message import Message

_PYTHON: Any = kafka_python  # its classes have no types
_POLL_MS: Final = 200
_NOT_FOR_US: Final = (InvalidTopicError, TopicAuthorizationFailedError, UnknownTopicOrPartitionError)
"""What a forged letter can bring about by the topic it names: no fault of the broker's."""


class KafkaRecords:
    """Reads single records, whatever topic they are in.

    Args:
        consumer: a ``KafkaConsumer`` without group and deserializers, for this alone, best with
            ``allow_auto_create_topics=False``: a letter may name any topic.
        timeout: seconds to wait for the broker.

    Raises:
        ConfigurationError: the consumer has a group.
    """

    def __init__(self, consumer: Any, *, timeout: float = 30) -> None:
        if settings_of(consumer, "KafkaConsumer")["group_id"] is not None:
            raise ConfigurationError("the consumer wants no group: it commits nothing")
        self._consumer = consumer
        self._logs = Logs(consumer)
        self._timeout = timeout
        self._lock = threading.Lock()  # a consumer is for one thread at a time

    def fetch(self, place: RecordPlace, /) -> Message | None:
        """Return the record at a place, ``None`` where it is deleted, not for us or was never there.

        Raises:
            Unavailable: ``dead_letter_unavailable``.
        """
        try:
            with self._lock:
                found = self._record(place)
        except _NOT_FOR_US:
            return None
        except (KafkaError, OSError) as error:
            raise Unavailable(Cause.DEAD_LETTER_UNAVAILABLE, type(error).__name__) from error
        return None if found is None else from_native(found, scope="", log=self._logs.of(place.topic))

    def _record(self, place: RecordPlace) -> Any:
        """Return the native record, or ``None``."""
        if place.partition not in (self._consumer.partitions_for_topic(place.topic) or ()):
            return None
        partition = _PYTHON.TopicPartition(place.topic, place.partition)
        first = self._consumer.beginning_offsets([partition])[partition]
        if not first <= place.offset < self._consumer.end_offsets([partition])[partition]:
            return None
        self._consumer.assign([partition])
        self._consumer.seek(partition, place.offset)
        record = self._next(partition)
        return record if record is not None and record.offset == place.offset else None

    def _next(self, partition: Any) -> Any:
        """Return the first record from here on; ``None`` where what is here cannot be parsed.

        Raises:
            KafkaError: nothing came in time.
        """
        for _ in range(math.ceil(self._timeout * 1000 / _POLL_MS)):
            try:
                polled = self._consumer.poll(timeout_ms=_POLL_MS, max_records=1)
            except Exception as error:
                if kafka_poison.find_poison(error) is None:
                    raise
                return None
            if records := polled.get(partition):
                return records[0]
            if self._consumer.position(partition) >= self._consumer.end_offsets([partition])[partition]:
                return None  # compacted away, or a marker of a transaction
        raise KafkaError("no record in time")
