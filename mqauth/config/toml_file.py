"""One table of a TOML file and where it stands, so that every refusal is located.

A refusal is one line: the file, the table, the key, and what is wrong (``mqauth.toml: [consumer] leeway:
must be 0 to 60, not 90``). The value of a text is not repeated: it might be a secret.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mqauth.errors import ConfigurationError
from mqauth.keystore.disk import files

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_TYPES: Final = {
    bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "an array", dict: "a table",
}  # fmt: skip


class RefusedSetting(ConfigurationError):
    """A setting that is refused, and where it stands.

    Args:
        file: the file's path as the user gave it.
        path: the keys that lead to it from the top of the file; in an array of tables the number too, from 0.
        place: the same as people read it.
        what: what is wrong.
    """

    def __init__(self, *, file: str, path: tuple[str | int, ...], place: str, what: str) -> None:
        super().__init__(f"{file}: {place}: {what}" if place else f"{file}: {what}")
        self.path = path
        self.what = what


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with the place it stands at.

    Args:
        file: the file's path as the user gave it.
        name: the table in brackets, as in the file; empty for the file as a whole.
        members: what tomllib read.
        path: the keys that lead to it from the top of the file.
    """

    file: str
    name: str = ""
    members: Mapping[str, Any]
    path: tuple[str | int, ...] = ()

    def refuse(self, key: str, what: str) -> RefusedSetting:
        """Return the one-line refusal of a key of this table, or of the table itself where the key is empty."""
        place = " ".join(part for part in (self.name, spelt(key) if key else "") if part)
        path = (*self.path, key) if key else self.path
        return RefusedSetting(file=self.file, path=path, place=place, what=what)

    @contextmanager
    def located(self, key: str) -> Iterator[None]:
        """Say of a configuration error within that it is a refusal of this key."""
        try:
            yield
        except ConfigurationError as error:
            raise self.refuse(key, str(error)) from error

    def mistyped(self, key: str, wanted: str, found: Any) -> RefusedSetting:
        """Return the refusal of a value of another type than the one wanted."""
        return self.refuse(key, f"must be {wanted}, not {_TYPES.get(type(found), 'a date or time')}")

    def unknown(self, known: Collection[str]) -> Iterator[RefusedSetting]:
        """Yield the refusal of every key that is not among the known ones, with the one that was meant."""
        for key in self.members:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                yield self.refuse(key, "unknown key" + (f"; did you mean {near[0]}?" if near else ""))

    def inner(self, key: str) -> Table:
        """Return the table that stands within this one.

        Raises:
            RefusedSetting: the value is no table.
        """
        found = self.members[key]
        if not isinstance(found, dict):
            raise self.mistyped(key, "a table", found)
        return Table(file=self.file, name=f"[{self._dotted(key)}]", members=found, path=(*self.path, key))

    def elements(self, key: str) -> Iterator[Table]:
        """Yield the tables of an array of tables that stands within this one.

        Raises:
            RefusedSetting: the value is no array of tables.
        """
        found, name = self.members[key], f"[[{self._dotted(key)}]]"
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise self.mistyped(key, f"an array of tables {name}", found)
        for number, item in enumerate(found):
            path = (*self.path, key, number)
            yield Table(file=self.file, name=f"{name} #{number + 1}", members=item, path=path)

    def _dotted(self, key: str) -> str:
        """Return the dotted name of what stands within this table."""
        prefix = self.name.partition("]")[0].lstrip("[")
        return f"{prefix}.{spelt(key)}" if prefix else spelt(key)


def spelt(key: str) -> str:
    """Return a key as TOML spells it, quoted where it must be."""
    return key if _BARE.fullmatch(key) else json.dumps(key)


_MAX_FILE: Final = 1024 * 1024
_MAX_SECRET_FILE: Final = 64 * 1024
_MAX_PASSPHRASE: Final = 1023


def read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of a TOML file and its tables.

    Raises:
        ConfigurationError: it cannot be read, is over 1 MiB, or is no TOML; a syntax error names its line.
    """
    raw = files.read_bounded(path, _MAX_FILE)
    try:
        text = raw.decode("utf-8")
        return text, tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}: not UTF-8 (at line {line})") from error
    except RecursionError as error:
        raise ConfigurationError(f"{path}: nested too deep") from error
    except ValueError as error:
        last = raw.rstrip(b"\n").count(b"\n") + 1
        what = str(error).replace("(at end of document)", f"(at line {last}, the end)")
        raise ConfigurationError(f"{path}: no TOML: {what}") from error


def read_passphrase(*, env: str | None = None, file: Path | None = None) -> bytes | None:
    """Return the passphrase an environment variable or a file holds, ``None`` where neither is named.

    Args:
        env: name of the variable.
        file: the file; one newline at its end does not count.

    Raises:
        ConfigurationError: the variable is not set, the file cannot be read, or it is empty or too long.
    """
    if env is not None:
        name, raw = f"the variable {env}", os.environb.get(os.fsencode(env))
        if raw is None:
            raise ConfigurationError(f"{name} is not set")
    elif file is not None:
        name = str(file)
        raw = files.read_bounded(file, _MAX_SECRET_FILE).removesuffix(b"\n").removesuffix(b"\r")
    else:
        return None
    if not 1 <= len(raw) <= _MAX_PASSPHRASE:
        raise ConfigurationError(f"{name}: a passphrase has 1 to {_MAX_PASSPHRASE} bytes")
    return raw
