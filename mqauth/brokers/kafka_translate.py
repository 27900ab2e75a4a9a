"""Kafka records to ``Message`` and back. Reading is total: whatever a record holds, nothing is raised."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from mqauth import destination
from mqauth.brokers.kafka_client import refuse_foreign
from mqauth.brokers.kafka_log import NO_LOG, Log
from mqauth.errors import MalformedMessage
from mqauth.message import (
    NO_ORIGIN,
    NO_PROPERTIES,
    HeaderPair,
    HeaderValue,
    Message,
    Origin,
    kafka_origin,
    message_of,
)

LOG_APPEND_TIME: Final = 1
"""``timestamp_type`` of a record whose timestamp the broker set (KIP-32); 0 is the producer's own."""
NativeHeaders = list[tuple[str, bytes]]
_OCTETS: Final = (bytes, bytearray, memoryview)
_VALUES: Final = frozenset((bytes, type(None)))


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
        return _message(record, scope, log)
    except Exception:
        return Message(destination="kafka:", body=None, native=record, malformed="the record cannot be read")


def to_message(topic: object, value: object = None, key: object = None, headers: object = None) -> Message:
    """Return the message that the arguments of ``send`` describe.

    Raises:
        MalformedMessage: kafka-python or Kafka cannot carry it.
    """
    if not isinstance(topic, str) or not topic:
        raise MalformedMessage("the topic is a text")
    pairs = tuple(native_headers(headers))
    body, record_key = octets("value", value), octets("key", key)
    if body is None and record_key is None:
        raise MalformedMessage("a record has a key or a value")
    place = destination.kafka(topic)
    return message_of(place, body, record_key, NO_PROPERTIES, pairs, NO_ORIGIN, None, None)


def octets(name: str, value: object) -> bytes | None:
    """Return bytes of our own, so that what is signed cannot change before it is sent.

    Raises:
        MalformedMessage: the value is neither bytes nor ``None``.
    """
    if value is None or type(value) is bytes:
        return value
    if isinstance(value, _OCTETS):
        return bytes(value)
    raise MalformedMessage(f"the {name} is bytes or None: serialize it first, or give value_serializer=")


def native_headers(headers: object) -> NativeHeaders:
    """Return a new list of the header pairs.

    Raises:
        MalformedMessage: not a list of (text, bytes): kafka-python sends nothing else.
    """
    if headers is None:
        return []
    if not isinstance(headers, list | tuple):
        raise MalformedMessage("headers are a list of (text, bytes)")
    for pair in headers:
        if type(pair) is tuple and len(pair) == 2 and type(pair[0]) is str and type(pair[1]) is bytes:
            continue
        if not _is_pair(pair, tuple, bytes):
            raise MalformedMessage("a header is a pair of text and bytes")
    return list(headers)


def dead_letter_headers(headers: Iterable[HeaderPair]) -> NativeHeaders:
    """Return a dead letter's headers as the client takes them: text as UTF-8."""
    return [(name, _bytes(value)) for name, value in headers]


def carries(_name: str, value: HeaderValue) -> bool:
    """Tell whether kafka-python can send a header again: it delivers ``None`` but refuses to send it."""
    return isinstance(value, bytes)


def _message(record: Any, scope: str, log: Log) -> Message:
    """Return the message of a record whose attributes are there."""
    faults: list[str] = []
    topic, body, key = record.topic, record.value, record.key
    headers = _headers(record.headers, faults)
    if type(body) not in _VALUES:
        body = _octets(body, "value", faults)
    if type(key) not in _VALUES:
        key = _octets(key, "key", faults)
    place = _destination(topic, faults)
    origin = _origin(record, topic, scope, log)
    return message_of(place, body, key, NO_PROPERTIES, headers, origin, record, faults[0] if faults else None)


def _destination(topic: object, faults: list[str]) -> str:
    """Return the canonical destination of a topic."""
    try:
        if isinstance(topic, str):
            return destination.kafka(topic)
        faults.append("the topic is no text")
    except MalformedMessage as error:
        faults.append(str(error))
    return "kafka:"


def _octets(value: object, name: str, faults: list[str]) -> bytes | None:
    """Return raw bytes; anything else was made by a deserializer."""
    if value is None or isinstance(value, bytes):
        return value
    faults.append(f"the record's {name} is no bytes")
    return None


def _headers(found: Any, faults: list[str]) -> tuple[HeaderPair, ...]:
    """Return the header pairs in order, those that are pairs."""
    pairs = tuple(found or ())
    for pair in pairs:
        if type(pair) is not tuple or len(pair) != 2 or type(pair[0]) is not str or type(pair[1]) not in _VALUES:
            break
    else:
        return pairs
    kept = tuple((pair[0], pair[1]) for pair in pairs if _is_pair(pair, (tuple, list), (bytes, type(None))))
    if len(kept) < len(pairs):
        faults.append("a header is not text and bytes")
    return kept


def _is_pair(pair: Any, shape: Any, values: Any) -> bool:
    """Tell whether something is a header: a text and a value, in such a shape."""
    return isinstance(pair, shape) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], values)


def _origin(record: Any, topic: object, scope: str, log: Log) -> Origin:
    """Return what the broker says of a record."""
    partition, offset, stamp = record.partition, record.offset, record.timestamp
    if not (type(partition) is type(offset) is type(stamp) is int and partition >= 0 <= offset and stamp >= 0):
        partition, offset, stamp = _natural(partition), _natural(offset), _natural(stamp)
    by_broker = _natural(record.timestamp_type) == LOG_APPEND_TIME
    named = topic if isinstance(topic, str) else None
    return kafka_origin(scope, named, partition, offset, stamp, "append" if by_broker else "create", *log)


def _natural(value: object) -> int | None:
    """Return an integer from 0, or ``None``: Kafka says -1 for what it does not know."""
    return value if type(value) is int and value >= 0 else None


def _bytes(value: HeaderValue) -> bytes:
    """Return a letter's header value; ``carries`` let nothing else in than bytes and our own text."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "backslashreplace")
