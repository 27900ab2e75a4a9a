"""The encoding that digests run over: typed and length-prefixed, so no two lists of headers share their bytes.

Every value is a tag of one byte, its length in four bytes if it has one, and its bytes. A header that is absent
differs from one that is empty, and ``"1"`` from ``1``. The wire profile, section 5, fixes every byte.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from mqauth.errors import MalformedMessage
from mqauth.wire.message import HeaderValue

MAX_DEPTH: Final = 32
_LEAST: Final = -(2**63)
_BEYOND: Final = 2**64
_MAX_SCALE: Final = 255
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)


def named(name: str, count: int) -> bytes:
    """Return the encoding of a name and of how often it occurs; its values follow.

    Raises:
        MalformedMessage: the name has a lone surrogate.
    """
    return _sized(b"h", utf8(name)) + count.to_bytes(4, "big")


def add_named(parts: list[bytes], name: str, values: Sequence[HeaderValue]) -> None:
    """Append a name with every value it has; a name without values is not a name with an empty value.

    Raises:
        MalformedMessage: a value has a type that no broker carries, or is nested beyond 32.
    """
    parts.append(named(name, len(values)))
    for value in values:
        add_value(parts, value)


def add_value(parts: list[bytes], value: HeaderValue, depth: int = MAX_DEPTH) -> None:
    """Append one value.

    Args:
        parts: what is joined in the end.
        value: of a header or a property.
        depth: how many containers may still stand within each other.

    Raises:
        MalformedMessage: the value has a type that no broker carries, or is nested too deep.
    """
    if type(value) is bytes:  # every value on Kafka
        parts += (b"b", len(value).to_bytes(4, "big"), value)
    elif type(value) is str and value.isascii():  # most values on RabbitMQ
        parts += (b"s", len(value).to_bytes(4, "big"), value.encode())
    elif isinstance(value, tuple | Mapping):
        _add_container(parts, value, depth)
    else:
        parts.append(_scalar(value))


def _add_container(
    parts: list[bytes], value: tuple[HeaderValue, ...] | Mapping[str, HeaderValue], depth: int
) -> None:
    if depth == 0:
        raise MalformedMessage("a header value is nested too deep")
    if isinstance(value, tuple):
        parts.append(b"l" + len(value).to_bytes(4, "big"))
        for item in value:
            add_value(parts, item, depth - 1)
        return
    parts.append(b"m" + len(value).to_bytes(4, "big"))
    if not all(isinstance(name, str) for name in value):
        raise MalformedMessage("a table has a name that is no text")
    # brokers may reorder a table, so its order means nothing
    for raw, name in sorted((utf8(name), name) for name in value):
        parts.append(_sized(b"k", raw))
        add_value(parts, value[name], depth - 1)


def _scalar(value: object) -> bytes:
    if value is None:
        return b"n"
    if isinstance(value, str):
        return _sized(b"s", utf8(value))
    if isinstance(value, bytes):
        return _sized(b"b", value)
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    if isinstance(value, int) and is_carried_integer(value):
        return _sized(b"i", str(value).encode("ascii"))
    if isinstance(value, float):
        # every NaN is the same one: clients keep neither its sign nor its payload
        return b"d" + struct.pack(">d", math.nan if math.isnan(value) else value)
    if isinstance(value, datetime):
        return _sized(b"T", str(epoch_seconds(value)).encode("ascii"))
    if isinstance(value, Decimal) and is_carried_decimal(value):
        return _sized(b"D", format(value, "f").encode("ascii"))
    raise MalformedMessage(f"a header value is {type(value).__name__}, of a type or size that no broker carries")


def epoch_seconds(value: datetime) -> int:
    """Return whole UTC seconds, rounded down as AMQP does; a time without a zone is UTC, never local."""
    aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    return (aware - _EPOCH) // _SECOND


def is_carried_decimal(value: Decimal) -> bool:
    """Tell whether a decimal is finite and its scale fits a byte, as AMQP has it, up or down."""
    exponent = value.as_tuple().exponent
    return isinstance(exponent, int) and -_MAX_SCALE <= exponent <= _MAX_SCALE


def is_carried_integer(value: int) -> bool:
    """Tell whether an integer fits 64 bits, signed or not."""
    return _LEAST <= value < _BEYOND


def utf8(text: str) -> bytes:
    """Return text in UTF-8.

    Raises:
        MalformedMessage: the text has a lone surrogate.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MalformedMessage("a header has no UTF-8 form") from error


def _sized(tag: bytes, raw: bytes) -> bytes:
    return tag + len(raw).to_bytes(4, "big") + raw
