"""aio-pika's messages to ``Message``, total, and dead letters back to what aio-pika sends.

A message that pamqp cannot decode never reaches this module: see ``declare_source``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from mqauth import destination
from mqauth.brokers.rabbitmq_incoming import Unreadable
from mqauth.brokers.rabbitmq_wire import SHORT_STRINGS, header_name, on_wire, utf8_size
from mqauth.encoding import MAX_DEPTH
from mqauth.errors import MalformedMessage
from mqauth.message import HeaderPair, HeaderValue, Message, Origin, message_of

APPEND_HEADER: Final = "timestamp_in_ms"
_MILLISECONDS: Final = 1000


def from_native(incoming: AbstractIncomingMessage, *, queue: str, scope: str | None = None) -> Message:
    """Return what aio-pika delivered as a ``Message``; never raises.

    Args:
        incoming: the delivery.
        queue: the queue it was taken from.
        scope: on whose behalf; by default the queue.

    Returns:
        The message; ``malformed`` says why where something in it could not be represented.
    """
    try:
        return _translated(incoming, queue, scope or queue)
    except Exception as error:  # the law of the edge: whatever it is, it becomes one rejection
        return Message(
            destination="rabbitmq:/",
            body=_last_body(incoming),
            origin=Origin(scope=scope or queue, queue=queue),
            native=incoming,
            malformed=f"the delivery could not be read: {type(error).__name__}",
        )


def failures_of(incoming: AbstractIncomingMessage) -> int:
    """Return how many deliveries of this message its queue counts against the delivery limit, as far as known.

    A publisher can write the headers too, so that they are believed only of what is delivered again, and the
    smaller of them. Up to RabbitMQ 4.2 each return counts, in ``x-delivery-count``. RabbitMQ 4.3 counts each in
    ``x-acquired-count``, and in ``x-delivery-count`` only those that failed; until one has, it leaves there
    what was published.
    """
    headers = incoming.headers or {}
    failed = headers.get("x-delivery-count")
    if not incoming.redelivered or not isinstance(failed, int):
        return 0
    acquired = headers.get("x-acquired-count")
    return min(failed, acquired) if isinstance(acquired, int) else failed


def _translated(incoming: AbstractIncomingMessage, queue: str, scope: str) -> Message:
    """Return the message, noting every part that has no representation."""
    faults = [incoming.fault] if isinstance(incoming, Unreadable) else []
    headers = _headers_in(incoming.headers, faults)
    exchange, routing_key = _broker_name(incoming.exchange), _broker_name(incoming.routing_key)
    appended = incoming.headers.get(APPEND_HEADER) if headers else None
    body: object = incoming.body
    if not isinstance(body, bytes | bytearray):
        faults.append("the body is no bytes")
    place, properties = destination.rabbitmq(exchange, routing_key), _properties_in(incoming, faults)
    origin = _origin(scope, queue, exchange, routing_key, bool(incoming.redelivered), _milliseconds_of(appended))
    malformed = faults[0] if faults else None
    return message_of(place, _bytes_or_empty(body), None, properties, headers, origin, incoming, malformed)


@lru_cache(maxsize=1024)
def _origin(  # noqa: PLR0917 - positional, for the cache's sake
    scope: str, queue: str, exchange: str, routing_key: str, redelivered: bool, appended: int | None
) -> Origin:
    """Return what the broker says; most deliveries share it."""
    return Origin(
        scope=scope,
        queue=queue,
        exchange=exchange,
        routing_key=routing_key,
        redelivered=redelivered,
        timestamp_ms=appended,
        timestamp_type=None if appended is None else "append",
    )


def _milliseconds_of(appended: object) -> int | None:
    """Return the interceptor's stamp, ``None`` where it is none."""
    return appended if type(appended) is int and appended >= 0 else None


def _last_body(incoming: object) -> bytes:
    """Return what can be had of the body of a delivery that cannot be read."""
    try:
        return _bytes_or_empty(getattr(incoming, "body", b""))
    except Exception:
        return b""


def _broker_name(name: object) -> str:
    """Return an exchange or routing key; the default exchange is empty."""
    if name is None:
        return ""
    if not isinstance(name, str):
        raise TypeError("an exchange or routing key is text")
    return name


def _bytes_or_empty(body: object) -> bytes:
    """Return a body's bytes."""
    if type(body) is bytes:
        return body
    return bytes(body) if isinstance(body, bytes | bytearray) else b""


def _properties_in(incoming: AbstractIncomingMessage, faults: list[str]) -> dict[str, str]:
    """Return the AMQP properties that are present, as text, by their hyphenated names."""
    found: dict[str, str] = {}
    for name, attribute in SHORT_STRINGS.items():
        value = getattr(incoming, attribute, None)
        if not value:
            continue
        if isinstance(value, str):
            found[name] = value
        else:
            faults.append(f"property {name} is no text")
    for name, attribute, read in _NUMBERS:
        value = getattr(incoming, attribute, None)
        if value and (number := read(value)):
            found[name] = str(number)
    cluster = getattr(incoming, "cluster_id", None)
    if cluster and isinstance(cluster, str):
        found["cluster-id"] = cluster
    return found


def _number(value: object) -> int | None:
    """Return a number property."""
    return int(value) if isinstance(value, int) else None


def _seconds(moment: object) -> int | None:
    """Return a timestamp property as whole seconds; AMQP has none before 1970."""
    seconds = int(moment.timestamp()) if isinstance(moment, datetime) else 0
    return seconds if seconds > 0 else None


def _milliseconds(expiration: object) -> int | None:
    """Return an expiration, which aio-pika gives in seconds, as AMQP has it."""
    if isinstance(expiration, int | float) and math.isfinite(expiration):
        return round(expiration * _MILLISECONDS)
    return None


_NUMBERS: Final[tuple[tuple[str, str, Callable[[object], int | None]], ...]] = (
    ("priority", "priority", _number), ("delivery-mode", "delivery_mode", _number),
    ("timestamp", "timestamp", _seconds), ("expiration", "expiration", _milliseconds),
)  # fmt: skip


def _headers_in(headers: object, faults: list[str]) -> tuple[HeaderPair, ...]:
    """Return the header table as pairs."""
    if headers is None:
        return ()
    if type(headers) is not dict and not isinstance(headers, Mapping):
        faults.append("the headers are no table")
        return ()
    return tuple([
        (name, value) if type(value) is str and type(name) is str and name.isascii()
        else (_name_in(name, faults), _value_in(value, MAX_DEPTH, faults))
        for name, value in headers.items()
    ])  # fmt: skip


def _name_in(name: object, faults: list[str]) -> str:
    """Return a header name, which must have a UTF-8 form."""
    if isinstance(name, str) and utf8_size(name) >= 0:
        return name
    faults.append("a header name is no UTF-8 text")
    return ascii(name)


def _value_in(value: object, depth: int, faults: list[str]) -> HeaderValue:
    """Return a header value in our types; what has none becomes its text, and a fault."""
    if value is None or isinstance(value, bool | int | float | str | bytes | datetime | Decimal):
        return value
    if isinstance(value, bytearray):
        return bytes(value)
    if depth == 0:
        faults.append(f"a header value is nested deeper than {MAX_DEPTH}")
        return _flat(value)
    if isinstance(value, list | tuple):
        return tuple(_value_in(item, depth - 1, faults) for item in value)
    if isinstance(value, Mapping):
        return {_name_in(name, faults): _value_in(item, depth - 1, faults) for name, item in value.items()}
    faults.append("a header value has an unknown type")
    return _flat(value)


def _flat(value: object) -> str:
    """Return something unrepresentable as text."""
    try:
        return ascii(value)
    except Exception:  # a hostile repr, or a RecursionError
        return type(value).__name__


def headers_out(pairs: tuple[HeaderPair, ...]) -> dict[str, Any]:
    """Return header pairs as the fresh dict aio-pika sends, nothing shared with anyone."""
    return {name: value if type(value) is str else _value_out(value) for name, value in pairs}


def _value_out(value: HeaderValue) -> Any:
    """Return one header value in the types pamqp encodes."""
    if isinstance(value, bytes):
        return bytearray(value)
    if isinstance(value, tuple):
        return [_value_out(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _value_out(item) for name, item in value.items()}
    return value


def carries(name: str, value: HeaderValue) -> bool:
    """Tell whether aio-pika can send a header so that it arrives as the very same value."""
    try:
        return header_name(name) == name and _same(on_wire(_value_out(value)), value)
    except (MalformedMessage, ValueError, OverflowError):
        return False


def _same(left: HeaderValue, right: HeaderValue) -> bool:
    """Tell whether two values are equal and of equal types, a decimal's places and a zero's sign included."""
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_same(value, right[name]) for name, value in left.items())
    return type(left) is type(right) and repr(left) == repr(right)


def to_native(message: Message, *, message_id: str) -> aio_pika.Message:
    """Return a dead letter as aio-pika sends it: persistent, under a message id of its own.

    Args:
        message: one of the letter's forms.
        message_id: fresh; aiormq matches returned messages by it.
    """
    found = message.properties
    priority, timestamp = found.get("priority"), found.get("timestamp")
    texts = {attribute: found.get(name) for name, attribute in SHORT_STRINGS.items() if name != "message-id"}
    return aio_pika.Message(
        message.body or b"",
        headers=headers_out(message.headers),
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        priority=None if priority is None else int(priority),
        timestamp=None if timestamp is None else datetime.fromtimestamp(int(timestamp), tz=UTC),
        message_id=message_id,
        **texts,  # type: ignore[arg-type]
    )
