"""The typed, length-prefixed encoding that digests run over: no concatenation ambiguity, absent is not empty.

Every value is a tag byte, where needed a length of four bytes, and its bytes. The wire profile fixes it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Final

from mqauth.errors import MalformedMessage
from mqauth.message import HeaderValue

MAX_DEPTH: Final = 32


def add_named(parts: list[bytes], name: str, values: Iterable[HeaderValue]) -> None:
    """Append a name and every occurrence of it; none is zero occurrences, which is not an empty value."""
    found = tuple(values)
    parts.append(_sized(b"h", _utf8(name)) + len(found).to_bytes(4, "big"))
    for value in found:
        _add_value(parts, value, MAX_DEPTH)


def _add_value(parts: list[bytes], value: HeaderValue, depth: int) -> None:
    """Append the typed, length-prefixed encoding of one value."""
    if isinstance(value, str):
        parts.append(_sized(b"s", _utf8(value)))
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
    for raw, name in sorted((_utf8(name), name) for name in value):
        parts.append(_sized(b"k", raw))
        _add_value(parts, value[name], depth - 1)


def _scalar(value: object) -> bytes:
    """Return the encoding of a value that holds no others."""
    if value is None:
        return b"n"
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    if isinstance(value, int):
        return _sized(b"i", str(value).encode("ascii"))
    if isinstance(value, float):
        return b"d" + struct.pack(">d", math.nan if math.isnan(value) else value)
    if isinstance(value, datetime):
        return _sized(b"T", str(int(value.timestamp())).encode("ascii"))
    if isinstance(value, Decimal):
        return _sized(b"D", format(value, "f").encode("ascii"))
    raise MalformedMessage("a header value has a type no broker carries")


def _sized(tag: bytes, raw: bytes) -> bytes:
    """Return a tag, a length of four bytes, and the bytes."""
    return tag + len(raw).to_bytes(4, "big") + raw


def _utf8(text: str) -> bytes:
    """Return UTF-8, or refuse a lone surrogate."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MalformedMessage("a header has no UTF-8 form") from error
