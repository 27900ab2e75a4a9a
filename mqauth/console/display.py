"""Makes hostile text fit to look at: bounded, with nothing invisible, and nothing that turns text around.

The templates escape every value for HTML. Nothing here does.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mqauth.letters.release import RELEASE_HEADER
from mqauth.review import Reading, time_text
from mqauth.wire import json_form
from mqauth.wire.message import TOKEN_HEADER, Message

MAX_BODY: Final = 64 * 1024
MAX_HEX: Final = 8 * 1024
MAX_VALUE: Final = 1024
MAX_HEADERS: Final = 200
_ROW: Final = 16
_SECRET: Final = frozenset((TOKEN_HEADER, RELEASE_HEADER))
_HIDDEN: Final = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
"""Unicode categories of characters that cannot be seen."""


@dataclass(frozen=True, slots=True)
class Body:
    """A body in one of its forms; ``note`` says what of it is not shown, ``size`` is in bytes."""

    form: str
    text: str
    size: int
    note: str = ""


def visible(text: str, *, lines: bool = False) -> str:
    """Return text in which characters that cannot be seen are escaped.

    Args:
        text: anything.
        lines: whether line ends and tabs stay.
    """
    kept = "\n\t" if lines else ""
    return "".join(
        char if char in kept or unicodedata.category(char) not in _HIDDEN else _escape(char) for char in text
    )


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _short(raw: str | bytes) -> str:
    text = raw if isinstance(raw, str) else raw[:MAX_VALUE].decode("utf-8", "backslashreplace")
    return visible(text[:MAX_VALUE])


def body(raw: bytes | None, form: str) -> Body:
    """Return a body as ``text``, ``json`` or ``hex``.

    Args:
        raw: ``None`` for a tombstone of Kafka.
        form: anything else means text.
    """
    if raw is None:
        return Body("text", "", 0, "There is no body at all (a tombstone).")
    if form == "hex":
        return Body("hex", "\n".join(_hex(raw[:MAX_HEX])), len(raw), _cut(len(raw), MAX_HEX))
    note = _cut(len(raw), MAX_BODY)
    if form == "json":
        return Body("json", "", len(raw), "Too large to be shown as JSON.") if note else _json_body(raw)
    return Body("text", visible(raw[:MAX_BODY].decode("utf-8", "backslashreplace"), lines=True), len(raw), note)


def _json_body(raw: bytes) -> Body:
    try:
        text = _indented(json.loads(raw))
    except (ValueError, RecursionError):
        return Body("json", "", len(raw), "This is not JSON.")
    note = f"The first {MAX_BODY} characters are shown." if len(text) > MAX_BODY else ""
    return Body("json", visible(text[:MAX_BODY], lines=True), len(raw), note)


def _indented(value: Any) -> str:
    """Return the beginning of a value as indented JSON, a little more than is shown."""
    # The whole could be a thousand times as long as the body: 900 lists in each other indent to 57 MB.
    parts, size = list[str](), 0
    for part in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(value):
        parts.append(part)
        size += len(part)
        if size > MAX_BODY:
            break
    return "".join(parts)


def _hex(raw: bytes) -> Iterator[str]:
    for start in range(0, len(raw), _ROW):
        row = raw[start : start + _ROW]
        letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"{start:08x}  {row.hex(' '):<47}  {letters}"


def _cut(size: int, limit: int) -> str:
    return f"The first {limit} of {size} bytes are shown." if size > limit else ""


def headers(message: Message) -> list[tuple[str, str, str]]:
    """Return name, value and type of each header; of a token the size alone, since whoever sees it can send it."""
    found = []
    for name, value in message.headers[:MAX_HEADERS]:
        if name.lower() in _SECRET:
            size = len(value) if isinstance(value, str | bytes) else 0
            found.append((_short(name), f"not shown, {size} bytes", "token"))
        else:
            found.append((_short(name), _value(value), type(value).__name__))
    return found


def _value(value: Any) -> str:
    if isinstance(value, tuple | Mapping):
        return _short(json.dumps(json_form.value_to_form(value)))
    return _short(value if isinstance(value, bytes) else str(value))


def properties(message: Message) -> list[tuple[str, str]]:
    """Return the record key and the properties."""
    found = [(visible(name), _short(str(value))) for name, value in message.properties.items()]
    return found if message.key is None else [("record key", _short(message.key)), *found]


def claims(reading: Reading) -> list[tuple[str, str]]:
    """Return what the token claims, one line a claim."""
    if reading.claims is None:
        return []
    found = [("kid", reading.kid or ""), ("alg", reading.alg or "")]
    for name, value in reading.claims.as_dict().items():
        if name in ("iat", "exp", "nbf") and isinstance(value, int):
            found.append((name, f"{value} ({moment(float(value))})"))
        else:
            found.append((name, value if isinstance(value, str) else json.dumps(value)))
    return [(_short(name), _short(text)) for name, text in found]


def moment(seconds: float | None) -> str:
    """Return a time for people; empty where there is none."""
    text = time_text(seconds)
    return f"{text[:19].replace('T', ' ')} UTC" if text else ""
