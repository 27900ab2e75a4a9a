"""One table of a TOML file, read strictly: every key known, every value of its type, every refusal located.

A refusal is one line: the file, the table, the key, and what is wrong (``mqauth.toml: [consumer] leeway:
must be 0 to 60, not 90``). Values are not repeated where they are text: one might be a secret.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from mqauth.claims import MAX_NAME, is_name
from mqauth.errors import ConfigurationError

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_URL = re.compile(r"[\x21-\x7e]+")
_KINDS: Final = {
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
        name: the table in brackets, as in the file.
        members: what tomllib read.
        known: the keys that may stand here; ``None`` where keys are data.
        path: the keys that lead to it from the top of the file.

    Raises:
        ConfigurationError: a key is not known.
    """

    file: str
    name: str
    members: Mapping[str, Any]
    known: tuple[str, ...] | None = None
    path: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        for key in self.members if self.known is not None else ():
            if key not in (self.known or ()):
                near = difflib.get_close_matches(key, self.known or (), 1)
                raise self.refuse(key, "unknown key" + (f"; did you mean {near[0]}?" if near else ""))

    def refuse(self, key: str, what: str) -> RefusedSetting:
        """Return the one-line refusal of a key of this table."""
        place = " ".join(part for part in (self.name, spelt(key) if key else "") if part)
        path = (*self.path, key) if key else self.path
        return RefusedSetting(file=self.file, path=path, place=place, what=what)

    def name_of(self, key: str) -> str:
        """Return a required name: text of 1 to 256 characters without control characters."""
        return self._name(key, self._required(key))

    def optional_name(self, key: str) -> str | None:
        """Return a name, ``None`` where the key is absent."""
        return self._name(key, self.members[key]) if key in self.members else None

    def names(self, key: str, *, least: int = 1) -> tuple[str, ...]:
        """Return a list of names, at least so many."""
        found = self.members.get(key, [])
        if not isinstance(found, list):
            raise self._mistyped(key, "an array of strings", found)
        if len(found) < least:
            raise self.refuse(key, "required" if key not in self.members else f"must name at least {least}")
        return tuple(self._name(key, item) for item in found)

    def name_or_names(self, key: str) -> tuple[str, ...]:
        """Return a required name, or a list of them that is not empty."""
        found = self._required(key)
        if not isinstance(found, str | list):
            raise self._mistyped(key, "a string or an array of strings", found)
        return self.names(key) if isinstance(found, list) else (self._name(key, found),)

    def choice(self, key: str, choices: Iterable[str], default: str | None) -> str | None:
        """Return one of a few texts."""
        wanted = tuple(choices)
        if key not in self.members:
            return default
        found = next((choice for choice in wanted if choice == self.members[key]), None)
        if found is None:
            raise self.refuse(key, "must be " + " or ".join(f'"{choice}"' for choice in wanted))
        return found

    def integer(self, key: str, default: int, *, least: int, most: int | None = None) -> int:
        """Return an integer within its bounds; a boolean is none."""
        found = self.members.get(key, default)
        if type(found) is not int:
            raise self._mistyped(key, "an integer", found)
        if found < least or (most is not None and found > most):
            bounds = f"at least {least}" if most is None else f"{least} to {most}"
            raise self.refuse(key, f"must be {bounds}, not {found}")
        return found

    def number(self, key: str, default: float, *, least: float, most: float) -> float:
        """Return a number within its bounds, as a float; a boolean is none, and NaN is in no bounds."""
        found = self.members.get(key, default)
        if type(found) not in (int, float):
            raise self._mistyped(key, "a number", found)
        if not least <= found <= most:
            raise self.refuse(key, f"must be {least:g} to {most:g}, not {found}")
        return float(found)

    def optional_integer(self, key: str, *, least: int) -> int | None:
        """Return an integer, ``None`` where the key is absent."""
        return self.integer(key, least, least=least) if key in self.members else None

    def flag(self, key: str) -> bool:
        """Return a boolean, false where the key is absent."""
        found = self.members.get(key, False)
        if type(found) is not bool:
            raise self._mistyped(key, "a boolean", found)
        return found

    def file_path(self, key: str) -> Path:
        """Return a required path, relative to the file."""
        return self._file(key, self._required(key))

    def optional_file_path(self, key: str) -> Path | None:
        """Return a path, ``None`` where the key is absent."""
        return self._file(key, self.members[key]) if key in self.members else None

    def optional_url(self, key: str, schemes: tuple[str, ...]) -> str | None:
        """Return a URL with a host, ``None`` where the key is absent; it may hold a secret and is not repeated."""
        if key not in self.members:
            return None
        found = self.members[key]
        if not isinstance(found, str):
            raise self._mistyped(key, "a string", found)
        if not is_url(found, schemes):
            raise self.refuse(key, f"must be a URL {' or '.join(scheme + '://...' for scheme in schemes)}")
        return found

    def table(self, key: str, known: tuple[str, ...] | None = None) -> Table | None:
        """Return a table within this one, ``None`` where it is absent."""
        found = self.members.get(key)
        if found is not None and not isinstance(found, dict):
            raise self._mistyped(key, "a table", found)
        return None if found is None else self._inner(f"[{self._dotted(key)}]", found, known, (key,))

    def tables(self, key: str, known: tuple[str, ...]) -> list[Table]:
        """Return the tables of an array of tables, none where it is absent."""
        found = self.members.get(key, [])
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise self._mistyped(key, f"an array of tables [[{self._dotted(key)}]]", found)
        name = f"[[{self._dotted(key)}]]"
        return [
            self._inner(f"{name} #{number}", item, known, (key, number - 1))
            for number, item in enumerate(found, 1)
        ]

    def _inner(
        self, name: str, members: Mapping[str, Any], known: tuple[str, ...] | None, path: tuple[str | int, ...]
    ) -> Table:
        """Return a table that stands within this one."""
        return Table(file=self.file, name=name, members=members, known=known, path=(*self.path, *path))

    def _dotted(self, key: str) -> str:
        """Return the dotted name of what stands within this table."""
        prefix = self.name.partition("]")[0].lstrip("[")
        return f"{prefix}.{spelt(key)}" if prefix else spelt(key)

    def _required(self, key: str) -> Any:
        """Return a value that must be there."""
        if key not in self.members:
            raise self.refuse(key, "required")
        return self.members[key]

    def _name(self, key: str, found: Any) -> str:
        """Return a value that is a name."""
        if not isinstance(found, str):
            raise self._mistyped(key, "a string", found)
        if not is_name(found):
            raise self.refuse(key, f"must be 1 to {MAX_NAME} characters, none a control character")
        return found

    def _file(self, key: str, found: Any) -> Path:
        """Return a value that is a path, relative to the file's folder."""
        if not isinstance(found, str):
            raise self._mistyped(key, "a string", found)
        if not found or "\0" in found:
            raise self.refuse(key, "must be a path")
        return Path(self.file).parent / found

    def _mistyped(self, key: str, wanted: str, found: Any) -> RefusedSetting:
        """Return the refusal of a value of another type."""
        kind = "a date or time" if isinstance(found, date | time) else _KINDS.get(type(found), "that")
        return self.refuse(key, f"must be {wanted}, not {kind}")


def is_url(text: str, schemes: tuple[str, ...]) -> bool:
    """Tell whether a text is a URL of one of the schemes, with a host and, where it has one, a valid port."""
    try:
        parts = urlsplit(text)
        return bool(_URL.fullmatch(text)) and parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def is_broker_url(text: str) -> bool:
    """Tell whether a text is an AMQP URL, or ``kafka://host:port`` with more servers after commas."""
    scheme, _, rest = text.partition("://")
    servers = rest.split(",") if scheme == "kafka" else [rest]
    return all(is_url(f"{scheme}://{server}", ("amqp", "amqps", "kafka")) for server in servers)


def spelt(key: str) -> str:
    """Return a key as TOML spells it, quoted where it must be."""
    return key if _BARE.fullmatch(key) else json.dumps(key)
