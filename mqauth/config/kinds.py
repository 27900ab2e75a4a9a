"""What a setting may hold: a kind reads a value strictly, and says in JSON Schema what it takes.

A value is checked in two steps: its type, then its limits. Both refusals name what was expected; the second
repeats a number that was found, and never a text. Kinds are put together: ``many(NAME, 1)`` is an array of at
least one name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from mqauth.config.toml_file import Table
from mqauth.errors import MalformedMessage
from mqauth.wire import destination
from mqauth.wire.claims import MAX_NAME, is_name

_URL: Final = re.compile(r"[\x21-\x7e]+")
_BROKERS: Final = ("amqp", "amqps", "kafka")
_NAME_LIMITS: Final = {"minLength": 1, "maxLength": MAX_NAME}
Fault = Callable[[Any], str | None]
"""Returns what is wrong with a value of the right type, ``None`` where nothing is; it never repeats a text."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a setting may hold.

    Args:
        schema: the kind in JSON Schema; ``title`` names it for people where its type says too little.
        read: returns a value as the library's objects take it. It is called with the table, the key, and the value
            that tomllib read, and raises ``RefusedSetting``.
    """

    schema: Mapping[str, Any]
    read: Callable[[Table, str, Any], Any]


def single(
    types: tuple[type, ...], wanted: str, schema: Mapping[str, Any], fault: Fault,
    into: Callable[[Any, Table], Any] = lambda found, _: found,
) -> Kind:  # fmt: skip
    """Return the kind of a single value.

    Args:
        types: its Python types; a boolean is no integer.
        wanted: the types in words.
        schema: the kind in JSON Schema.
        fault: finds what is wrong with it.
        into: returns what it is read as.
    """

    def read(table: Table, key: str, found: Any) -> Any:
        if type(found) not in types:
            raise table.mistyped(key, wanted, found)
        what = fault(found)
        if what is not None:
            raise table.refuse(key, what)
        return into(found, table)

    return Kind(schema, read)


def text(title: str, fault: Fault, limits: Mapping[str, Any] | None = None, **into: Any) -> Kind:
    """Return the kind of a text.

    Args:
        title: what the text is.
        fault: finds what is wrong with it.
        limits: what JSON Schema can say of its form.
        into: as of ``single``.
    """
    return single((str,), "a string", {"type": "string", "title": title, **(limits or {})}, fault, **into)


def choice(choices: tuple[str, ...]) -> Kind:
    """Return the kind of one of a few texts; a member of a ``StrEnum`` is read as the member."""
    said = "must be " + " or ".join(f'"{one}"' for one in choices)
    schema = {"enum": [str(one) for one in choices]}
    return single(
        (str,), "a string", schema, lambda found: None if found in choices else said,
        lambda found, _: choices[choices.index(found)],
    )  # fmt: skip


def whole(least: int, most: float = math.inf) -> Kind:
    """Return the kind of a whole number from ``least`` to ``most``."""
    return single((int,), "an integer", _bounds("integer", least, most), _out_of(least, most))


def number(least: float, most: float) -> Kind:
    """Return the kind of a number from ``least`` to ``most``, whole or not; it is read as a float."""
    schema, fault = _bounds("number", least, most), _out_of(least, most)
    return single((int, float), "a number", schema, fault, lambda found, _: float(found))


def many(item: Kind, least: int = 0, into: type[tuple[Any, ...]] | type[frozenset[Any]] = tuple) -> Kind:
    """Return the kind of an array.

    Args:
        item: the kind of its elements, texts.
        least: how many there are at least.
        into: what they are read as.
    """

    def read(table: Table, key: str, found: Any) -> Any:
        if not isinstance(found, list):
            raise table.mistyped(key, "an array of strings", found)
        if len(found) < least:
            raise table.refuse(key, f"must name at least {least}")
        return into(item.read(table, key, one) for one in found)

    return Kind({"type": "array", "items": item.schema} | ({"minItems": least} if least else {}), read)


def one_or_many(item: Kind) -> Kind:
    """Return the kind of a text, or an array of such texts that is not empty; both are read as a tuple."""
    several = many(item, 1)

    def read(table: Table, key: str, found: Any) -> Any:
        if not isinstance(found, str | list):
            raise table.mistyped(key, "a string or an array of strings", found)
        return several.read(table, key, [found] if isinstance(found, str) else found)

    return Kind({"anyOf": [item.schema, several.schema]}, read)


def entries(name: Kind, item: Kind, least: int = 0) -> Kind:
    """Return the kind of a table whose keys are data.

    Args:
        name: the kind of its keys.
        item: the kind of its values.
        least: how many entries there are at least.
    """

    def read(table: Table, key: str, _: Any) -> Any:
        inner = table.inner(key)
        if len(inner.members) < least:
            raise inner.refuse("", f"must have at least {least} entry")
        return {name.read(inner, one, one): item.read(inner, one, value) for one, value in inner.members.items()}

    schema = {"type": "object", "additionalProperties": item.schema}
    return Kind(schema | ({"minProperties": least} if least else {}), read)


def text_or_table(word: Kind, table: Kind) -> Kind:
    """Return the kind of a text or, where the value is a table, of that."""
    return Kind(
        {"anyOf": [word.schema, table.schema]},
        lambda place, key, found: (table if isinstance(found, dict) else word).read(place, key, found),
    )


def url(*schemes: str, word: str | None = None) -> Kind:
    """Return the kind of a URL with a host, or of a word in its place."""
    forms, pattern = " or ".join(f"{one}://..." for one in schemes), "|".join(f"^{one}://" for one in schemes)
    if word is None:
        return text(
            "URL", lambda found: None if is_url(found, schemes) else f"must be {forms}", {"pattern": pattern}
        )
    said = f'must be "{word}" or {forms}'
    return text(
        f'`"{word}"` or URL', lambda found: None if found == word or is_url(found, schemes) else said,
        {"pattern": f"{pattern}|^{word}$"},
    )  # fmt: skip


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
    return all(is_url(f"{scheme}://{server}", _BROKERS) for server in servers)


def _bounds(name: str, least: float, most: float) -> dict[str, Any]:
    """Return the JSON Schema of a number."""
    return {"type": name, "minimum": least} | ({} if most == math.inf else {"maximum": most})


def _out_of(least: float, most: float) -> Fault:
    """Return what finds a number out of its bounds; NaN is in none."""
    bounds = f"at least {least}" if most == math.inf else f"{least:.15g} to {most:.15g}"
    return lambda found: None if least <= found <= most else f"must be {bounds}, not {found}"


def _name_fault(found: str) -> str | None:
    return None if is_name(found) else f"must be 1 to {MAX_NAME} characters, none a control character"


def _audience_fault(found: str) -> str | None:
    return _name_fault(found) or ("must be a name, never a wildcard" if "*" in found else None)


def _place_fault(found: str) -> str | None:
    try:
        destination.parse(found)
    except MalformedMessage as error:
        return str(error)
    return None


def _path_fault(found: str) -> str | None:
    return None if found and "\0" not in found else "must be a path"


def _broker_fault(found: str) -> str | None:
    return None if is_broker_url(found) else "must be amqp://..., amqps://... or kafka://host:port"


ANY: Final = text("text", lambda _: None)
NAME: Final = text("name", _name_fault, _NAME_LIMITS)
AUDIENCE: Final = text("name", _audience_fault, {**_NAME_LIMITS, "pattern": r"^[^*]*$"})
DESTINATION: Final = text("destination", _place_fault)
BROKER_URL: Final = text("URL", _broker_fault, {"pattern": "^(amqp|amqps|kafka)://"})
PATH: Final = text(
    "path", _path_fault, {"minLength": 1}, into=lambda found, table: Path(table.file).parent / found
)
"""A path, relative to the folder of the file it is written in."""
POSITIVE: Final = whole(1)
FLAG: Final = single((bool,), "a boolean", {"type": "boolean"}, lambda _: None)
