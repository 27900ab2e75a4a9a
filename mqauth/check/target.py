"""A configuration file as the rules see it: its settings as far as they can be read, and where each key stands.

One table that is refused does not hide the others. ``tomllib`` gives values without their places, so the lines of
keys are found by a scanner. It reads only texts that ``tomllib`` has accepted, and need not refuse anything
(TOML 1.0.0).
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import stat
import tomllib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Final

from mqauth.authority.application import MAX_AGE
from mqauth.check.keystores import FRESH, Reference, Signs, reference_of
from mqauth.config.declaration import collect
from mqauth.config.issuer_settings import IssuerSettings, SourceSettings
from mqauth.config.settings import AuthoritySettings, CheckSettings, FileSettings, ReplaySettings
from mqauth.config.toml_file import RefusedSetting, Table

Path = tuple[str | int, ...]
"""Keys from the top of the file; an element of an array by its number, from 0."""
_FEW: Final = 3
_BLANK: Final = re.compile(r"(?:[ \t\r\n]++|#[^\n]*+)*+")
_KEY: Final = re.compile(r'[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'')
_DOT: Final = re.compile(r"[ \t]*\.[ \t]*")
_EQUALS: Final = re.compile(r"[ \t]*=[ \t]*")
_BETWEEN: Final = re.compile(r"(?:[ \t\r\n,]++|#[^\n]*+)*+")
_STRING: Final = re.compile(
    r'"""(?:[^"\\]++|\\.|"{1,2}(?!"))*+"{3,5}'
    r"|'''(?:[^']++|'{1,2}(?!'))*+'{3,5}"
    r'|"(?:[^"\\\n]++|\\.)*+"'
    r"|'[^'\n]*+'",
    re.DOTALL,
)
_PLAIN: Final = re.compile(r"[^,\]}#\n]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the rules look at.

    Args:
        file: the configuration file.
        now: UTC seconds.
        settings: its tables; one that is absent or refused is ``None``.
        refusals: the settings that were refused.
        present: the names of the tables that stand in the file, refused or not.
    """

    file: FilePath
    now: float
    settings: FileSettings
    refusals: tuple[RefusedSetting, ...]
    present: frozenset[str]

    @property
    def options(self) -> CheckSettings:
        """The settings of ``[check]``."""
        return self.settings.check or CheckSettings()

    @property
    def issuers(self) -> tuple[IssuerSettings, ...]:
        """The issuers that the consumer trusts."""
        return () if self.settings.consumer is None else self.settings.consumer.issuers

    @property
    def authorities(self) -> tuple[AuthoritySettings, ...]:
        """Those who may release dead letters."""
        return () if self.settings.release is None else self.settings.release.authorities

    @property
    def sources(self) -> tuple[SourceSettings, ...]:
        """The sources of all keys that are trusted: of issuers, release authorities, and credentials."""
        authority = self.settings.authority
        return (*self.issuers, *self.authorities, *(() if authority is None else authority.credentials))

    @property
    def signers(self) -> tuple[Signs, ...]:
        """The tables that name keys which sign."""
        producer, authority = self.settings.producer, self.settings.authority
        found = []
        if producer is not None and producer.keys is not None:
            waits = 0 if self.settings.consumer is None else self.settings.consumer.max_queue_age or 0
            found.append(Signs("producer", producer, producer.keys, FRESH, producer.lifetime + waits))
        if authority is not None:
            # What it vouched for lives out by the overlap of its keys, and its set is fresh for a minute.
            found.append(Signs("authority", authority, authority.keys, MAX_AGE, 0))
        return tuple(found)

    @property
    def references(self) -> Iterator[tuple[Signs, Reference]]:
        """The references of all keystores, each with the table that names the keystore."""
        seen = set()
        for signs in self.signers:
            for key in () if signs.ring is None else signs.ring.keys:
                found = None if key.uri is None else reference_of(key.uri)
                if found is not None and (signs.at, *found[1:]) not in seen:
                    seen.add((signs.at, *found[1:]))
                    yield signs, found

    @property
    def audit_files(self) -> tuple[tuple[Path, FilePath], ...]:
        """The audit files, each with where it is named."""
        audit, authority = self.settings.audit, self.settings.authority
        found = [] if audit is None else [(("audit", "file"), audit.file)]
        return (*found, *([] if authority is None else [(("authority", "audit"), authority.audit)]))

    @property
    def replay(self) -> ReplaySettings | None:
        """The consumer's replay store; ``None`` if its table is refused."""
        return ReplaySettings() if "replay" not in self.present else self.settings.replay

    def shown(self, path: FilePath) -> str:
        """Return a path relative to the folder of the configuration file, if it lies within."""
        return str(path.relative_to(self.file.parent) if path.is_relative_to(self.file.parent) else path)


def read(file: FilePath, members: Mapping[str, Any], *, now: float) -> Target:
    """Return the settings of every table that is not refused, and the refusals."""
    values, refusals = collect(FileSettings, Table(file=str(file), members=members))
    return Target(
        file=file,
        now=now,
        settings=FileSettings(**values),
        refusals=tuple(refusals),
        present=frozenset(members),
    )


def others(path: FilePath) -> int:
    """Return what group and others may do with a file or folder, as bits of its mode; 0 if it is missing."""
    status = _status(path)
    return 0 if status is None else stat.S_IMODE(status.st_mode) & 0o077


def strangers(path: FilePath) -> int:
    """Return the bits of ``others``, without those of a group that is only the owner's or that root has chosen."""
    status = _status(path)
    return 0 if status is None else others(path) & (0o007 if is_own_group(status.st_uid, status.st_gid) else 0o077)


def is_own_group(user: int, group: int) -> bool:
    """Tell whether a group has no member but its user, as with ``umask 002``, or the user is root."""
    if user == 0:
        return True
    try:
        name, found = pwd.getpwuid(user).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == name and set(found.gr_mem) <= {name}


def mode(path: FilePath) -> str:
    """Return a file's mode as people write it."""
    status = _status(path)
    return "" if status is None else f"{stat.S_IMODE(status.st_mode):04o}"


def few(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    more = len(names) - _FEW
    return ", ".join(names[:_FEW]) + (f" and {more} more" if more > 0 else "")


def _status(path: FilePath) -> os.stat_result | None:
    # A missing file is no finding here: the configuration's own reader reports it.
    try:
        return path.stat()
    except OSError:
        return None


def lines_of(text: str) -> Mapping[Path, int]:
    """Return the line, from 1, of every table, key and array element of a TOML text.

    Args:
        text: any text that ``tomllib.loads`` accepts.
    """
    scanner = _Scanner(text)
    # Of a text that is nested too deep, or in a newer TOML, the lines that were found stand.
    with contextlib.suppress(RecursionError, ValueError):
        scanner.scan()
    return scanner.found


def nearest(lines: Mapping[Path, int], path: Path) -> int | None:
    """Return the line of a path or, if it is not in the file, of the innermost table around it."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


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
        # A table within may have been noted by its own header before. The table's own header tells more.
        self.found.pop(path, None)
        self._note(path, start)
        return path

    def _inner(self, path: Path, start: int) -> Path:
        """Return a path or, if it is an array of tables, the path of the array's last element so far."""
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
        self._take(_EQUALS)
        self._value(base)

    def _keys(self) -> list[str]:
        """Read a dotted key, and return its parts without their quotes and escapes."""
        self._skip(_BLANK)
        parts = [self._take(_KEY)]
        while self._skip(_DOT):
            parts.append(self._take(_KEY))
        return [next(iter(tomllib.loads(f"{part} = 0"))) for part in parts]

    def _value(self, path: Path) -> None:
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
        """Skip blanks and commas, and tell whether the array or inline table ends here."""
        self._skip(_BETWEEN)
        if not self._text.startswith("]" if opening == "[" else "}", self._at):
            return False
        self._at += 1
        return True

    def _note(self, path: Path, offset: int) -> None:
        self.found.setdefault(path, bisect_left(self._breaks, offset) + 1)

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        found = pattern.match(self._text, self._at)
        self._at = self._at if found is None else found.end()
        return found is not None

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise ValueError("not the TOML that this scanner knows")
        self._at = found.end()
        return found[0]
