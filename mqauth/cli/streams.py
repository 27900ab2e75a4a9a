"""Standard input and output of the command: bounded JSON in; JSON lines or one line of text out."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from mqauth.errors import MalformedMessage, require
from mqauth.wire import strict_json

MAX_INPUT: Final = 16 * 1024 * 1024
"""Most bytes of a message in JSON, of a line of it, or of a body."""
_BLANK: Final = b" \t\r\n"
_CHUNK: Final = 64 * 1024
_UNPRINTABLE = re.compile(
    r"[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


@dataclass(frozen=True, slots=True)
class Text:
    """One JSON text of standard input, not parsed yet.

    Args:
        number: its line, from 1.
        raw: its bytes; ``None`` where there were more than ``MAX_INPUT``.
    """

    number: int
    raw: bytes | None

    def parse(self) -> Any:
        """Return the JSON value. Integers may have 64 bits, as those of AMQP have.

        Raises:
            MalformedMessage: the text is too large or not strict JSON.
        """
        from mqauth.wire.json_form import JSON_DEPTH

        if self.raw is None:
            raise MalformedMessage(f"over {MAX_INPUT} bytes")
        try:
            return strict_json.loads(self.raw, depth=JSON_DEPTH, wide=True)
        except strict_json.StrictJSONError as error:
            raise MalformedMessage(str(error)) from error


def standard_input() -> BinaryIO:
    """Return standard input as a stream of bytes.

    Raises:
        ConfigurationError: it is closed.
    """
    require(sys.stdin is not None, "standard input is closed")
    return sys.stdin.buffer


def read_texts(stream: BinaryIO, *, lines: bool) -> Iterator[Text]:
    """Yield the JSON texts of a stream.

    Args:
        stream: the bytes.
        lines: whether each line that is not blank is a text; else the whole stream is one.
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


def _skip_line(stream: BinaryIO) -> None:
    # In pieces: a line without an end must not fill the memory.
    while (chunk := stream.readline(_CHUNK)) and not chunk.endswith(b"\n"):
        pass


def read_body(stream: BinaryIO) -> bytes | None:
    """Return all bytes of a stream, ``None`` where there are more than ``MAX_INPUT``."""
    raw = stream.read(MAX_INPUT + 1)
    return raw if len(raw) <= MAX_INPUT else None


def print_json(value: Any) -> None:
    """Print one compact JSON line and flush it, so that a program at the other end of a pipe can go on.

    Characters that a terminal or a viewer might act on are escaped. To a program the text stays the same.
    """
    raw = strict_json.dumps(value)
    if not raw.isascii() or b"\x7f" in raw:
        raw = _UNPRINTABLE.sub(_escape, raw.decode("utf-8")).encode("utf-8")
    sys.stdout.buffer.write(raw + b"\n")
    sys.stdout.buffer.flush()


def _escape(match: re.Match[str]) -> str:
    return json.dumps(match.group())[1:-1].replace("\x7f", "\\u007f")


def print_error(text: str) -> None:
    """Print one line on standard error, whatever characters the text has."""
    print(f"mqauth: {one_line(text)}", file=sys.stderr)


def one_line(text: str) -> str:
    """Return text with line breaks as spaces and every other character that does not print escaped."""
    joined = " ".join(text.split())
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in joined)


def abandon_output() -> None:
    """Point standard output to the null device, so that the interpreter does not fail on it again at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    # A test or an embedding program may have put an object without a descriptor in its place.
    with contextlib.suppress(io.UnsupportedOperation):
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@contextlib.contextmanager
def progress_bar(what: str, total: int | None, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Give a function that shows how far the work is, as a bar on standard error, on a terminal only.

    Args:
        what: the work, in a word or two.
        total: how much there is, ``None`` where that is not known.
        quiet: show nothing.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.update(task, completed=count)
