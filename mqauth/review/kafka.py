"""The letter box of a Kafka topic, and single records of other topics, read again at their offsets.

Letters stay in their topic. What is redriven or discarded is resolved by a record on ``<topic>.reviewed``. That
topic is compacted and keyed by the letter's id and place, so that several reviewers agree without a database.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import kafka as kafka_python
import kafka.admin as kafka_admin
from kafka.errors import (
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from mqauth.audit.disk import undone_on_error
from mqauth.brokers.kafka.client import Logs, from_native, producer_settings, settings_of
from mqauth.brokers.log.offsets import find_poison
from mqauth.brokers.log.records import carries, dead_letter_headers
from mqauth.errors import MalformedMessage, refusing, require
from mqauth.letters.dead_letter import undelivered
from mqauth.review.letter import Letter, letter_headers
from mqauth.wire import destination, strict_json
from mqauth.wire.message import Message

REVIEWED: Final = ".reviewed"
_PYTHON: Any = kafka_python  # its classes have no types
_ADMIN: Any = kafka_admin
_POLL_MS: Final = 200
_NO_GROUP: Final = "the consumer must have no group: it commits nothing"


class KafkaLetterBox:
    """The dead letters of one topic.

    Args:
        consumer: a ``KafkaConsumer`` without group and deserializers, for this box alone.
        producer: a ``KafkaProducer(acks="all", enable_idempotence=False)``, without serializers.
        topic: the dead-letter topic; ``<topic>.reviewed`` must exist, see ``create_reviewed``.
        timeout: seconds to wait for the broker.

    Raises:
        ConfigurationError: a client has other settings.
    """

    def __init__(
        self, consumer: Any, producer: Any, topic: str, *, timeout: float = 30
    ) -> None:
        config = producer_settings(producer)
        require(
            not config["enable_idempotence"] and config["acks"] in (-1, "all"),
            'the producer must have acks="all" and enable_idempotence=False',
        )
        require(settings_of(consumer, "KafkaConsumer")["group_id"] is None, _NO_GROUP)
        self._consumer = consumer
        self._producer = producer
        self.name = topic
        self.destination = destination.kafka(topic)
        self.expected = 0
        self._timeout = timeout
        # Where each partition ended when the pass began; empty between two passes.
        self._ends: dict[Any, int] = {}
        self._resolved: set[bytes] = set()
        self._waiting: deque[Letter] = deque()

    def browse(self, limit: int, /) -> Sequence[Letter]:
        """Return the next letters that nobody has resolved; a pass ends where the topic ended when it began.

        Raises:
            ConfigurationError: a topic does not exist.
            Unavailable: ``dead_letter_unavailable``.
        """
        with self._asking():
            if limit and not self._ends:
                self._begin()
            while len(self._waiting) < limit and (records := self._poll()) is not None:
                for record in records:
                    message = from_native(record, scope=self.name)
                    # The key of a letter's resolution has its id and its place, so no letter resolves another.
                    letter = letter_headers(message).get("id", "")[:64]
                    key = f"{letter}/{message.origin.partition}/{message.origin.offset}".encode(
                        "utf-8", "replace"
                    )
                    if key not in self._resolved:
                        self._waiting.append(Letter(message=message, handle=key))
        if not limit or not self._waiting:
            self._ends = {}
        return [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]

    def depth(self) -> int:
        """Return how many letters are open: as the offsets of the topic say, less those that are resolved.

        Offsets without a record (of transactions, or of records that were compacted) count as letters.

        Raises:
            ConfigurationError: a topic does not exist.
            Unavailable: ``dead_letter_unavailable``.
        """
        with self._asking():
            self._begin()
        self._ends = {}
        return self.expected

    def publish(self, message: Message, /) -> None:
        """Send a message to its own topic, and wait for the broker.

        Raises:
            MalformedMessage: it is no message of Kafka, or kafka-python cannot send it as it was.
            Unavailable: ``dead_letter_unavailable``.
        """
        scheme, *names = destination.parse(message.destination)
        require(
            scheme == destination.KAFKA, "a message of another broker", MalformedMessage
        )
        require(
            all(carries(name, value) for name, value in message.headers),
            "a header that kafka-python cannot send unchanged",
            MalformedMessage,
        )
        require(
            message.body is not None or message.key is not None,
            "kafka-python sends no record without key and value",
            MalformedMessage,
        )
        self._send(
            names[0],
            value=message.body,
            key=message.key,
            headers=dead_letter_headers(message.headers),
        )

    def remove(self, letter: Letter, /) -> None:
        """Resolve the very letter, for every reviewer.

        Raises:
            Unavailable: ``dead_letter_unavailable``.
        """
        origin = letter.message.origin
        value = strict_json.dumps(
            {"v": 1, "partition": origin.partition, "offset": origin.offset}
        )
        self._send(self.name + REVIEWED, value=value, key=letter.handle)
        self._resolved.add(letter.handle)

    def _send(self, topic: str, **record: Any) -> None:
        try:
            self._producer.send(topic, **record).get(timeout=self._timeout)
        except MessageSizeTooLargeError as error:
            raise MalformedMessage("too large for its topic with the release") from error
        except (KafkaError, ValueError, TypeError, OSError) as error:
            raise undelivered(type(error).__name__) from error

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """End the pass where the broker has no answer, and say in our words why."""
        with (
            undone_on_error(setattr, self, "_ends", {}),
            refusing(
                (KafkaError, OSError), lambda error: type(error).__name__, undelivered
            ),
        ):
            yield

    def _begin(self) -> None:
        """Read what is resolved, then go to the beginning of the letters."""
        self._resolved, self._waiting = set(), deque()
        self._assign(self.name + REVIEWED)
        while (records := self._poll()) is not None:
            self._resolved |= {
                record.key
                for record in records
                if record.value is not None and record.key
            }
        self._assign(self.name)
        first = {each.partition: self._consumer.position(each) for each in self._ends}
        there = sum(end - first[each.partition] for each, end in self._ends.items())
        # What is resolved may have left its topic long ago.
        gone = sum(
            offset >= first.get(partition, math.inf)
            for partition, offset in map(_place, self._resolved)
        )
        self.expected = max(0, there - gone)

    def _assign(self, topic: str) -> None:
        """Go to the beginning of every partition, and note where they end now."""
        partitions = self._consumer.partitions_for_topic(topic)
        require(partitions, f"there is no topic {topic}")
        places = [_PYTHON.TopicPartition(topic, number) for number in sorted(partitions)]
        self._consumer.assign(places)
        self._consumer.seek_to_beginning(*places)
        self._ends = self._consumer.end_offsets(places)

    def _poll(self) -> list[Any] | None:
        """Return the next records, ``None`` at the end of the pass."""
        if all(
            self._consumer.position(partition) >= end
            for partition, end in self._ends.items()
        ):
            return None
        try:
            polled = self._consumer.poll(timeout_ms=_POLL_MS)
        except Exception as error:
            # kafka-python stops at a batch that it cannot parse. Without stepping over it nobody could review
            # the letters behind it.
            poison = find_poison(error)
            if poison is None:
                raise
            self._consumer.seek(poison.partition, poison.beyond)
            return []
        return [
            record
            for partition, records in polled.items()
            for record in records
            if record.offset < self._ends.get(partition, 0)
        ]


class KafkaRecords:
    """Reads single records, of whatever topic.

    Args:
        consumer: a ``KafkaConsumer`` without group and deserializers, for this alone, best with
            ``allow_auto_create_topics=False``: a letter may name any topic.
        timeout: seconds to wait for the broker.

    Raises:
        ConfigurationError: the consumer has a group.
    """

    def __init__(self, consumer: Any, *, timeout: float = 30) -> None:
        require(settings_of(consumer, "KafkaConsumer")["group_id"] is None, _NO_GROUP)
        self._consumer = consumer
        self._logs = Logs(consumer)
        self._timeout = timeout
        self._lock = threading.Lock()  # a KafkaConsumer refuses a second thread

    def fetch(self, topic: str, number: int, offset: int, /) -> Message | None:
        """Return the record at a place, ``None`` where it is deleted, not readable for us, or never was.

        Raises:
            Unavailable: ``dead_letter_unavailable``.
        """
        # Errors that a forged letter can cause by the topic it names. They say nothing about the broker.
        try:
            with self._lock:
                if number not in (self._consumer.partitions_for_topic(topic) or ()):
                    return None
                partition = _PYTHON.TopicPartition(topic, number)
                first = self._consumer.beginning_offsets([partition])[partition]
                if (
                    not first
                    <= offset
                    < self._consumer.end_offsets([partition])[partition]
                ):
                    return None
                self._consumer.assign([partition])
                self._consumer.seek(partition, offset)
                record = self._next(partition)
        except (
            InvalidTopicError,
            TopicAuthorizationFailedError,
            UnknownTopicOrPartitionError,
        ):
            return None
        except (KafkaError, OSError) as error:
            raise undelivered(type(error).__name__) from error
        there = record is not None and record.offset == offset
        return from_native(record, scope="", log=self._logs.of(topic)) if there else None

    def _next(self, partition: Any) -> Any:
        """Return the first record from here on; ``None`` where the batch cannot be parsed.

        Raises:
            KafkaError: nothing came in time.
        """
        for _ in range(math.ceil(self._timeout * 1000 / _POLL_MS)):
            try:
                polled = self._consumer.poll(timeout_ms=_POLL_MS, max_records=1)
            except Exception as error:
                if find_poison(error) is None:
                    raise
                return None
            if records := polled.get(partition):
                return records[0]
            # Offsets of compacted records and of the markers of transactions have nothing to return.
            if (
                self._consumer.position(partition)
                >= self._consumer.end_offsets([partition])[partition]
            ):
                return None
        raise KafkaError("no record in time")


def _place(key: bytes) -> tuple[int, int]:
    """Return partition and offset of a resolution's key; anybody who may write to its topic can make others."""
    try:
        _, partition, offset = key.decode("ascii").rsplit("/", 2)
        return int(partition), int(offset)
    except ValueError:
        return -1, -1


def create_reviewed(admin: Any, topic: str, *, replicas: int = -1) -> None:
    """Create ``<topic>.reviewed``, compacted, unless it exists.

    Args:
        admin: a ``KafkaAdminClient``.
        topic: the dead-letter topic.
        replicas: -1 for the broker's default.
    """
    wanted = _ADMIN.NewTopic(
        topic + REVIEWED, 1, replicas, topic_configs={"cleanup.policy": "compact"}
    )
    with suppress(TopicAlreadyExistsError):
        admin.create_topics([wanted], wait_for_metadata=True)
