"""aio-pika's messages as ``Message``, and back; ``brokers.amqp_messages`` holds what is the same for every client.

Reading never raises. A message that pamqp cannot decode never comes this far: see ``declare_source``.

aiormq 7.2 sends a header frame of any size, and RabbitMQ closes the connection for one that is over the size on
which both agreed (``frame_max``). So a message is measured when it is sealed, and again when aio-pika sends it,
since instrumentation adds headers in between.
"""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractIncomingMessage, AbstractMessage
from pamqp import commands

from mqauth.brokers import amqp_messages, amqp_values
from mqauth.brokers.amqp_messages import (
    MAX_HEADER_FRAME,
    SHORT_STRINGS,
    Number,
    check_frame,
)
from mqauth.errors import MalformedMessage
from mqauth.wire.message import HeaderPair, HeaderValue, Message


def unsendable(error: Exception) -> MalformedMessage:
    """Return the error for a message that cannot be encoded; pamqp raises TypeError, struct.error and others."""
    return MalformedMessage(f"aio-pika cannot send the message: {type(error).__name__}")


def agreed(channel: object) -> int:
    """Return the bytes that a header frame may have on aiormq's channel; at most 131,064, also where not known."""
    size: int = getattr(channel, "max_content_size", 0)
    return min(size, MAX_HEADER_FRAME) if size > 0 else MAX_HEADER_FRAME


async def frame_limit(channel: Any) -> int:
    """Return the bytes that a header frame may have on aio-pika's channel, once that is open."""
    ask = getattr(channel, "get_underlay_channel", None)
    return MAX_HEADER_FRAME if ask is None else agreed(await ask())


class Measured(aio_pika.Message):
    """A message that refuses to be sent where its header frame is over ``limit`` bytes."""

    limit: int = MAX_HEADER_FRAME

    @classmethod
    def of(cls, native: AbstractMessage) -> Measured:
        """Return a copy of a message."""
        names = (
            *SHORT_STRINGS.values(),
            "headers",
            "delivery_mode",
            "priority",
            "expiration",
            "timestamp",
        )
        return cls(native.body, **{name: getattr(native, name) for name in names})

    def check(self) -> None:
        """Refuse it now.

        Raises:
            MalformedMessage: its header frame is over the limit, or cannot be encoded.
        """
        _ = self.properties

    @property
    def properties(self) -> commands.Basic.Properties:
        """The properties as aiormq takes them; aio-pika asks for them last of all.

        Raises:
            MalformedMessage: they are over the limit, or cannot be encoded.
        """
        try:
            encoded: commands.Basic.Properties = super().properties
            raw = encoded.marshal()
        except Exception as error:
            raise unsendable(error) from error
        check_frame(len(raw), self.limit)
        return encoded


def from_native(
    incoming: AbstractIncomingMessage, *, queue: str, scope: str | None = None
) -> Message:
    """Return a delivery as a ``Message``; never raises.

    Args:
        incoming: the delivery.
        queue: the queue it was taken from.
        scope: on whose behalf it was taken; by default the queue.

    Returns:
        The message; its ``malformed`` names the first thing that could not be represented.
    """
    try:
        # What aio-pika cannot hold: see ``queue.Unreadable``.
        fault = getattr(incoming, "fault", None)
        return amqp_messages.delivered(
            incoming,
            _NUMBERS,
            incoming.body,
            exchange=incoming.exchange,
            routing_key=incoming.routing_key,
            redelivered=bool(incoming.redelivered),
            queue=queue,
            scope=scope or queue,
            native=incoming,
            faults=[] if fault is None else [fault],
        )
    except Exception as error:
        return amqp_messages.unreadable(
            error, incoming, queue=queue, scope=scope or queue
        )


def failures_of(incoming: AbstractIncomingMessage) -> int:
    """Return how many deliveries of a message its queue counts against the delivery limit, as far as known."""
    return amqp_messages.failures(
        incoming.headers or {}, redelivered=bool(incoming.redelivered)
    )


def to_message(
    native: AbstractMessage,
    *,
    exchange: str,
    routing_key: str,
    message_id: str | None = None,
    max_body: int = amqp_messages.DEFAULT_MAX_BODY,
) -> Message:
    """Return the ``Message`` that consumers will get of an aio-pika message.

    pamqp drops empty short strings, sends floats as 32 bits and times in whole seconds, and cuts keys over 128
    bytes.

    Args:
        native: as it is to be published; not changed.
        exchange: empty for the default exchange.
        routing_key: at most 255 bytes.
        message_id: used where the message has no id of its own.
        max_body: bytes of body that the broker takes.

    Raises:
        MalformedMessage: a part cannot be sent, or would arrive as something else.
    """
    return amqp_messages.published(
        native,
        native.headers,
        native.body,
        exchange=exchange,
        routing_key=routing_key,
        scalar=scalar_on_wire,
        message_id=message_id,
        max_body=max_body,
    )


def to_native(message: Message, *, message_id: str) -> Measured:
    """Return a dead letter as aio-pika sends it: persistent, under a message id of its own.

    Args:
        message: one of the letter's forms.
        message_id: a new one, since aiormq matches returned messages by it.
    """
    properties = message.properties
    priority, timestamp = properties.get("priority"), properties.get("timestamp")
    texts = {
        attribute: properties.get(name)
        for name, attribute in SHORT_STRINGS.items()
        if name != "message-id"
    }
    return Measured(
        message.body or b"",
        headers=headers_out(message.headers),
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        priority=None if priority is None else int(priority),
        timestamp=None
        if timestamp is None
        else datetime.fromtimestamp(int(timestamp), tz=UTC),
        message_id=message_id,
        **texts,  # type: ignore[arg-type]
    )


def headers_out(pairs: tuple[HeaderPair, ...]) -> dict[str, Any]:
    """Return header pairs as a fresh dict that aio-pika can send."""
    return amqp_values.headers_out(pairs, bytearray)


def carries(name: str, value: HeaderValue) -> bool:
    """Return whether aio-pika can send a header so that it arrives as exactly the same value."""
    return amqp_values.arrives(
        name, value, amqp_values.value_out(value, bytearray), scalar_on_wire
    )


def scalar_on_wire(value: object) -> HeaderValue:
    """Return a scalar as its consumers will read it, after pamqp has sent it.

    Raises:
        MalformedMessage: it cannot be sent, or would arrive as something else.
        OverflowError: a float is beyond 32 bits.
    """
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, float):
        return amqp_values.single(value)
    if isinstance(value, time.struct_time):
        value = datetime(*value[:6], tzinfo=UTC)
    if isinstance(value, (bytes, tuple)):
        raise MalformedMessage(
            "aio-pika sends no bytes or tuple in a header: use bytearray or list"
        )
    return amqp_values.plain_scalar(value)


def _seconds(moment: object) -> int | None:
    # AMQP has no timestamp before 1970.
    seconds = int(moment.timestamp()) if isinstance(moment, datetime) else 0
    return seconds if seconds > 0 else None


def _milliseconds(expiration: object) -> int | None:
    # aio-pika gives an expiration in seconds, AMQP has milliseconds.
    if isinstance(expiration, (int, float)) and math.isfinite(expiration):
        return round(expiration * 1000)
    return None


_NUMBERS: Final[tuple[Number, ...]] = (
    ("priority", "priority", amqp_messages.whole),
    ("delivery-mode", "delivery_mode", amqp_messages.whole),
    ("timestamp", "timestamp", _seconds),
    ("expiration", "expiration", _milliseconds),
)
