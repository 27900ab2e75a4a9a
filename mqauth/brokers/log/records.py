"""Records of Kafka as ``Message``, and the values that producers are given, for every client library.

The wrapper of a client says where a record has its fields. Reading a record never raises, whatever it holds.

The errors here end a consumer or a producer of a log, whichever client it is built on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple, Self

from mqauth.errors import MalformedMessage, MqauthError
from mqauth.wire import destination
from mqauth.wire.message import (
    NO_ORIGIN,
    NO_PROPERTIES,
    HeaderPair,
    HeaderValue,
    Message,
    kafka_origin,
    message_of,
)

NativeHeaders = list[tuple[str, bytes]]


class Log(NamedTuple):
    """The ids of a topic, beyond its name.

    Args:
        cluster: id of the cluster, ``None`` where it is not known.
        topic_id: id of the topic as Kafka's tools print it, 22 characters; ``None`` where it is not known.
    """

    cluster: str | None = None
    topic_id: str | None = None


NO_LOG: Final = Log()
LOG_APPEND_TIME: Final = 1
"""``timestamp_type`` of a record whose timestamp the broker set (KIP-32); 0 is the producer's own."""


class RecordPlace:
    """What the records of one partition have in common, worked out once for all that a poll returns of it.

    Args:
        topic: the topic's name, as the client says.
        partition: the partition's number.
        scope: the consumer group.
        log: the ids of cluster and topic.
    """

    def __init__(self, topic: object, partition: object, scope: str, log: Log) -> None:
        self._destination, self._fault = (
            "kafka:",
            None if isinstance(topic, str) else "the topic is no text",
        )
        self._topic = topic if isinstance(topic, str) else None
        try:
            self._destination = (
                self._destination
                if self._topic is None
                else destination.kafka(self._topic)
            )
        except MalformedMessage as error:
            self._fault = str(error)
        self._partition, self._scope = _natural(partition), scope
        self._cluster, self._topic_id = log

    def message(  # noqa: PLR0917 - called for each record; keywords would cost more
        self,
        offset: Any,
        timestamp_ms: Any,
        by_broker: bool,
        key: Any,
        value: Any,
        headers: Any,
        native: object,
    ) -> Message:
        """Return the message of a record.

        Args:
            offset: the record's offset.
            timestamp_ms: UTC milliseconds.
            by_broker: whether the broker set the timestamp (KIP-32), and not the producer.
            key: as it came, without a deserializer.
            value: as it came, without a deserializer.
            headers: pairs of text and bytes.
            native: the client's own object.

        Returns:
            The message; its ``malformed`` names the first thing that could not be represented.
        """
        fault, pairs = self._fault, tuple(headers or ())
        for pair in pairs:
            if (
                type(pair) is not tuple
                or len(pair) != 2
                or type(pair[0]) is not str
                or (type(pair[1]) is not bytes and pair[1] is not None)
            ):
                # Those that are pairs are kept, in order; a value may be null.
                shape, values, count = (tuple, list), (bytes, type(None)), len(pairs)
                pairs = tuple(
                    (each[0], each[1]) for each in pairs if _is_pair(each, shape, values)
                )
                fault = fault or (
                    "a header is not text and bytes" if len(pairs) < count else None
                )
                break
        if type(value) is not bytes:
            value, fault = _octets(value, "value", fault)
        if type(key) is not bytes:
            key, fault = _octets(key, "key", fault)
        if (
            type(offset) is not int
            or type(timestamp_ms) is not int
            or offset < 0
            or timestamp_ms < 0
        ):
            offset, timestamp_ms = _natural(offset), _natural(timestamp_ms)
        origin = kafka_origin(
            self._scope,
            self._topic,
            self._partition,
            offset,
            timestamp_ms,
            "append" if by_broker else "create",
            self._cluster,
            self._topic_id,
        )
        return message_of(
            self._destination, value, key, NO_PROPERTIES, pairs, origin, native, fault
        )


def record_message(record: Any, scope: str, log: Log = NO_LOG) -> Message:
    """Return the message of one record of kafka-python or aiokafka; nothing that it holds makes this raise."""
    try:
        place = RecordPlace(record.topic, record.partition, scope, log)
    except Exception:
        return unreadable(record)
    return _placed(record, place)


def partition_messages(
    records: Iterable[Any], partition: Any, scope: str, log: Log
) -> list[Message]:
    """Return the messages of records of kafka-python or aiokafka, all of one partition."""
    place = RecordPlace(partition.topic, partition.partition, scope, log)
    return [_placed(record, place) for record in records]


def _placed(record: Any, place: RecordPlace) -> Message:
    # Fields are attributes, and have the same names in both clients.
    try:
        kind = record.timestamp_type
        return place.message(
            record.offset,
            record.timestamp,
            (kind if type(kind) is int else _natural(kind)) == LOG_APPEND_TIME,
            record.key,
            record.value,
            record.headers,
            record,
        )
    except Exception:
        return unreadable(record)


def unreadable(native: object) -> Message:
    """Return the message of an object that lacks the fields of a record."""
    return Message(
        destination="kafka:",
        body=None,
        native=native,
        malformed="the record cannot be read",
    )


def to_message(
    topic: object, value: object = None, key: object = None, headers: object = None
) -> Message:
    """Return the message that the arguments of a client's ``send`` describe.

    Raises:
        MalformedMessage: Kafka, or a client of it, cannot carry it.
    """
    if not isinstance(topic, str) or not topic:
        raise MalformedMessage("the topic must be text, and not empty")
    pairs = tuple(native_headers(headers))
    body, record_key = octets("value", value), octets("key", key)
    if body is None and record_key is None:
        raise MalformedMessage("a record needs a key or a value")
    place = destination.kafka(topic)
    return message_of(
        place, body, record_key, NO_PROPERTIES, pairs, NO_ORIGIN, None, None
    )


def octets(name: str, value: object) -> bytes | None:
    """Return a copy of a value as bytes: what is signed must not change before it is sent.

    Raises:
        MalformedMessage: the value is neither bytes nor ``None``.
    """
    if value is None or type(value) is bytes:
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise MalformedMessage(
        f"the {name} must be bytes or None: serialize it first, or give value_serializer="
    )


def native_headers(headers: object) -> NativeHeaders:
    """Return the header pairs as a new list.

    Raises:
        MalformedMessage: they are no list of (text, bytes), the only form that every client sends unchanged.
    """
    if headers is None:
        return []
    if not isinstance(headers, (list, tuple)):
        raise MalformedMessage("the headers must be a list of (text, bytes)")
    for pair in headers:
        # Exact types first: isinstance for each part costs more, and nearly all headers pass here.
        if (
            type(pair) is tuple
            and len(pair) == 2
            and type(pair[0]) is str
            and type(pair[1]) is bytes
        ):
            continue
        if not _is_pair(pair, tuple, bytes):
            raise MalformedMessage("a header must be a pair of text and bytes")
    return list(headers)


def dead_letter_headers(headers: Iterable[HeaderPair]) -> NativeHeaders:
    """Return a dead letter's headers as clients take them, text as UTF-8."""
    # ``carries`` of the client's wrapper lets only bytes and our own text come this far.
    return [
        (
            name,
            value
            if isinstance(value, bytes)
            else str(value).encode("utf-8", "backslashreplace"),
        )
        for name, value in headers
    ]


def record_size(
    value: bytes | None,
    key: bytes | None = None,
    headers: Iterable[tuple[str, bytes]] = (),
) -> int:
    """Return about the bytes of a record."""
    return (
        len(value or b"")
        + len(key or b"")
        + sum(len(name) + len(text) for name, text in headers)
    )


def _octets(
    value: object, name: str, fault: str | None
) -> tuple[bytes | None, str | None]:
    """Return a subclass of bytes as it is; anything else was made by a deserializer, and is a fault."""
    if value is None or isinstance(value, bytes):
        return value, fault
    return None, fault or f"the record's {name} is no bytes"


def _is_pair(pair: Any, shape: Any, values: Any) -> bool:
    return (
        isinstance(pair, shape)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and isinstance(pair[1], values)
    )


def _natural(value: object) -> int | None:
    # Kafka says -1 for a number that it does not know. A client may have classes of its own below ``int``.
    return (
        int(value)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0
        else None
    )


def carries(_name: str, value: HeaderValue) -> bool:
    """Return whether a client can send a header again: kafka-python delivers ``None`` but refuses to send it."""
    return isinstance(value, bytes)


class PoisonRecordError(MqauthError):
    """A record that the client cannot parse stands at the head of a partition, and the policy is to stop.

    Nothing was skipped or committed. Look at the record with another client, then move the group's offset; with
    kafka-python ``on_poison="skip"`` steps over it.
    """

    code = "poison_record"


class CommitUnansweredError(MqauthError):
    """A client has not returned from a commit for 90 seconds; nothing more can be asked of it.

    librdkafka 2.16 loses a commit that is under way while its broker stands still for longer than the session, and
    confluent-kafka lets no other call of that client begin meanwhile. Start the process again: what was not
    committed comes again.
    """

    code = "commit_unanswered"


class OffsetsRefusedError(MqauthError):
    """The broker does not let the consumer's group read or commit its offsets; nothing was handled.

    Give the group the right ``READ`` on itself and on the topics.
    """

    code = "offsets_refused"


class ProducerFatalError(MqauthError):
    """An idempotent producer has failed for good; close it and make a new one.

    One error that cannot be retried makes every later send to every topic fail with it (KIP-360 state
    ``FATAL_ERROR``). In kafka-python an unauthorized topic is such an error.
    """

    code = "producer_fatal"

    @classmethod
    def after(cls, name: str) -> Self:
        """Return the error for a producer that failed for good with an error of this name."""
        return cls(
            f"the producer failed for good with {name}: close it and make a new one"
        )
