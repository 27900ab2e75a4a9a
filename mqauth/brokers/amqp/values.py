"""The values of AMQP 0-9-1 header tables and short strings, for every client.

Values that arrive become ours, whatever they are. Values to be sent are brought into the form in which they
arrive, or refused, since what is bound is what arrives. A client's leaf says what its client does in a way of
its own: which type stands for octets, how many bits a float has.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, TypeAlias

from mqauth.errors import MalformedMessage
from mqauth.wire.encoding import MAX_DEPTH
from mqauth.wire.message import HeaderPair, HeaderValue

MAX_SHORT_STRING: Final = 255
MAX_KEY: Final = 128
"""Bytes of a table's key (AMQP 0-9-1, 4.2.5.5); pamqp cuts longer ones."""
MAX_TIME: Final = 0xFFFF_FFFF
"""Seconds since the epoch up to which pamqp reads a time as it was sent; beyond, it takes milliseconds."""
_INT64: Final = 1 << 63
_MANTISSA: Final = 1 << 31
_MAX_SCALE: Final = 255
Scalar: TypeAlias = Callable[[object], HeaderValue]
"""Returns a value that holds no others as a client's consumers will read it, or raises ``MalformedMessage``."""


def utf8_size(text: str) -> int:
    """Return the bytes a text takes, -1 where it has a lone surrogate and no UTF-8 form."""
    try:
        return len(text) if text.isascii() else len(text.encode("utf-8"))
    except UnicodeEncodeError:
        return -1


def short_string(what: str, value: object) -> str | None:
    """Return a short string, ``None`` where none is sent: an empty one is as good as none.

    Args:
        what: names it in the error.
        value: text or ``None``.

    Raises:
        MalformedMessage: it is no text, has no UTF-8 form, or is over 255 bytes.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise MalformedMessage(f"{what} is no text")
    if not 0 <= utf8_size(value) <= MAX_SHORT_STRING:
        raise MalformedMessage(f"{what} is UTF-8 of at most {MAX_SHORT_STRING} bytes")
    return str.__str__(value)


def header_name(name: object) -> str:
    """Return a table's key.

    Raises:
        MalformedMessage: it is no UTF-8 text, or over 128 bytes.
    """
    if type(name) is str and name.isascii() and len(name) <= MAX_KEY:
        return name
    if not isinstance(name, str) or not 0 <= utf8_size(name) <= MAX_KEY:
        raise MalformedMessage(f"a header name is UTF-8 text of at most {MAX_KEY} bytes")
    return str.__str__(name)


def on_wire(value: object, scalar: Scalar, depth: int = MAX_DEPTH) -> HeaderValue:
    """Return a header value as its consumers will read it.

    Args:
        value: as it is given to the client.
        scalar: the client's, for what is no text, list or table.
        depth: how deep it may be nested.

    Raises:
        MalformedMessage: it cannot be sent, or would arrive as something else.
    """
    if type(value) is str and value.isascii():
        return value
    if isinstance(value, str):
        if utf8_size(value) < 0:
            raise MalformedMessage("a header has no UTF-8 form")
        return str.__str__(value)
    if isinstance(value, list | dict):
        if depth == 0:
            raise MalformedMessage(f"a header value is nested deeper than {MAX_DEPTH}")
        if isinstance(value, list):
            return tuple(on_wire(item, scalar, depth - 1) for item in value)
        return {header_name(name): on_wire(item, scalar, depth - 1) for name, item in value.items()}
    try:
        return scalar(value)
    except (ArithmeticError, ValueError, TypeError, struct.error) as error:
        if isinstance(error, MalformedMessage):
            raise
        raise MalformedMessage("a number or time header is out of AMQP's range") from error


def plain_scalar(value: object) -> HeaderValue:
    """Return what every client sends alike: nothing, booleans, integers, decimals, times.

    Raises:
        MalformedMessage: it is beyond what AMQP holds, or of another type.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise MalformedMessage("an integer header is beyond 64 bits")
        return int(value)
    if isinstance(value, Decimal):
        return _decimal(value)
    if isinstance(value, datetime):
        return _whole_seconds(value)
    raise MalformedMessage("a header value has a type that AMQP's clients do not send")


def single(value: float) -> float:
    """Return a float as 32 bits hold it; RabbitMQ closes the connection on NaN and infinities.

    Raises:
        MalformedMessage: it is not finite.
        OverflowError: it is beyond 32 bits.
    """
    (found,) = struct.unpack(">f", struct.pack(">f", value))
    if not math.isfinite(found):
        raise MalformedMessage("a float header is finite and within 32 bits")
    return float(found)


def _decimal(value: Decimal) -> Decimal:
    """Return a decimal as a scale and a 32-bit mantissa hold it."""
    exponent = value.as_tuple().exponent
    scale = max(0, -int(exponent))
    mantissa = int(value.scaleb(scale))
    if scale > _MAX_SCALE or not -_MANTISSA <= mantissa < _MANTISSA:
        raise ValueError("no decimal of AMQP's")
    return Decimal(mantissa).scaleb(-scale)


def _whole_seconds(value: datetime) -> datetime:
    """Return a time in whole seconds, UTC where it names no zone."""
    aware = value if value.utcoffset() is not None else value.replace(tzinfo=UTC)
    seconds = int(aware.timestamp())
    if not 0 <= seconds <= MAX_TIME:
        raise MalformedMessage("a time header is between 1970 and 2106")
    return datetime.fromtimestamp(seconds, tz=UTC)


def headers_in(headers: object, faults: list[str]) -> tuple[HeaderPair, ...]:
    """Return a header table that arrived as pairs; never raises.

    Args:
        headers: as the client gives them.
        faults: gets a line for each part that has no representation.
    """
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


def value_out(value: HeaderValue, octets: Callable[[bytes], Any]) -> Any:
    """Return a header value as clients take it: a fresh list or dict, nothing shared with anyone.

    Args:
        value: ours.
        octets: makes what the client encodes as octets.
    """
    if isinstance(value, bytes):
        return octets(value)
    if isinstance(value, tuple):
        return [value_out(item, octets) for item in value]
    if isinstance(value, Mapping):
        return {name: value_out(item, octets) for name, item in value.items()}
    return value


def arrives(name: str, value: HeaderValue, sent: Any, scalar: Scalar) -> bool:
    """Tell whether a header arrives as the very same name and value.

    Args:
        name: of the header.
        value: ours.
        sent: what the client would be given for it.
        scalar: the client's.
    """
    try:
        return header_name(name) == name and _same(on_wire(sent, scalar), value)
    except (MalformedMessage, ValueError, OverflowError):
        return False


def _same(left: HeaderValue, right: HeaderValue) -> bool:
    """Tell whether two values are equal and of equal types, a decimal's places and a zero's sign included."""
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_same(value, right[name]) for name, value in left.items())
    return type(left) is type(right) and repr(left) == repr(right)
