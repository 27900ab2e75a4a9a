"""What the command prints: JSON lines on standard output, one line of text on standard error."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

from mqauth import strictjson


def print_json(value: Any) -> None:
    """Print one compact JSON line, at once, so that a program at the other end of a pipe can go on."""
    sys.stdout.buffer.write(strictjson.dumps(value) + b"\n")
    sys.stdout.buffer.flush()


def print_error(text: str) -> None:
    """Print one line on standard error, whatever the text holds."""
    print(f"mqauth: {one_line(text)}", file=sys.stderr)


def one_line(text: str) -> str:
    """Return text with line breaks as spaces and everything else that does not print escaped."""
    joined = " ".join(text.split())
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in joined)


def abandon_output() -> None:
    """Point standard output nowhere: it cannot be written, and the interpreter would say so on exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(io.UnsupportedOperation):  # somebody's own object in its place
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
