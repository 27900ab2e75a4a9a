"""On which line of a TOML file a key stands: ``tomllib`` gives the values without their places.

Reads only what ``tomllib`` has accepted, so it need not refuse anything (TOML 1.0.0).
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from bisect import bisect_left
from collections.abc import Mapping
from typing import Final

Path = tuple[str | int, ...]
"""Keys from the top of the file; an element of an array by its number, from 0."""

_BLANK: Final = re.compile(r"(?:[ \t\r\n]++|#[^\n]*+)*+")
_KEY: Final = re.compile(r'[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'')
_DOT: Final = re.compile(r"[ \t]*\.[ \t]*")
_STRING: Final = re.compile(
    r'"""(?:[^"\\]++|\\.|"{1,2}(?!"))*+"{3,5}'
    r"|'''(?:[^']++|'{1,2}(?!'))*+'{3,5}"
    r'|"(?:[^"\\\n]++|\\.)*+"'
    r"|'[^'\n]*+'",
    re.DOTALL,
)
_PLAIN: Final = re.compile(r"[^,\]}#\n]*")


def lines_of(text: str) -> Mapping[Path, int]:
    """Return the line, from 1, of every table, key and array element of a TOML text.

    Args:
        text: what ``tomllib.loads`` accepts.
    """
    scanner = _Scanner(text)
    with contextlib.suppress(RecursionError, _Unreadable):  # deep, or newer TOML: what was found stands
        scanner.scan()
    return scanner.found


def nearest(lines: Mapping[Path, int], path: Path) -> int | None:
    """Return the line of a path or, where it is absent from the file, of the innermost table around it."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


class _Unreadable(Exception):
    """A text that is not the TOML we know."""


class _Scanner:
    """Walks through a text once and notes where things stand."""

    def __init__(self, text: str) -> None:
        self.found: dict[Path, int] = {}
        self._text = text
        self._at = 0
        self._breaks = [found.start() for found in re.finditer("\n", text)]
        self._counts: dict[Path, int] = {}

    def scan(self) -> None:
        """Read the whole text."""
        base: Path = ()
        while not self._ends():
            if self._text.startswith("[[", self._at):
                base = self._header(2)
            elif self._text.startswith("[", self._at):
                base = self._header(1)
            else:
                self._pair(base)

    def _ends(self) -> bool:
        """Skip blanks and comments, and tell whether the text ends there."""
        self._skip(_BLANK)
        return self._at == len(self._text)

    def _header(self, brackets: int) -> Path:
        """Read ``[a.b]`` or ``[[a.b]]`` and return the path of its table."""
        start = self._at
        self._at += brackets
        *parents, last = self._keys()
        self._skip(_BLANK)
        self._at += brackets
        path: Path = ()
        for part in parents:
            path = self._inner((*path, part), start)
        path = (*path, last)
        if brackets == 2:
            self._note(path, start)
            self._counts[path] = self._counts.get(path, 0) + 1
            return self._inner(path, start)
        self.found.pop(path, None)  # a header of its own tells more than one of a table within
        self._note(path, start)
        return path

    def _inner(self, path: Path, start: int) -> Path:
        """Return a path, and where it is an array of tables, that of the array's last element so far."""
        self._note(path, start)
        if path in self._counts:
            path = (*path, self._counts[path] - 1)
            self._note(path, start)
        return path

    def _pair(self, base: Path) -> None:
        """Read ``key = value``."""
        start = self._at
        for part in self._keys():
            base = (*base, part)
            self._note(base, start)
        self._skip(_BLANK)
        self._at += 1  # the equals sign
        self._skip(_BLANK)
        self._value(base)

    def _keys(self) -> list[str]:
        """Read a dotted key."""
        self._skip(_BLANK)
        parts = [_plain_key(self._take(_KEY))]
        while self._skip(_DOT):
            parts.append(_plain_key(self._take(_KEY)))
        return parts

    def _value(self, path: Path) -> None:
        """Read a value."""
        opening = self._text[self._at]
        if opening in "[{":
            self._at += 1
            number = 0
            while not self._closes(opening):
                if opening == "{":
                    self._pair(path)
                else:
                    self._note((*path, number), self._at)
                    self._value((*path, number))
                number += 1
        else:
            self._take(_STRING if opening in "\"'" else _PLAIN)

    def _closes(self, opening: str) -> bool:
        """Skip blanks and commas, and tell whether an array or inline table ends there."""
        self._skip(_BLANK)
        while self._text.startswith(",", self._at):
            self._at += 1
            self._skip(_BLANK)
        if not self._text.startswith("]" if opening == "[" else "}", self._at):
            return False
        self._at += 1
        return True

    def _note(self, path: Path, offset: int) -> None:
        """Note where a path was first met."""
        self.found.setdefault(path, bisect_left(self._breaks, offset) + 1)

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        """Go past what matches, if anything does."""
        found = pattern.match(self._text, self._at)
        self._at = self._at if found is None else found.end()
        return found is not None

    def _take(self, pattern: re.Pattern[str]) -> str:
        """Go past what must be there and return it."""
        found = pattern.match(self._text, self._at)
        if found is None:
            raise _Unreadable
        self._at = found.end()
        return found[0]


def _plain_key(written: str) -> str:
    """Return a key without its quotes and escapes."""
    if written[0] == '"':
        return str(tomllib.loads(f"key = {written}")["key"])
    return written[1:-1] if written[0] == "'" else written
