"""Header values and short strings of AMQP 0-9-1, for every client library.

Incoming values become our own types, whatever they are. Outgoing values are converted to the form in which they
will arrive, or refused, because the token binds what arrives. The wrapper of a client says what its client does
differently: which type it encodes as octets, and how many bits it gives a float.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, TypeAlias

from mqauth.errors import MalformedMessage
from mqauth.wire.envelope import MAX_DEPTH
from mqauth.wire.message import HeaderPair, HeaderValue

MAX_SHORT_STRING: Final = 255
MAX_KEY: Final = 128
"""Most bytes of a header name (AMQP 0-9-1, 4.2.5.5); pamqp cuts longer names."""
_INT64: Final = 1 << 63
_MANTISSA: Final = 1 << 31
Scalar: TypeAlias = Callable[[object], HeaderValue]
"""Returns a scalar as the consumers of one client will read it, or raises ``MalformedMessage``."""


def utf8_size(text: str) -> int:
    """Return the number of UTF-8 bytes of a text, -1 where a lone surrogate makes it unencodable."""
    try:
        return len(text) if text.isascii() else len(text.encode("utf-8"))
    except UnicodeEncodeError:
        return -1


def short_string(what: str, value: object) -> str | None:
    """Return a value as an AMQP short string, ``None`` where nothing is sent: AMQP has no empty property.

    Args:
        what: names the value in the error.
        value: text or ``None``.

    Raises:
        MalformedMessage: it is no text, has no UTF-8 form, or is over 255 bytes.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise MalformedMessage(f"{what} must be text, not {type(value).__name__}")
    if not 0 <= utf8_size(value) <= MAX_SHORT_STRING:
        raise MalformedMessage(
            f"{what} must be UTF-8 of at most {MAX_SHORT_STRING} bytes"
        )
    return str.__str__(value)


def header_name(name: object) -> str:
    """Return a header name that can be sent.

    Raises:
        MalformedMessage: it is no UTF-8 text, or over 128 bytes.
    """
    if type(name) is str and name.isascii() and len(name) <= MAX_KEY:
        return name
    if not isinstance(name, str) or not 0 <= utf8_size(name) <= MAX_KEY:
        raise MalformedMessage(
            f"a header name must be UTF-8 text of at most {MAX_KEY} bytes"
        )
    return str.__str__(name)


def on_wire(value: object, scalar: Scalar, depth: int = MAX_DEPTH) -> HeaderValue:
    """Return a header value as its consumers will read it.

    Args:
        value: as it is given to the client.
        scalar: converts what is no text, list or table; each client has its own.
        depth: how many levels of nesting are allowed.

    Raises:
        MalformedMessage: it cannot be sent, or would arrive as something else.
    """
    if type(value) is str and value.isascii():
        return value
    if isinstance(value, str):
        if utf8_size(value) < 0:
            raise MalformedMessage("a header value has no UTF-8 form")
        return str.__str__(value)
    if isinstance(value, (list, dict)):
        if depth == 0:
            raise MalformedMessage(f"a header value is nested deeper than {MAX_DEPTH}")
        if isinstance(value, list):
            return tuple(on_wire(item, scalar, depth - 1) for item in value)
        return {
            header_name(name): on_wire(item, scalar, depth - 1)
            for name, item in value.items()
        }
    try:
        return scalar(value)
    except MalformedMessage:
        raise
    except (ArithmeticError, ValueError, TypeError, struct.error) as error:
        raise MalformedMessage(
            "a number or time in a header is out of AMQP's range"
        ) from error


def plain_scalar(value: object) -> HeaderValue:
    """Return a scalar of a type that every client sends alike: nothing, booleans, integers, decimals, times.

    Raises:
        MalformedMessage: it is beyond what AMQP holds, or of another type.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise MalformedMessage("an integer in a header must fit in 64 bits")
        return int(value)
    if isinstance(value, Decimal):
        # A scale of one octet and a signed mantissa of 32 bits.
        scale = max(0, -int(value.as_tuple().exponent))
        mantissa = int(value.scaleb(scale))
        if scale > 255 or not -_MANTISSA <= mantissa < _MANTISSA:
            raise ValueError("the decimal does not fit in AMQP's scale and mantissa")
        return Decimal(mantissa).scaleb(-scale)
    if isinstance(value, datetime):
        # Whole seconds, in UTC where it names no zone.
        aware = value if value.utcoffset() is not None else value.replace(tzinfo=UTC)
        seconds = int(aware.timestamp())
        # pamqp takes a larger one for milliseconds.
        if not 0 <= seconds <= 0xFFFF_FFFF:
            raise MalformedMessage("a time in a header must be between 1970 and 2106")
        return datetime.fromtimestamp(seconds, tz=UTC)
    raise MalformedMessage(
        f"AMQP's clients send no header value of type {type(value).__name__}"
    )


def single(value: float) -> float:
    """Return a float as 32 bits hold it.

    Raises:
        MalformedMessage: it is not finite.
        OverflowError: it is beyond 32 bits.
    """
    (found,) = struct.unpack(">f", struct.pack(">f", value))
    # RabbitMQ closes the whole connection on NaN and infinities.
    if not math.isfinite(found):
        raise MalformedMessage("a float in a header must be finite and fit in 32 bits")
    return float(found)


def headers_in(headers: object, faults: list[str]) -> tuple[HeaderPair, ...]:
    """Return the pairs of an incoming header table; never raises.

    Args:
        headers: as the client gives them.
        faults: gets a line for each part that cannot be represented.
    """
    if headers is None:
        return ()
    if type(headers) is not dict and not isinstance(headers, Mapping):
        faults.append("the headers are no table")
        return ()
    return tuple(
        [
            (name, value)
            if type(value) is str and type(name) is str and name.isascii()
            else (_name_in(name, faults), _value_in(value, MAX_DEPTH, faults))
            for name, value in headers.items()
        ]
    )


def _name_in(name: object, faults: list[str]) -> str:
    if isinstance(name, str) and utf8_size(name) >= 0:
        return name
    faults.append("a header name is no UTF-8 text")
    return ascii(name)


def _value_in(value: object, depth: int, faults: list[str]) -> HeaderValue:
    """Return a header value in our types; a value that has none becomes its text, and a fault."""
    if isinstance(value, int) and not isinstance(value, bool):
        # pika has a class of its own for integers of 64 bits.
        return int(value)
    if isinstance(value, datetime) and value.tzinfo is None:
        # pika before 1.4 gives a time without its zone, which is UTC.
        return value.replace(tzinfo=UTC)
    if value is None or isinstance(value, (bool, float, str, bytes, datetime, Decimal)):
        return value
    if isinstance(value, bytearray):
        return bytes(value)
    if depth == 0:
        faults.append(f"a header value is nested deeper than {MAX_DEPTH}")
        return _as_text(value)
    if isinstance(value, (list, tuple)):
        return tuple(_value_in(item, depth - 1, faults) for item in value)
    if isinstance(value, Mapping):
        return {
            _name_in(name, faults): _value_in(item, depth - 1, faults)
            for name, item in value.items()
        }
    faults.append("a header value has an unknown type")
    return _as_text(value)


def _as_text(value: object) -> str:
    try:
        return ascii(value)
    # A hostile __repr__ may raise anything, and a deep value a RecursionError.
    except Exception:
        return type(value).__name__


def value_out(value: HeaderValue, octets: Callable[[bytes], Any]) -> Any:
    """Return a header value as a client takes it: a fresh list or dict that shares nothing with ours.

    Args:
        value: ours.
        octets: makes the type that the client encodes as octets.
    """
    if isinstance(value, bytes):
        return octets(value)
    if isinstance(value, tuple):
        return [value_out(item, octets) for item in value]
    if isinstance(value, Mapping):
        return {name: value_out(item, octets) for name, item in value.items()}
    return value


def headers_out(
    pairs: tuple[HeaderPair, ...], octets: Callable[[bytes], Any]
) -> dict[str, Any]:
    """Return header pairs as a fresh dict that a client can send; ``octets`` as in ``value_out``."""
    return {
        name: value if type(value) is str else value_out(value, octets)
        for name, value in pairs
    }


def arrives(name: str, value: HeaderValue, sent: Any, scalar: Scalar) -> bool:
    """Return whether a header arrives with exactly the same name and value.

    Args:
        name: the header's name.
        value: ours.
        sent: what the client would be given for it.
        scalar: the client's.
    """
    try:
        return header_name(name) == name and _same(on_wire(sent, scalar), value)
    except (MalformedMessage, ValueError, OverflowError):
        return False


def _same(left: HeaderValue, right: HeaderValue) -> bool:
    """Return whether two values have equal types and texts: 1.0 is not 1.00, and -0.0 is not 0.0."""
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(
            _same(value, right[name]) for name, value in left.items()
        )
    return type(left) is type(right) and repr(left) == repr(right)
