"""The typed, length-prefixed encoding that digests run over: no concatenation ambiguity, absent is not empty.

Every value is a tag byte, where needed a length of four bytes, and its bytes. The wire profile fixes it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Final

from mqauth.errors import MalformedMessage
from mqauth.wire.message import HeaderValue

MAX_DEPTH: Final = 32
_SHORT: Final = 128
_LEAST: Final = -(2**63)
_BEYOND: Final = 2**64
_MAX_SCALE: Final = 255
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)


def add_named(parts: list[bytes], name: str, values: Sequence[HeaderValue]) -> None:
    """Append a name and every occurrence of it; none is zero occurrences, which is not an empty value."""
    parts.append(_named(name, len(values)))
    for value in values:
        _add_value(parts, value, MAX_DEPTH)


def add_one(parts: list[bytes], name: str, value: HeaderValue) -> None:
    """Append a name that occurs once, with its value: the bytes of ``add_named``."""
    parts.append(_named(name, 1))
    add_value(parts, value)


def add_value(parts: list[bytes], value: HeaderValue) -> None:
    """Append one value."""
    if type(value) is bytes:  # the way of every value on Kafka
        parts.append(b"b")
        parts.append(len(value).to_bytes(4, "big"))
        parts.append(value)
    elif type(value) is str and value.isascii():  # and of most on RabbitMQ
        parts += (b"s", len(value).to_bytes(4, "big"), value.encode())
    else:
        _add_value(parts, value, MAX_DEPTH)


def named(name: str, *, present: bool) -> bytes:
    """Return what stands before the value of a name that occurs once, or what a name is that does not occur."""
    return _named(name, int(present))


def _named(name: str, count: int) -> bytes:
    """Return the encoding of a name and how often it occurs; a long one, which anybody may write, is not kept."""
    return _short_named(name, count) if len(name) <= _SHORT else _any_named(name, count)


def _any_named(name: str, count: int) -> bytes:
    """Return the encoding of a name and how often it occurs."""
    return _sized(b"h", utf8(name)) + count.to_bytes(4, "big")


_short_named = lru_cache(maxsize=1024)(_any_named)


def _add_value(parts: list[bytes], value: HeaderValue, depth: int) -> None:
    """Append the typed, length-prefixed encoding of one value."""
    if isinstance(value, str):
        parts.append(_sized(b"s", utf8(value)))
    elif isinstance(value, bytes):
        parts.append(_sized(b"b", value))
    elif isinstance(value, tuple | Mapping):
        _add_container(parts, value, depth)
    else:
        parts.append(_scalar(value))


def _add_container(
    parts: list[bytes], value: tuple[HeaderValue, ...] | Mapping[str, HeaderValue], depth: int
) -> None:
    """Append a list in order, or a table by name."""
    if depth == 0:
        raise MalformedMessage("a header value is nested too deep")
    if isinstance(value, tuple):
        parts.append(b"l" + len(value).to_bytes(4, "big"))
        for item in value:
            _add_value(parts, item, depth - 1)
        return
    parts.append(b"m" + len(value).to_bytes(4, "big"))
    if not all(isinstance(name, str) for name in value):
        raise MalformedMessage("a table has a name that is no text")
    for raw, name in sorted((utf8(name), name) for name in value):
        parts.append(_sized(b"k", raw))
        _add_value(parts, value[name], depth - 1)


def _scalar(value: object) -> bytes:
    """Return the encoding of a value that holds no others."""
    if value is None:
        return b"n"
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    if isinstance(value, int):
        return _sized(b"i", _integer(value))
    if isinstance(value, float):
        return b"d" + struct.pack(">d", math.nan if math.isnan(value) else value)
    if isinstance(value, datetime):
        return _sized(b"T", str(epoch_seconds(value)).encode("ascii"))
    if isinstance(value, Decimal):
        return _sized(b"D", _decimal(value))
    raise MalformedMessage("a header value has a type no broker carries")


def epoch_seconds(value: datetime) -> int:
    """Return whole UTC seconds, rounded down as AMQP does; a time without a zone is UTC, never local."""
    aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    return (aware - _EPOCH) // _SECOND


def is_carried_decimal(value: Decimal) -> bool:
    """Tell whether a decimal is finite and has a scale that AMQP has (a byte), up or down."""
    exponent = value.as_tuple().exponent
    return isinstance(exponent, int) and -_MAX_SCALE <= exponent <= _MAX_SCALE


def is_carried_integer(value: int) -> bool:
    """Tell whether an integer fits 64 bits, signed or not."""
    return _LEAST <= value < _BEYOND


def _integer(value: int) -> bytes:
    """Return an integer in decimal."""
    if not is_carried_integer(value):
        raise MalformedMessage("an integer is beyond 64 bits")
    return str(value).encode("ascii")


def _decimal(value: Decimal) -> bytes:
    """Return a decimal without exponent, every digit kept."""
    if not is_carried_decimal(value):
        raise MalformedMessage("a decimal no broker carries")
    return format(value, "f").encode("ascii")


def _sized(tag: bytes, raw: bytes) -> bytes:
    """Return a tag, a length of four bytes, and the bytes."""
    return tag + len(raw).to_bytes(4, "big") + raw


def utf8(text: str) -> bytes:
    """Return UTF-8, or refuse a lone surrogate."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MalformedMessage("a header has no UTF-8 form") from error
