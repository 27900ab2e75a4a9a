"""Messages on standard input: bounded, strictly parsed, one a line or one in all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from mqauth.errors import ConfigurationError, MalformedMessage
from mqauth.wire import strict_json as strictjson
from mqauth.wire.json_form import JSON_DEPTH

MAX_INPUT: Final = 16 * 1024 * 1024
"""Bytes a message in JSON, a line of it, or a body may have."""
_BLANK: Final = b" \t\r\n"
_CHUNK: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Text:
    """One JSON text as it came; ``raw`` is ``None`` where it was over ``MAX_INPUT``.

    Args:
        number: its line, from 1.
        raw: the bytes.
    """

    number: int
    raw: bytes | None

    def parse(self) -> Any:
        """Return the JSON value; integers may have 64 bits, as AMQP's have.

        Raises:
            MalformedMessage: the text is too large or not strict JSON.
        """
        if self.raw is None:
            raise MalformedMessage(f"over {MAX_INPUT} bytes")
        try:
            return strictjson.loads(self.raw, depth=JSON_DEPTH, wide=True)
        except strictjson.StrictJSONError as error:
            raise MalformedMessage(str(error)) from error


def read_texts(stream: BinaryIO, *, lines: bool) -> Iterator[Text]:
    """Yield the texts of a stream: each line that is not blank, or the whole as one.

    Args:
        stream: the bytes.
        lines: one message a line.
    """
    if not lines:
        yield Text(1, read_body(stream))
        return
    number = 0
    while line := stream.readline(MAX_INPUT + 1):
        number += 1
        if len(line) > MAX_INPUT and not line.endswith(b"\n"):
            _skip_line(stream)
            yield Text(number, None)
        elif line.strip(_BLANK):
            yield Text(number, line)


def read_body(stream: BinaryIO) -> bytes | None:
    """Return all bytes of a stream, ``None`` where there are more than ``MAX_INPUT``."""
    raw = stream.read(MAX_INPUT + 1)
    return raw if len(raw) <= MAX_INPUT else None


def standard_input() -> BinaryIO:
    """Return standard input as bytes.

    Raises:
        ConfigurationError: it is closed.
    """
    if sys.stdin is None:
        raise ConfigurationError("standard input is closed")
    return sys.stdin.buffer


def _skip_line(stream: BinaryIO) -> None:
    """Read to the end of a line and keep none of it."""
    while (chunk := stream.readline(_CHUNK)) and not chunk.endswith(b"\n"):
        pass
