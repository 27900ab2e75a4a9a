"""Settings said once: a table is a class, a setting is an annotated field of it, and the rest follows from that.

A declaration has all there is to say of a setting: name, type, kind with its bounds, one line of help, default,
and what it needs beside it::

    leeway: Annotated[int, whole(0, MAX_LEEWAY), "Seconds of difference between clocks that are allowed."] = 5
    heads_every: Annotated[int, POSITIVE, "Records after which a head is signed.", only_with("heads")] = 1000

Reading, "did you mean", the JSON Schema and the reference page are made from it. A setting without a default is
required. What no single setting can tell is checked by ``refusals``. A setting has the name of the argument that
it becomes, so that ``arguments`` hands it on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, TypeVar, get_origin, get_type_hints

from mqauth.config.kinds import Kind
from mqauth.config.toml_file import RefusedSetting, Table, read_passphrase, read_toml

_NOWHERE: Final = Table(file="", members={})
Rule = Callable[[Mapping[str, Any]], str | None]
"""Returns what is wrong with a setting beside the other keys of its table, ``None`` where nothing is."""


class Setting(NamedTuple):
    """What a declaration says of one setting.

    Args:
        kind: what it may hold.
        help: one line for people.
        rules: what it needs beside it.
        default: its value where it is left out; ``MISSING`` where it is required.
    """

    kind: Kind
    help: str
    rules: tuple[Rule, ...]
    default: Any

    def read(self, table: Table, key: str) -> Any:
        """Return its value.

        Raises:
            RefusedSetting: the value is wrong, or not allowed beside the other keys.
        """
        found = self.kind.read(table, key, table.members[key])
        for what in filter(None, (rule(table.members) for rule in self.rules)):
            raise table.refuse(key, what)
        return found

    @property
    def schema(self) -> Mapping[str, Any]:
        """The setting in JSON Schema, with its help and default."""
        alone = filter(None, (rule({}) for rule in self.rules))
        said = {**self.kind.schema, "description": "; ".join((self.help.removesuffix("."), *alone)) + "."}
        default = list(self.default) if isinstance(self.default, tuple | frozenset) else self.default
        return {**said, "default": default} if isinstance(default, bool | int | float | str | list) else said


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one table; a class of them declares the table.

    Args:
        table: where they were read.
    """

    table: Table = field(default=_NOWHERE, repr=False, compare=False)

    @classmethod
    @cache
    def settings(cls) -> Mapping[str, Setting]:
        """Return the settings that the class declares, by name and in its order."""
        hints = get_type_hints(cls, include_extras=True)
        found: dict[str, Setting] = {}
        for one in fields(cls):
            if get_origin(hints[one.name]) is Annotated:
                kind, said, *rules = hints[one.name].__metadata__
                found[one.name] = Setting(kind, said, tuple(rules), one.default)
        return found

    def refusals(self) -> Iterator[RefusedSetting]:
        """Yield what contradicts itself in settings that are right one by one."""
        yield from ()

    def arguments(self, target: Callable[..., object]) -> dict[str, Any]:
        """Return the settings that a class or function takes as arguments of the same names."""
        taken = inspect.signature(target).parameters
        return {name: getattr(self, name) for name in self.settings() if name in taken}


S = TypeVar("S", bound=Settings)


def read(declared: type[S], table: Table) -> S:
    """Return the settings of a table.

    Raises:
        RefusedSetting: the first that is refused.
    """
    values, refusals = collect(declared, table)
    for refusal in refusals:
        raise refusal
    found = declared(table=table, **values)
    for refusal in found.refusals():
        raise refusal
    return found


def collect(declared: type[Settings], table: Table) -> tuple[dict[str, Any], list[RefusedSetting]]:
    """Return the values of a table that are right one by one, and the refusals of all others."""
    known = declared.settings()
    values: dict[str, Any] = {}
    refusals = list(table.unknown(known))
    for name, setting in known.items():
        try:
            if name in table.members:
                values[name] = setting.read(table, name)
            elif setting.default is MISSING:
                raise table.refuse(name, "required")
        except RefusedSetting as refused:
            refusals.append(refused)
    return values, refusals


def schema_of(declared: type[Settings]) -> dict[str, Any]:
    """Return the JSON Schema of a table."""
    known = declared.settings()
    return {
        "type": "object",
        "properties": {name: setting.schema for name, setting in known.items()},
        "required": [name for name, setting in known.items() if setting.default is MISSING],
        "additionalProperties": False,
    }


def only_with(*others: str) -> Rule:
    """Return the rule of a setting that says nothing without one of the others."""
    said = f"only with {' or '.join(others)}"
    return lambda members: None if members.keys() & set(others) else said


def not_with(other: str) -> Rule:
    """Return the rule of a setting that is another way to say the other."""
    said = f"contradicts {other}: only one of the two may be set"
    return lambda members: said if other in members else None


def inner(declared: type[Settings]) -> Kind:
    """Return the kind of a table."""
    return Kind(schema_of(declared), lambda table, key, _: read(declared, table.inner(key)))


def inners(declared: type[Settings], least: int = 0, unique: str = "") -> Kind:
    """Return the kind of an array of tables.

    Args:
        declared: the tables.
        least: how many there are at least.
        unique: a setting that is another one in each of them.
    """

    def reader(table: Table, key: str, _: Any) -> tuple[Settings, ...]:
        found: dict[Any, Settings] = {}
        for number, element in enumerate(table.elements(key)):
            one = read(declared, element)
            name = getattr(one, unique) if unique else number
            if found.setdefault(name, one) is not one:
                raise element.refuse(unique, "is configured twice")
        if len(found) < least:
            raise table.refuse(key, f"must hold at least {least} table")
        return tuple(found.values())

    return Kind({"type": "array", "items": schema_of(declared)} | ({"minItems": least} if least else {}), reader)


def read_file(declared: type[S], path: Path) -> S:
    """Return the settings of a TOML file.

    Args:
        declared: the settings of the file as a whole.
        path: the file, at most 1 MiB.

    Raises:
        ConfigurationError: the file cannot be read, or a setting is refused.
    """
    return read(declared, Table(file=str(path), members=read_toml(path)[1]))


def secret_of(found: Settings, name: str) -> bytes | None:
    """Return the secret that settings refer to, ``None`` where they name none.

    Args:
        found: settings with the fields ``NAME_env`` and ``NAME_file``.
        name: what is before these endings.

    Raises:
        RefusedSetting: as ``read_passphrase``, at the setting.
    """
    env, file = getattr(found, f"{name}_env"), getattr(found, f"{name}_file")
    with found.table.located(f"{name}_file" if env is None else f"{name}_env"):
        return read_passphrase(env=env, file=file)
