"""pika's deliveries and publishes as ``Message``; ``brokers.amqp_messages`` holds what all clients share.

Reading never raises. A message that pika cannot decode never comes this far: see ``declare_source``.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from pika import BasicProperties

from mqauth.brokers import amqp_messages, amqp_values
from mqauth.errors import MalformedMessage
from mqauth.wire.message import HeaderValue, Message

PERSISTENT: Final = 2


def from_native(
    method: Any, properties: Any, body: Any, *, queue: str, scope: str | None = None
) -> Message:
    """Return a delivery as a ``Message``; never raises.

    Args:
        method: as a callback of ``basic_consume`` gets it.
        properties: likewise.
        body: likewise.
        queue: the queue it was taken from.
        scope: on whose behalf it was taken; by default the queue.

    Returns:
        The message; its ``malformed`` names the first thing that could not be represented.
    """
    return read((method, properties, body), queue=queue, scope=scope)


def read(native: Any, *, queue: str, scope: str | None = None) -> Message:
    """Return a delivery as a ``Message`` whose ``native`` it is; never raises.

    Args:
        native: ends with method, properties and body.
        queue: the queue it was taken from.
        scope: on whose behalf it was taken; by default the queue.
    """
    try:
        *_, method, properties, body = native
        expires = properties.expiration
        return amqp_messages.delivered(
            properties,
            _NUMBERS,
            body,
            exchange=method.exchange,
            routing_key=method.routing_key,
            redelivered=bool(method.redelivered),
            queue=queue,
            scope=scope or queue,
            native=native,
            faults=["the expiration is no number"]
            if expires and _number(expires) is None
            else [],
        )
    except Exception as error:
        return amqp_messages.unreadable(error, native, queue=queue, scope=scope or queue)


def to_message(
    properties: BasicProperties | None,
    body: bytes,
    *,
    exchange: str,
    routing_key: str,
    message_id: str | None = None,
    max_body: int = amqp_messages.DEFAULT_MAX_BODY,
) -> Message:
    """Return the ``Message`` that consumers will get of what is to be published.

    pika sends no floats, and times in whole seconds.

    Args:
        properties: not changed.
        body: the bytes.
        exchange: empty for the default exchange.
        routing_key: at most 255 bytes.
        message_id: used where the properties have no id.
        max_body: bytes of body that the broker takes.

    Raises:
        MalformedMessage: a part cannot be sent, or would arrive as something else.
    """
    given = properties or BasicProperties()
    return amqp_messages.published(
        given,
        given.headers,
        body,
        exchange=exchange,
        routing_key=routing_key,
        scalar=scalar_on_wire,
        message_id=message_id,
        max_body=max_body,
    )


def to_properties(message: Message, **rest: Any) -> BasicProperties:
    """Return the properties of a message as pika sends them: persistent.

    Args:
        message: a dead letter's form, or a sealed message.
        rest: properties that take the place of the message's own.
    """
    properties = message.properties
    texts = {
        attribute: properties.get(name)
        for name, attribute in amqp_messages.SHORT_STRINGS.items()
    }
    numbers = {
        name: int(properties[name])
        for name in ("priority", "timestamp")
        if name in properties
    }
    headers = amqp_values.headers_out(message.headers, bytes)
    return BasicProperties(
        **{**texts, **numbers, "headers": headers, "delivery_mode": PERSISTENT, **rest}
    )


def check_properties(properties: BasicProperties, frame_size: int) -> None:
    """Refuse properties that cannot be encoded, or for whose frame RabbitMQ would close the connection.

    Raises:
        MalformedMessage: they are refused.
    """
    try:
        encoded: Any = properties.encode()
    except Exception as error:
        raise MalformedMessage(
            f"pika cannot send the message: {type(error).__name__}"
        ) from error
    # Bytes of a frame beside its payload.
    amqp_messages.check_frame(
        sum(map(len, encoded)), min(frame_size - 8, amqp_messages.MAX_HEADER_FRAME)
    )


def carries(name: str, value: HeaderValue) -> bool:
    """Return whether pika can send a header so that it arrives as exactly the same value."""
    return amqp_values.arrives(
        name, value, amqp_values.value_out(value, bytes), scalar_on_wire
    )


def scalar_on_wire(value: object) -> HeaderValue:
    """Return a scalar as its consumers will read it, after pika has sent it.

    Raises:
        MalformedMessage: it cannot be sent, or would arrive as something else.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, float):
        raise MalformedMessage(
            "pika sends no floats in headers, and reads them as integers"
        )
    # pika cuts the zeros at the end.
    return amqp_values.plain_scalar(
        value.normalize() if isinstance(value, Decimal) else value
    )


def _number(text: object) -> int | None:
    return (
        int(text)
        if isinstance(text, str) and text.isdecimal() and text.isascii()
        else None
    )


def failures_of(method: Any, headers: Mapping[str, Any] | None) -> int:
    """Return how many deliveries of a message its queue counts against the delivery limit, as far as known."""
    return amqp_messages.failures(headers or {}, redelivered=bool(method.redelivered))


_NUMBERS: Final[tuple[amqp_messages.Number, ...]] = (
    ("priority", "priority", amqp_messages.whole),
    ("delivery-mode", "delivery_mode", amqp_messages.whole),
    ("timestamp", "timestamp", amqp_messages.whole),
    ("expiration", "expiration", _number),
)
