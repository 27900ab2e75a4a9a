"""A TOML file: its tables with the place each one stands at, and the secrets that it refers to.

Every refusal of a setting is one line with the file, the table, the key, and what is wrong, such as
``mqauth.toml: [consumer] leeway: must be 0 to 60, not 90``. The text of a value is never repeated, because it
might be a secret.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from mqauth.audit import disk
from mqauth.errors import ConfigurationError, refusing, require

Place = tuple[str | int, ...]
"""Keys from the top of a file; an element of an array by its number, from 0."""
_MAX_PASSPHRASE: Final = 1023
_PLACEHOLDER: Final = re.compile(
    r"\$\$(?=\{)|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})?"
)
_TYPES: Final = {
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "an array",
    dict: "a table",
}


class RefusedSetting(ConfigurationError):
    """The refusal of one setting.

    Args:
        file: the path of the file, as the user gave it.
        path: the keys that lead from the top of the file to the setting. An element of an array of tables has
            its number among them, counted from 0.
        place: the same path in the form in which people read it.
        what: what is wrong.
    """

    others: tuple[RefusedSetting, ...] = ()
    """What else the reader found in the same pass; the text of the error does not name it."""

    def __init__(self, *, file: str, path: Place, place: str, what: str) -> None:
        super().__init__(f"{file}: {place}: {what}" if place else f"{file}: {what}")
        self.path = path
        self.what = what


@contextmanager
def collecting(refusals: list[RefusedSetting]) -> Iterator[None]:
    """Add every refusal that is raised within the block to a list, and go on after the block."""
    try:
        yield
    except RefusedSetting as refused:
        refusals += [refused, *refused.others]


def raise_first(refusals: list[RefusedSetting]) -> None:
    """Raise the first refusal of a list, if there is one; the rest become its ``others``.

    Raises:
        RefusedSetting: the list is not empty.
    """
    if refusals:
        first, *others = refusals
        first.others = tuple(others)
        raise first


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of a TOML file, and where it stands.

    Args:
        file: the path of the file, as the user gave it.
        name: the table in brackets, as the file has it; empty for the file as a whole.
        members: the keys and values that tomllib read.
        path: the keys that lead from the top of the file to the table.
    """

    file: str
    name: str = ""
    members: Mapping[str, Any]
    path: Place = ()

    def refuse(self, key: str, what: str) -> RefusedSetting:
        """Return the refusal of a key of this table, or of the table itself where the key is empty."""
        where = " ".join(part for part in (self.name, spelt(key) if key else "") if part)
        return RefusedSetting(
            file=self.file,
            path=(*self.path, key) if key else self.path,
            place=where,
            what=what,
        )

    def require(self, condition: object, key: str, what: str) -> None:
        """Refuse a key unless a condition holds.

        Raises:
            RefusedSetting: it does not hold.
        """
        require(condition, what, partial(self.refuse, key))

    def located(self, key: str) -> AbstractContextManager[None]:
        """Turn a configuration error that is raised within the block into a refusal of a key."""
        return refusing(ConfigurationError, str, partial(self.refuse, key))

    def require_type(
        self, condition: object, key: str, expected: str, value: Any
    ) -> None:
        """Refuse a value unless its type is the expected one.

        Raises:
            RefusedSetting: it is another one.
        """
        self.require(
            condition,
            key,
            f"must be {expected}, not {_TYPES.get(type(value), 'a date or time')}",
        )

    def inner(self, key: str) -> Table:
        """Return the table under a key of this table.

        Raises:
            RefusedSetting: the value is not a table.
        """
        value = self.members[key]
        self.require_type(isinstance(value, dict), key, "a table", value)
        return Table(
            file=self.file,
            name=f"[{self._dotted(key)}]",
            members=value,
            path=(*self.path, key),
        )

    def elements(self, key: str) -> Iterator[Table]:
        """Yield the tables of the array of tables under a key of this table.

        Raises:
            RefusedSetting: the value is not an array of tables.
        """
        value, name = self.members[key], f"[[{self._dotted(key)}]]"
        self.require_type(
            isinstance(value, list) and all(isinstance(item, dict) for item in value),
            key,
            f"an array of tables {name}",
            value,
        )
        for number, item in enumerate(value):
            yield Table(
                file=self.file,
                name=f"{name} #{number + 1}",
                members=item,
                path=(*self.path, key, number),
            )

    def _dotted(self, key: str) -> str:
        prefix = self.name.partition("]")[0].lstrip("[")
        return f"{prefix}.{spelt(key)}" if prefix else spelt(key)


def spelt(key: str) -> str:
    """Return a key as TOML spells it: in quotation marks unless it is a bare key."""
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else json.dumps(key)


def read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of a TOML file, and the tables in it.

    Variables of the environment stand in place of ``${NAME}`` and ``${NAME:-default}`` in the texts of values.

    Args:
        path: the file, at most 1 MiB.

    Raises:
        ConfigurationError: the file cannot be read, is too large, or is not TOML. A syntax error names its line; a
            variable that is not set is named.
    """
    raw = disk.read_bounded(path, 1024 * 1024)
    try:
        text = raw.decode("utf-8")
        members = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}: not UTF-8 (at line {line})") from error
    # tomllib descends into nested arrays by recursion, without a limit of its own.
    except RecursionError as error:
        raise ConfigurationError(f"{path}: nested too deep") from error
    # TOMLDecodeError is a ValueError, and so is an integer with too many digits for int().
    except ValueError as error:
        last = raw.rstrip(b"\n").count(b"\n") + 1
        raise ConfigurationError(
            f"{path}: not TOML: {error}".replace(
                "(at end of document)", f"(at line {last}, the end)"
            )
        ) from error
    return text, _filled(members, Table(file=str(path), members=members))


def walk(value: Any, base: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield all keys and elements within a value, each with where it stands."""
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in inside:
        yield (*base, key), inner
        yield from walk(inner, (*base, key))


def placeholders(members: Mapping[str, Any]) -> list[tuple[Place, str]]:
    """Return where each ``${NAME}`` stands in the texts of a file, and the name."""
    texts = [(at, text) for at, text in walk(members) if isinstance(text, str)]
    return [
        (at, match[1])
        for at, text in texts
        for match in _PLACEHOLDER.finditer(text)
        if match[1]
    ]


def _filled(value: Any, table: Table, key: str = "") -> Any:
    """Return a value with the environment's variables in place of ``${NAME}`` in its texts, never in keys."""
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda match: _variable(match, table, key), value)
    if isinstance(value, list):
        return [_filled(each, table, key) for each in value]
    if isinstance(value, dict):
        inner = (
            table.inner(key)
            if key and key in table.members and table.members[key] is value
            else table
        )
        return {name: _filled(each, inner, name) for name, each in value.items()}
    return value


def _variable(placeholder: re.Match[str], table: Table, key: str) -> str:
    name, default = placeholder[1], placeholder[2]
    if placeholder[0] == "$$":
        return "$"
    table.require(
        name,
        key,
        "a placeholder is ${NAME} or ${NAME:-default}; a ${ that is none is written $${",
    )
    # An empty variable counts as one that is missing, where there is a default.
    value = os.environ.get(name) if default is None else os.environ.get(name) or default
    if value is None:
        raise table.refuse(
            key, f"the variable {name} is not set, and ${{{name}}} has no default"
        )
    return value


def read_passphrase(*, env: str | None = None, file: Path | None = None) -> bytes | None:
    """Return the passphrase in an environment variable or a file, ``None`` where neither is named.

    Args:
        env: the name of the variable.
        file: the file; one newline at its end is not part of the passphrase.

    Raises:
        ConfigurationError: the variable is not set, the file cannot be read, or the passphrase is empty or longer
            than 1,023 bytes, the most that OpenSSL takes.
    """
    if env is not None:
        name, raw = f"the variable {env}", os.environb.get(os.fsencode(env))
        if raw is None:
            raise ConfigurationError(f"{name} is not set")
    elif file is not None:
        name = str(file)
        raw = disk.read_bounded(file, 64 * 1024).removesuffix(b"\n").removesuffix(b"\r")
    else:
        return None
    require(
        1 <= len(raw) <= _MAX_PASSPHRASE,
        f"{name}: a passphrase has 1 to {_MAX_PASSPHRASE} bytes",
    )
    return raw


def lines_of(text: str) -> Mapping[Place, int]:
    """Return the line, from 1, of every table and key of a TOML text; elements have the line of their key.

    It is read by tomllib statement by statement. Of a text that is nested too deep the lines found so far stand.

    Args:
        text: any text that ``tomllib.loads`` accepts.
    """
    lines: dict[Place, int] = {}
    elements: dict[Place, int] = {}
    base: Place = ()
    statement, start = "", 1
    for number, line in enumerate(text.split("\n"), 1):
        statement += f"\n{line}" if statement else line
        try:
            value = tomllib.loads(statement)
        except (RecursionError, ValueError):
            # It goes on in the next line.
            continue
        if statement.lstrip().startswith("["):
            # A header: each table on the way, of an array of tables its last element so far.
            base = ()
            while value:
                ((key, value),) = value.items()
                base = (*base, key)
                # A table may have been noted with one within it before; its own header tells more.
                lines[base] = lines.get(base, number) if value else number
                if isinstance(value, list):
                    value, elements[base] = {}, elements.get(base, 0) + 1
                if base in elements:
                    base = (*base, elements[base] - 1)
                    lines.setdefault(base, number)
        for at, _ in walk(value, base):
            lines.setdefault(at, start)
        statement, start = "", number + 1
    return lines


def nearest(lines: Mapping[Place, int], place: Place) -> int | None:
    """Return the line of a key or, if it is not in the file, of the innermost table around it."""
    around = (place[:length] for length in range(len(place), 0, -1))
    return next((lines[each] for each in around if each in lines), None)
