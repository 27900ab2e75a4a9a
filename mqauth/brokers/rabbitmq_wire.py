"""What will be on the wire: an aio-pika message in the form its consumers will read, or refused.

pamqp drops empty short strings, sends floats as 32 bits and times in whole seconds, and cuts keys over 128
bytes. What is bound is what arrives, so a message is brought into that form before it is signed. RabbitMQ
4.0 itself rewrites only ``BCC`` (removed), a direct reply-to (a suffix added) and its own ``x-`` headers; on
a NaN or an infinity in a header it closes the connection.
"""

from __future__ import annotations

import math
import struct
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

import aio_pika
from aio_pika.abc import AbstractMessage
from pamqp import encode
from pamqp.header import ContentHeader

from mqauth import destination
from mqauth.encoding import MAX_DEPTH
from mqauth.errors import MalformedMessage
from mqauth.message import HeaderValue, Message

MAX_HEADER_FRAME: Final = 131_064
"""Bytes of properties and headers in one frame: RabbitMQ's ``frame_max`` of 131,072 less the frame's own 8."""
MAX_SHORT_STRING: Final = 255
MAX_KEY: Final = 128
MAX_TIME: Final = 0xFFFF_FFFF
"""Seconds since the epoch up to which pamqp reads a time as it was sent; beyond, it takes milliseconds."""
SHORT_STRINGS: Final = {
    "content-type": "content_type", "content-encoding": "content_encoding", "type": "type",
    "message-id": "message_id", "correlation-id": "correlation_id", "reply-to": "reply_to",
    "app-id": "app_id", "user-id": "user_id",
}  # fmt: skip
"""AMQP's text properties and what aio-pika calls them."""
_INT64: Final = 1 << 63


def to_message(
    native: AbstractMessage, *, exchange: str, routing_key: str, message_id: str | None = None
) -> Message:
    """Return the ``Message`` that consumers will get of an aio-pika message: what is on the wire.

    Args:
        native: as it is to be published; not changed.
        exchange: empty for the default exchange.
        routing_key: at most 255 bytes.
        message_id: what it will be published under where it has none of its own.

    Raises:
        MalformedMessage: a part cannot be sent, or would arrive as something else.
    """
    if _short_string("routing key", routing_key) is None and routing_key != "":
        raise MalformedMessage("the routing key is no text")
    properties: dict[str, str] = {}
    for name, attribute in SHORT_STRINGS.items():
        if (value := getattr(native, attribute)) is not None and (text := _short_string(name, value)) is not None:
            properties[name] = text
    if message_id is not None:
        properties.setdefault("message-id", message_id)
    if not isinstance(native.body, bytes | bytearray):
        raise MalformedMessage("the body is no bytes")
    headers = native.headers
    if headers is not None and not isinstance(headers, dict):
        raise MalformedMessage("the headers are no dict")
    return Message(
        destination=destination.rabbitmq(exchange, routing_key),
        body=bytes(native.body),
        properties=properties,
        headers=tuple([(header_name(name), on_wire(value, MAX_DEPTH)) for name, value in (headers or {}).items()]),
    )


def _short_string(what: str, value: object) -> str | None:
    """Return a short string, ``None`` where pamqp sends none: it drops empty ones."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise MalformedMessage(f"{what} is no text")
    if not 0 <= utf8_size(value) <= MAX_SHORT_STRING:
        raise MalformedMessage(f"{what} is UTF-8 of at most {MAX_SHORT_STRING} bytes")
    return str.__str__(value)


def utf8_size(text: str) -> int:
    """Return the bytes a text takes, -1 where it has a lone surrogate and no UTF-8 form."""
    try:
        return len(text) if text.isascii() else len(text.encode("utf-8"))
    except UnicodeEncodeError:
        return -1


def header_name(name: object) -> str:
    """Return a table's key, which pamqp would cut beyond 128 bytes."""
    if type(name) is str and name.isascii() and len(name) <= MAX_KEY:
        return name
    if not isinstance(name, str) or not 0 <= utf8_size(name) <= MAX_KEY:
        raise MalformedMessage(f"a header name is UTF-8 text of at most {MAX_KEY} bytes")
    return str.__str__(name)


def on_wire(value: object, depth: int = MAX_DEPTH) -> HeaderValue:
    """Return a header value as its consumers will read it."""
    if type(value) is str and value.isascii():
        return value
    if isinstance(value, list | dict):
        if depth == 0:
            raise MalformedMessage(f"a header value is nested deeper than {MAX_DEPTH}")
        if isinstance(value, list):
            return tuple(on_wire(item, depth - 1) for item in value)
        return {header_name(name): on_wire(item, depth - 1) for name, item in value.items()}
    return _scalar_on_wire(value)


def _scalar_on_wire(value: object) -> HeaderValue:
    """Return a value that holds no others as its consumers will read it."""
    if isinstance(value, str):
        if utf8_size(value) < 0:
            raise MalformedMessage("a header has no UTF-8 form")
        return str.__str__(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise MalformedMessage("an integer header is beyond 64 bits")
        return int(value)
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, bytes | tuple) and not isinstance(value, time.struct_time):
        raise MalformedMessage("aio-pika sends no bytes and no tuple: use bytearray and list")
    return _rounded(value)


def _rounded(value: object) -> HeaderValue:
    """Return a value that loses precision on the wire with what is left of it."""
    try:
        return _number_or_time(value)
    except (ArithmeticError, ValueError, TypeError, struct.error) as error:
        if isinstance(error, MalformedMessage):
            raise
        raise MalformedMessage("a number or time header is out of AMQP's range") from error


def _number_or_time(value: object) -> HeaderValue:
    """Return a float, decimal or time as AMQP holds it."""
    if isinstance(value, float):
        return _single(value)
    if isinstance(value, Decimal):
        return _decimal(value)
    if isinstance(value, time.struct_time):
        value = datetime(*value[:6], tzinfo=UTC)
    if isinstance(value, datetime):
        return _whole_seconds(value)
    raise MalformedMessage("a header value has a type aio-pika does not send")


def _single(value: float) -> float:
    """Return a float as 32 bits hold it; RabbitMQ closes the connection on NaN and infinities."""
    (single,) = struct.unpack(">f", struct.pack(">f", value))
    if not math.isfinite(single):
        raise MalformedMessage("a float header is finite and within 32 bits")
    return float(single)


def _decimal(value: Decimal) -> Decimal:
    """Return a decimal as a scale and a 32-bit mantissa hold it."""
    scale, mantissa = struct.unpack(">Bi", encode.decimal(value))
    return Decimal(mantissa).scaleb(-int(scale))


def _whole_seconds(value: datetime) -> datetime:
    """Return a time in whole seconds, UTC where it names no zone, as pamqp takes it."""
    aware = value if value.utcoffset() is not None else value.replace(tzinfo=UTC)
    seconds = int(aware.timestamp())
    if not 0 <= seconds <= MAX_TIME:
        raise MalformedMessage("a time header is between 1970 and 2106")
    return datetime.fromtimestamp(seconds, tz=UTC)


def frame_size(native: aio_pika.Message) -> int:
    """Return the bytes of the header frame pamqp will send.

    Raises:
        MalformedMessage: pamqp cannot encode it.
    """
    try:
        return len(ContentHeader(body_size=len(native.body), properties=native.properties).marshal())
    except Exception as error:  # pamqp raises TypeError, struct.error, OverflowError and more
        raise MalformedMessage(f"aio-pika cannot send the message: {type(error).__name__}") from error


def check_frame(native: aio_pika.Message) -> None:
    """Refuse a message whose header frame RabbitMQ would answer by closing the connection.

    Raises:
        MalformedMessage: it is over 131,064 bytes, the token included, or cannot be encoded.
    """
    if frame_size(native) > MAX_HEADER_FRAME:
        raise MalformedMessage(f"properties and headers with the token are over {MAX_HEADER_FRAME} bytes")
