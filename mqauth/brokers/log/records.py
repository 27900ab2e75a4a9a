"""Records of Kafka as ``Message``, and the values that producers are given, for every client library.

The wrapper of a client says where a record has its fields. Reading a record never raises, whatever it holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from mqauth.errors import MalformedMessage
from mqauth.wire import destination
from mqauth.wire.message import (
    NO_ORIGIN,
    NO_PROPERTIES,
    HeaderPair,
    HeaderValue,
    Message,
    Origin,
    kafka_origin,
    message_of,
)

NativeHeaders = list[tuple[str, bytes]]
_OCTETS: Final = (bytes, bytearray, memoryview)
_VALUES: Final = frozenset((bytes, type(None)))


class Log(NamedTuple):
    """The ids of a topic, beyond its name.

    Args:
        cluster: id of the cluster, ``None`` where it is not known.
        topic_id: id of the topic as Kafka's tools print it, 22 characters; ``None`` where it is not known.
    """

    cluster: str | None = None
    topic_id: str | None = None


NO_LOG: Final = Log()


def record_message(  # noqa: PLR0917 - called for each record; keywords would cost more
    topic: object,
    partition: object,
    offset: object,
    timestamp_ms: object,
    by_broker: bool,
    key: object,
    value: object,
    headers: Any,
    scope: str,
    log: Log,
    native: object,
) -> Message:
    """Return the message of a record.

    Args:
        topic: the topic's name, as the client says.
        partition: the partition's number.
        offset: the record's offset.
        timestamp_ms: UTC milliseconds.
        by_broker: whether the broker set the timestamp (KIP-32), and not the producer.
        key: as it came, without a deserializer.
        value: as it came, without a deserializer.
        headers: pairs of text and bytes.
        scope: the consumer group.
        log: the ids of cluster and topic.
        native: the client's own object.

    Returns:
        The message; its ``malformed`` names the first thing that could not be represented.
    """
    faults: list[str] = []
    pairs = _headers(headers, faults)
    body = value if type(value) in _VALUES else _octets(value, "value", faults)
    record_key = key if type(key) in _VALUES else _octets(key, "key", faults)
    place = _destination(topic, faults)
    origin = _origin(topic, partition, offset, timestamp_ms, by_broker, scope, log)
    malformed = faults[0] if faults else None
    return message_of(place, body, record_key, NO_PROPERTIES, pairs, origin, native, malformed)  # type: ignore[arg-type]


def unreadable(native: object) -> Message:
    """Return the message of an object that lacks the fields of a record."""
    return Message(destination="kafka:", body=None, native=native, malformed="the record cannot be read")


def to_message(topic: object, value: object = None, key: object = None, headers: object = None) -> Message:
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
    return message_of(place, body, record_key, NO_PROPERTIES, pairs, NO_ORIGIN, None, None)


def octets(name: str, value: object) -> bytes | None:
    """Return a copy of a value as bytes: what is signed must not change before it is sent.

    Raises:
        MalformedMessage: the value is neither bytes nor ``None``.
    """
    if value is None or type(value) is bytes:
        return value
    if isinstance(value, _OCTETS):
        return bytes(value)
    raise MalformedMessage(f"the {name} must be bytes or None: serialize it first, or give value_serializer=")


def native_headers(headers: object) -> NativeHeaders:
    """Return the header pairs as a new list.

    Raises:
        MalformedMessage: they are no list of (text, bytes), the only form that every client sends unchanged.
    """
    if headers is None:
        return []
    if not isinstance(headers, list | tuple):
        raise MalformedMessage("the headers must be a list of (text, bytes)")
    for pair in headers:
        # Exact types first: isinstance for each part costs more, and nearly all headers pass here.
        if type(pair) is tuple and len(pair) == 2 and type(pair[0]) is str and type(pair[1]) is bytes:
            continue
        if not _is_pair(pair, tuple, bytes):
            raise MalformedMessage("a header must be a pair of text and bytes")
    return list(headers)


def dead_letter_headers(headers: Iterable[HeaderPair]) -> NativeHeaders:
    """Return a dead letter's headers as clients take them, text as UTF-8."""
    return [(name, _bytes(value)) for name, value in headers]


def record_size(value: bytes | None, key: bytes | None = None, headers: Iterable[tuple[str, bytes]] = ()) -> int:
    """Return about the bytes of a record."""
    return len(value or b"") + len(key or b"") + sum(len(name) + len(text) for name, text in headers)


def _destination(topic: object, faults: list[str]) -> str:
    try:
        if isinstance(topic, str):
            return destination.kafka(topic)
        faults.append("the topic is no text")
    except MalformedMessage as error:
        faults.append(str(error))
    return "kafka:"


def _octets(value: object, name: str, faults: list[str]) -> bytes | None:
    """Return a subclass of bytes as it is; anything else was made by a deserializer, and is a fault."""
    if value is None or isinstance(value, bytes):
        return value
    faults.append(f"the record's {name} is no bytes")
    return None


def _headers(found: Any, faults: list[str]) -> tuple[HeaderPair, ...]:
    """Return those headers that are pairs, in order."""
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
    return isinstance(pair, shape) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], values)


def _origin(  # noqa: PLR0917 - called for each record; keywords would cost more
    topic: object, partition: object, offset: object, stamp: object, by_broker: bool, scope: str, log: Log
) -> Origin:
    named = topic if isinstance(topic, str) else None
    kind: Any = "append" if by_broker else "create"
    if type(partition) is type(offset) is type(stamp) is int and partition >= 0 <= offset and stamp >= 0:
        return kafka_origin(scope, named, partition, offset, stamp, kind, *log)
    return kafka_origin(scope, named, _natural(partition), _natural(offset), _natural(stamp), kind, *log)


def _natural(value: object) -> int | None:
    # Kafka says -1 for a number that it does not know.
    return value if type(value) is int and value >= 0 else None


def _bytes(value: HeaderValue) -> bytes:
    # ``carries`` of the client's wrapper lets only bytes and our own text come this far.
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "backslashreplace")
