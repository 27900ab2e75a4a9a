"""What the command prints: JSON lines on standard output, one line of text on standard error."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from typing import Any

from mqauth.wire import strict_json as strictjson

_UNPRINTABLE = re.compile(
    r"[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def print_json(value: Any) -> None:
    """Print one compact JSON line, at once, so that a program at the other end of a pipe can go on.

    What a terminal or viewer might act on is escaped: to a program it is the same text.
    """
    raw = strictjson.dumps(value)
    if not raw.isascii() or b"\x7f" in raw:
        raw = _UNPRINTABLE.sub(_escape, raw.decode("utf-8")).encode("utf-8")
    sys.stdout.buffer.write(raw + b"\n")
    sys.stdout.buffer.flush()


def print_error(text: str) -> None:
    """Print one line on standard error, whatever the text holds."""
    print(f"mqauth: {one_line(text)}", file=sys.stderr)


def one_line(text: str) -> str:
    """Return text with line breaks as spaces and everything else that does not print escaped."""
    joined = " ".join(text.split())
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in joined)


def _escape(match: re.Match[str]) -> str:
    """Return a character as JSON escapes it."""
    return json.dumps(match.group())[1:-1].replace("\x7f", "\\u007f")


def abandon_output() -> None:
    """Point standard output nowhere: it cannot be written, and the interpreter would say so on exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(io.UnsupportedOperation):  # somebody's own object in its place
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
