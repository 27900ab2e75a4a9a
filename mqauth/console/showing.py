"""What an attacker wrote, made fit to look at: bounded, and with nothing invisible or turning the text around.

Escaping for HTML is the templates' work, for every value, without exception.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mqauth.audit.record import iso_time
from mqauth.letters.release import RELEASE_HEADER
from mqauth.review import Reading
from mqauth.wire import json_form as jsonform
from mqauth.wire.message import TOKEN_HEADER, Message

MAX_BODY: Final = 64 * 1024
MAX_HEX: Final = 8 * 1024
MAX_VALUE: Final = 1024
MAX_HEADERS: Final = 200
_ROW: Final = 16
_SECRET: Final = frozenset((TOKEN_HEADER, RELEASE_HEADER))
_HIDDEN: Final = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


@dataclass(frozen=True, slots=True)
class Body:
    """A body in one of its forms; ``note`` says what of it is not shown."""

    form: str
    text: str
    size: int
    note: str = ""


def visible(text: str, *, lines: bool = False) -> str:
    """Return text with what cannot be seen written out.

    Args:
        text: anything.
        lines: whether line ends and tabs stay.
    """
    kept = "\n\t" if lines else ""
    return "".join(
        char if char in kept or unicodedata.category(char) not in _HIDDEN else _written(char) for char in text
    )


def body(raw: bytes | None, form: str) -> Body:
    """Return a body as ``text``, ``json`` or ``hex``.

    Args:
        raw: ``None`` is Kafka's tombstone.
        form: anything else is text.
    """
    if raw is None:
        return Body("text", "", 0, "There is no body at all (a tombstone).")
    if form == "hex":
        return Body("hex", "\n".join(_hex(raw[:MAX_HEX])), len(raw), _cut(len(raw), MAX_HEX))
    note = _cut(len(raw), MAX_BODY)
    if form == "json":
        if note:
            return Body("json", "", len(raw), "Too large to be shown as JSON.")
        try:
            text = _indented(json.loads(raw))
        except (ValueError, RecursionError):
            return Body("json", "", len(raw), "This is not JSON.")
        note = f"The first {MAX_BODY} characters are shown." if len(text) > MAX_BODY else ""
        return Body("json", visible(text[:MAX_BODY], lines=True), len(raw), note)
    return Body("text", visible(raw[:MAX_BODY].decode("utf-8", "backslashreplace"), lines=True), len(raw), note)


def _indented(value: Any) -> str:
    """Return a value as indented JSON, up to a little more than is shown: lists in lists indent to megabytes."""
    parts, size = list[str](), 0
    for part in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(value):
        parts.append(part)
        size += len(part)
        if size > MAX_BODY:
            break
    return "".join(parts)


def headers(message: Message) -> list[tuple[str, str, str]]:
    """Return name, value and type of each header; of tokens only the length, for a token can be replayed."""
    found = []
    for name, value in message.headers[:MAX_HEADERS]:
        if name.lower() in _SECRET:
            size = len(value) if isinstance(value, str | bytes) else 0
            found.append((visible(name[:MAX_VALUE]), f"not shown, {size} bytes", "token"))
        else:
            found.append((visible(name[:MAX_VALUE]), _value(value), type(value).__name__))
    return found


def properties(message: Message) -> list[tuple[str, str]]:
    """Return the properties, and the record key."""
    found = [(visible(name), visible(str(value)[:MAX_VALUE])) for name, value in message.properties.items()]
    if message.key is not None:
        found.insert(0, ("record key", visible(message.key[:MAX_VALUE].decode("utf-8", "backslashreplace"))))
    return found


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
    return [(visible(name[:MAX_VALUE]), visible(text[:MAX_VALUE])) for name, text in found]


def moment(seconds: float | None) -> str:
    """Return a time for people, empty where there is none or it is beyond the calendar."""
    try:
        return "" if seconds is None else iso_time(seconds)[:19].replace("T", " ") + " UTC"
    except (OverflowError, ValueError, OSError):
        return ""


def _value(value: Any) -> str:
    """Return a header's value as text."""
    if isinstance(value, bytes):
        return visible(value[:MAX_VALUE].decode("utf-8", "backslashreplace"))
    if isinstance(value, tuple | Mapping):
        return visible(json.dumps(jsonform.value_to_form(value))[:MAX_VALUE])
    return visible(str(value)[:MAX_VALUE])


def _hex(raw: bytes) -> Iterator[str]:
    """Yield rows of offset, bytes and letters."""
    for start in range(0, len(raw), _ROW):
        row = raw[start : start + _ROW]
        letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"{start:08x}  {row.hex(' '):<47}  {letters}"


def _written(char: str) -> str:
    """Return one character's escape."""
    code = ord(char)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _cut(size: int, limit: int) -> str:
    """Return what is said of a text that is cut."""
    return f"The first {limit} of {size} bytes are shown." if size > limit else ""
