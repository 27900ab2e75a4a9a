"""A table of settings, declared as a dataclass, and what is derived from the declaration.

Each setting is one annotated field. The field holds all there is to say about the setting: its name, its type, the
kind of value with its bounds, one line of help, the default, and which other settings it needs or excludes::

    leeway: Annotated[int, seconds(0, MAX_LEEWAY), "The difference between clocks that is allowed."] = 5
    heads_every: Annotated[int, POSITIVE, "Records after which a head is signed.", only_with("heads")] = 1000

This module derives from it how a table is read, the suggestion for a misspelt key, the JSON Schema, and the page
``docs/configuration.md`` (decision 20). A setting without a default is required. The method ``refusals`` of a
table checks what concerns several settings at once. A setting has the name of the argument that it becomes, so
that ``arguments`` can pass it on.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    NamedTuple,
    TypeVar,
    get_origin,
    get_type_hints,
)

from mqauth.config.kinds import Kind
from mqauth.config.toml_file import (
    RefusedSetting,
    Table,
    collecting,
    raise_first,
    read_passphrase,
    read_toml,
)

_NOWHERE: Final = Table(file="", members={})
Rule = Callable[[Mapping[str, Any]], str | None]
"""Looks at the other keys of the table; returns what is wrong with the setting, or ``None``."""


class Setting(NamedTuple):
    """The declaration of one setting.

    Args:
        kind: which values it may have.
        help: one line that explains it.
        rules: which other settings it needs or excludes.
        default: its value where it is left out; ``MISSING`` if it is required.
    """

    kind: Kind
    help: str
    rules: tuple[Rule, ...]
    default: Any

    @property
    def schema(self) -> Mapping[str, Any]:
        """The setting in JSON Schema, with its help and its default."""
        # A rule of one setting about another is not part of the schema; the description names it.
        told = [
            self.help.removesuffix("."),
            *filter(None, (rule({}) for rule in self.rules)),
        ]
        schema = {**self.kind.schema, "description": "; ".join(told) + "."}
        default = (
            list(self.default)
            if isinstance(self.default, tuple | frozenset)
            else self.default
        )
        return (
            {**schema, "default": default}
            if isinstance(default, bool | int | float | str | list)
            else schema
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one table; each subclass declares a table.

    Args:
        table: the table from which they were read.
    """

    table: Table = field(default=_NOWHERE, repr=False, compare=False)

    @classmethod
    @cache
    def settings(cls) -> Mapping[str, Setting]:
        """Return the settings that the class declares, by name and in the order of declaration."""
        hints = get_type_hints(cls, include_extras=True)
        declared = {
            each: hints[each.name]
            for each in fields(cls)
            if get_origin(hints[each.name]) is Annotated
        }
        return {
            each.name: Setting(
                hint.__metadata__[0],
                hint.__metadata__[1],
                hint.__metadata__[2:],
                each.default,
            )
            for each, hint in declared.items()
        }

    blamed: ClassVar[str] = ""
    """The setting at which a refusal of ``build`` stands; empty for the table as a whole."""

    def refusals(self) -> Iterator[RefusedSetting]:
        """Yield the contradictions between settings that are right one by one."""
        yield from ()

    def refused(self, *rows: tuple[object, str, str]) -> Iterator[RefusedSetting]:
        """Yield the refusals of a table of mistakes: what has to hold for it, the key, and what is wrong."""
        return (self.table.refuse(key, what) for holds, key, what in rows if holds)

    def build(self) -> Any:
        """Return the object that the table alone describes; ``None`` where it describes none."""
        return None

    def arguments(self, target: Callable[..., object]) -> dict[str, Any]:
        """Return those settings that a class or function takes as arguments, by name."""
        parameters = inspect.signature(target).parameters
        return {
            name: getattr(self, name) for name in self.settings() if name in parameters
        }

    def read_secret(self, name: str) -> bytes | None:
        """Return the secret that two of the settings refer to, ``None`` where neither is set.

        Args:
            name: the beginning of both names; the settings are ``NAME_env`` and ``NAME_file``.

        Raises:
            RefusedSetting: as ``read_passphrase``, at the setting.
        """
        env, file = getattr(self, f"{name}_env"), getattr(self, f"{name}_file")
        with self.table.located(f"{name}_file" if env is None else f"{name}_env"):
            return read_passphrase(env=env, file=file)


S = TypeVar("S", bound=Settings)


def read_file(declared: type[S], path: Path) -> S:
    """Return the settings of a TOML file.

    Args:
        declared: the settings of the file as a whole.
        path: the file, at most 1 MiB.

    Raises:
        ConfigurationError: the file cannot be read, or a setting is refused.
    """
    return read(declared, Table(file=str(path), members=read_toml(path)[1]))


def read(declared: type[S], table: Table) -> S:
    """Return the settings of a table.

    Raises:
        RefusedSetting: the first refusal of the table, with all further ones as its ``others``.
    """
    values, refusals = collect(declared, table)
    raise_first(refusals)
    settings = declared(table=table, **values)
    raise_first(list(settings.refusals()))
    # What only the object itself can refuse is refused while the file is read.
    with table.located(declared.blamed):
        settings.build()
    return settings


def collect(
    declared: type[Settings], table: Table
) -> tuple[dict[str, Any], list[RefusedSetting]]:
    """Return the values of a table that are right one by one, and the refusals of all others."""
    known = declared.settings()
    values: dict[str, Any] = {}
    meant = {
        key: "".join(difflib.get_close_matches(key, known, 1))
        for key in table.members
        if key not in known
    }
    refusals = [
        table.refuse(key, f"unknown key; did you mean {near}?" if near else "unknown key")
        for key, near in meant.items()
    ]
    for name, setting in known.items():
        with collecting(refusals):
            if name in table.members:
                value = setting.kind.read(table, name, table.members[name])
                for what in filter(None, (rule(table.members) for rule in setting.rules)):
                    raise table.refuse(name, what)
                values[name] = value
            else:
                # A misspelt key is one mistake, and the suggestion names the missing key.
                table.require(
                    setting.default is not MISSING or name in meant.values(),
                    name,
                    "required",
                )
    return values, refusals


def schema_of(declared: type[Settings]) -> dict[str, Any]:
    """Return the JSON Schema of a table."""
    known = declared.settings()
    return {
        "type": "object",
        "properties": {name: setting.schema for name, setting in known.items()},
        "required": [
            name for name, setting in known.items() if setting.default is MISSING
        ],
        "additionalProperties": False,
    }


def only_with(*others: str) -> Rule:
    """Return the rule of a setting that has a meaning only if one of the others is set, too."""
    refusal = f"only with {' or '.join(others)}"
    return lambda members: None if members.keys() & set(others) else refusal


def not_with(other: str) -> Rule:
    """Return the rule of a setting that says the same as another one in another way."""
    refusal = f"contradicts {other}: only one of the two may be set"
    return lambda members: refusal if other in members else None


def inner(declared: type[Settings]) -> Kind:
    """Return the kind of a table within a table."""
    return Kind(
        schema_of(declared), lambda table, key, _: read(declared, table.inner(key))
    )


def inners(declared: type[Settings], least: int = 0, unique: str = "") -> Kind:
    """Return the kind of an array of tables.

    Args:
        declared: the settings of each table.
        least: the least number of tables.
        unique: a setting whose value must differ from table to table.
    """

    def reader(table: Table, key: str, _: Any) -> tuple[Settings, ...]:
        by_name: dict[Any, Settings] = {}
        refusals: list[RefusedSetting] = []
        for number, element in enumerate(table.elements(key)):
            with collecting(refusals):
                settings = read(declared, element)
                name = getattr(settings, unique) if unique else number
                element.require(
                    by_name.setdefault(name, settings) is settings,
                    unique,
                    "is configured twice",
                )
        raise_first(refusals)
        table.require(len(by_name) >= least, key, f"must hold at least {least} table")
        return tuple(by_name.values())

    return Kind(
        {"type": "array", "items": schema_of(declared)}
        | ({"minItems": least} if least else {}),
        reader,
    )
