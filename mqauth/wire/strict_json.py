"""JSON, read so strictly that two readers cannot disagree about what it says (RFC 8259, RFC 7493).

Refused are bytes that are not UTF-8, duplicate names, NaN and infinities, integers beyond +-2^53 (or, if
asked for, beyond 64 bits with a sign), numbers that overflow, lone surrogates, and nesting deeper than asked for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Final

MAX_INTEGER: Final = 2**53


class StrictJSONError(ValueError):
    """The text is not JSON, or not JSON that every reader would understand in the same way."""


def loads(raw: bytes, *, depth: int, wide: bool = False) -> Any:
    """Parse one JSON text.

    Args:
        raw: the bytes, UTF-8.
        depth: how many containers may stand within each other; the outermost counts as 1.
        wide: integers may have 64 bits with their sign, as AMQP has them.

    Raises:
        StrictJSONError: the text breaks one of the rules of this module.
    """
    decoder = _WIDE_DECODER if wide else _DECODER
    try:
        text = raw.decode("utf-8")
        value, end = decoder.raw_decode(text) if text[:1] == "{" else (None, -1)
        # the fast way is for one object without white space around it; the other way tells what else may be right
        if end != len(text):
            value = decoder.decode(text)
    except StrictJSONError:
        raise
    except (ValueError, RecursionError) as error:
        raise StrictJSONError("not UTF-8 JSON") from error
    escapes = b"\\u" in raw
    # with fewer brackets nothing can be nested too deep, and without escapes there are no lone surrogates
    if escapes or raw.count(b"{") + raw.count(b"[") > depth:
        _bound(value, depth, escapes)
    return value


def dumps(value: Any) -> bytes:
    """Return compact UTF-8 JSON; NaN and infinities raise ``ValueError``."""
    return _ENCODER.encode(value).encode("utf-8")


def _bound(value: Any, depth: int, escapes: bool) -> None:
    """Refuse containers that are nested too deep and, if the text has escapes, lone surrogates."""
    if isinstance(value, str):
        if escapes and any("\ud800" <= character <= "\udfff" for character in value):
            raise StrictJSONError("a lone surrogate")
        return
    if not isinstance(value, dict | list):
        return
    if depth == 0:
        raise StrictJSONError("nested too deep")
    for name in value if escapes and isinstance(value, dict) else ():
        _bound(name, depth, escapes)
    for item in value.values() if isinstance(value, dict) else value:
        _bound(item, depth - 1, escapes)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise StrictJSONError("a duplicate name")
    return result


def _integers(least: int, beyond: int, bound: str) -> Callable[[str], int]:
    digits = len(str(-beyond))

    def read(text: str) -> int:
        # the length first: Python takes its time to read a number of a million digits
        if len(text) > digits or not least <= int(text) < beyond:
            raise StrictJSONError(f"an integer beyond {bound}")
        return int(text)

    return read


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise StrictJSONError("a number that is not finite")
    return number


def _decoder(integer: Callable[[str], int]) -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=_unique,
        parse_int=integer,
        parse_float=_float,
        parse_constant=_float,
    )


_DECODER: Final = _decoder(_integers(-MAX_INTEGER, MAX_INTEGER + 1, "2^53"))
_WIDE_DECODER: Final = _decoder(_integers(-(2**63), 2**63, "64 bits"))
_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
)
