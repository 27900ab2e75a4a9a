"""Deliveries and publishes of AMQP 0-9-1 to ``Message``, for every client of RabbitMQ.

A client's leaf says what a delivery's parts are; reading them is total. Before it is signed a message to be
published is brought into the form in which it arrives. RabbitMQ 4.0 itself rewrites only ``BCC`` (removed), a
direct reply-to (a suffix added) and its own ``x-`` headers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

from mqauth.brokers.amqp.values import Scalar, header_name, headers_in, on_wire, short_string
from mqauth.errors import MalformedMessage
from mqauth.wire import destination
from mqauth.wire.encoding import MAX_DEPTH
from mqauth.wire.memo import Memo
from mqauth.wire.message import Message, Origin, message_of

APPEND_HEADER: Final = "timestamp_in_ms"
SHORT_STRINGS: Final = {
    "content-type": "content_type", "content-encoding": "content_encoding", "type": "type",
    "message-id": "message_id", "correlation-id": "correlation_id", "reply-to": "reply_to",
    "app-id": "app_id", "user-id": "user_id",
}  # fmt: skip
"""AMQP's text properties, and the attributes by which clients have them."""
_ID_BYTES: Final = 16
Number: TypeAlias = tuple[str, str, Callable[[object], int | None]]
"""A number property: its name, the client's attribute, and what reads that, or ``None`` where it is none."""


def delivered(
    found: Any,
    numbers: Iterable[Number],
    body: object,
    *,
    exchange: object,
    routing_key: object,
    redelivered: bool,
    queue: str,
    scope: str,
    native: object,
    faults: list[str],
) -> Message:
    """Return the message of a delivery.

    Args:
        found: what has AMQP's properties as attributes, ``headers`` among them.
        numbers: its number properties.
        body: the bytes.
        exchange: as the broker says; empty or ``None`` for the default exchange.
        routing_key: likewise.
        redelivered: likewise.
        queue: it was taken from.
        scope: on whose behalf.
        native: the client's own object.
        faults: what has no representation so far; the first one is the message's.

    Raises:
        Exception: exchange or routing key are no text: ``unreadable`` is its message.
    """
    headers = headers_in(found.headers, faults)
    exchange, routing_key = _broker_name(exchange), _broker_name(routing_key)
    appended = _milliseconds_of(found.headers.get(APPEND_HEADER)) if headers else None
    if not isinstance(body, bytes | bytearray):
        faults.append("the body is no bytes")
    place, properties = destination.rabbitmq(exchange, routing_key), _properties_in(found, numbers, faults)
    origin = _ORIGINS[scope, queue, exchange, routing_key, redelivered, appended]
    malformed = faults[0] if faults else None
    return message_of(place, _bytes_or_empty(body), None, properties, headers, origin, native, malformed)


def unreadable(error: Exception, native: object, *, queue: str, scope: str) -> Message:
    """Return the message of a delivery that cannot be read, with what can be had of its body.

    Args:
        error: what reading it raised.
        native: the client's own object, with a ``body`` perhaps.
        queue: it was taken from.
        scope: on whose behalf.
    """
    try:
        body = _bytes_or_empty(getattr(native, "body", b""))
    except Exception:
        body = b""
    return Message(
        destination="rabbitmq:/",
        body=body,
        origin=Origin(scope=scope, queue=queue),
        native=native,
        malformed=f"the delivery could not be read: {type(error).__name__}",
    )


def whole(value: object) -> int | None:
    """Return a number property that clients have as an integer."""
    return int(value) if isinstance(value, int) else None


def failures(headers: Mapping[str, Any], *, redelivered: bool) -> int:
    """Return how many deliveries of a message its queue counts against the delivery limit, as far as known.

    A publisher can write the headers too, so that they are believed only of what is delivered again, and the
    smaller of them. Up to RabbitMQ 4.2 each return counts, in ``x-delivery-count``. RabbitMQ 4.3 counts each in
    ``x-acquired-count``, and in ``x-delivery-count`` only those that failed; until one has, it leaves there
    what was published.

    Args:
        headers: of the delivery.
        redelivered: as the broker says.
    """
    failed = headers.get("x-delivery-count")
    if not redelivered or not isinstance(failed, int):
        return 0
    acquired = headers.get("x-acquired-count")
    return min(failed, acquired) if isinstance(acquired, int) else failed


def new_message_id() -> str:
    """Return a message id nobody else has: some clients would add one after signing, or tell returns by it."""
    return os.urandom(_ID_BYTES).hex()


def published(
    properties: object,
    headers: object,
    body: object,
    *,
    exchange: str,
    routing_key: str,
    scalar: Scalar,
    message_id: str | None = None,
) -> Message:
    """Return the ``Message`` that consumers will get of what is to be published: what is on the wire.

    Args:
        properties: what has AMQP's text properties as attributes.
        headers: a dict, or ``None``.
        body: the bytes.
        exchange: empty for the default exchange.
        routing_key: at most 255 bytes.
        scalar: the client's, of ``amqp_values.on_wire``.
        message_id: what it will be published under where it has none of its own.

    Raises:
        MalformedMessage: a part cannot be sent, or would arrive as something else.
    """
    if short_string("routing key", routing_key) is None and routing_key != "":
        raise MalformedMessage("the routing key is no text")
    texts: dict[str, str] = {}
    for name, attribute in SHORT_STRINGS.items():
        value = getattr(properties, attribute)
        if value is not None and (text := short_string(name, value)) is not None:
            texts[name] = text
    if message_id is not None:
        texts.setdefault("message-id", message_id)
    if not isinstance(body, bytes | bytearray):
        raise MalformedMessage("the body is no bytes")
    if headers is not None and not isinstance(headers, dict):
        raise MalformedMessage("the headers are no dict")
    return Message(
        destination=destination.rabbitmq(exchange, routing_key),
        body=bytes(body),
        properties=texts,
        headers=tuple([
            (header_name(name), on_wire(value, scalar, MAX_DEPTH)) for name, value in (headers or {}).items()
        ]),
    )  # fmt: skip


def _origin(said: tuple[str, str, str, str, bool, int | None]) -> Origin:
    """Return what the broker says of a delivery: scope, queue, exchange, routing key, redelivered, append time."""
    scope, queue, exchange, routing_key, redelivered, appended = said
    return Origin(
        scope=scope,
        queue=queue,
        exchange=exchange,
        routing_key=routing_key,
        redelivered=redelivered,
        timestamp_ms=appended,
        timestamp_type=None if appended is None else "append",
    )


_ORIGINS: Final = Memo(_origin)
"""Most deliveries of a queue share their origin, which takes longer to make than the rest of their message."""


def _properties_in(found: object, numbers: Iterable[Number], faults: list[str]) -> dict[str, str]:
    """Return the properties that are present, as text, by their hyphenated names."""
    properties: dict[str, str] = {}
    for name, attribute in SHORT_STRINGS.items():
        value = getattr(found, attribute, None)
        if not value:
            continue
        if isinstance(value, str):
            properties[name] = value
        else:
            faults.append(f"property {name} is no text")
    for name, attribute, read in numbers:
        value = getattr(found, attribute, None)
        if value and (number := read(value)):
            properties[name] = str(number)
    cluster = getattr(found, "cluster_id", None)
    if cluster and isinstance(cluster, str):
        properties["cluster-id"] = cluster
    return properties


def _milliseconds_of(appended: object) -> int | None:
    """Return the interceptor's stamp, ``None`` where it is none."""
    return appended if type(appended) is int and appended >= 0 else None


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
