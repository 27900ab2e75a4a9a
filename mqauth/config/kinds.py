"""The kinds of value that a setting may have. A kind reads a value strictly, and describes itself in JSON Schema.

A value is checked in two steps: first its type, then its limits. The refusal names what was expected. It repeats
a number that was found, but never a text, which might be a secret. Kinds can be combined: ``many(NAME, 1)`` is an
array of at least one name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from mqauth.config.toml_file import RefusedSetting, Table, collecting, raise_first
from mqauth.errors import MalformedMessage
from mqauth.wire import destination
from mqauth.wire.claims import MAX_NAME, is_name

_URL: Final = re.compile(r"[\x21-\x7e]+")
_DURATION: Final = re.compile("[1-9][0-9]{0,8}[smhd]")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_BROKERS: Final = ("amqp", "amqps", "kafka")
_NAME_LIMITS: Final = {"minLength": 1, "maxLength": MAX_NAME}
Fault = Callable[[Any], str | None]
"""Returns what is wrong with a value of the right type, or ``None``. It never repeats a text."""


@dataclass(frozen=True, slots=True)
class Kind:
    """The kind of value that a setting may have.

    Args:
        schema: the kind in JSON Schema. Its ``title`` is what the reference page calls the kind where the name of
            the type says too little.
        read: returns the value in the form that the library's objects take. It is called with the table, the key,
            and the value that tomllib read, and raises ``RefusedSetting``.
    """

    schema: Mapping[str, Any]
    read: Callable[[Table, str, Any], Any]


def single(
    types: tuple[type, ...], expected: str, schema: Mapping[str, Any], fault: Fault,
    into: Callable[[Any, Table], Any] = lambda found, _: found,
) -> Kind:  # fmt: skip
    """Return the kind of a single value.

    Args:
        types: the Python types that it may have; a boolean is not an integer.
        expected: these types in words.
        schema: the kind in JSON Schema.
        fault: returns what is wrong with a value of such a type.
        into: converts the value, given the table it stands in.
    """

    def read(table: Table, key: str, found: Any) -> Any:
        # Not isinstance: bool is a subclass of int.
        if type(found) not in types:
            raise table.mistyped(key, expected, found)
        what = fault(found)
        if what is not None:
            raise table.refuse(key, what)
        return into(found, table)

    return Kind(schema, read)


def text(title: str, fault: Fault, limits: Mapping[str, Any] | None = None, **into: Any) -> Kind:
    """Return the kind of a text.

    Args:
        title: what the reference page calls it.
        fault: returns what is wrong with a text.
        limits: the limits that JSON Schema can express.
        into: as for ``single``.
    """
    return single((str,), "a string", {"type": "string", "title": title, **(limits or {})}, fault, **into)


def choice(choices: tuple[str, ...]) -> Kind:
    """Return the kind of one of a few texts; a text of a ``StrEnum`` is read as the member of the enum."""
    expected = "must be " + " or ".join(f'"{one}"' for one in choices)
    schema = {"enum": [str(one) for one in choices]}
    return single(
        (str,), "a string", schema, lambda found: None if found in choices else expected,
        lambda found, _: choices[choices.index(found)],
    )  # fmt: skip


def whole(least: int, most: float = math.inf) -> Kind:
    """Return the kind of a whole number from ``least`` to ``most``."""
    return single((int,), "an integer", _bounds("integer", least, most), _out_of(least, most))


def many(item: Kind, least: int = 0, into: type[tuple[Any, ...]] | type[frozenset[Any]] = tuple) -> Kind:
    """Return the kind of an array of texts.

    Args:
        item: the kind of its elements.
        least: the least number of elements.
        into: the type it is read as.
    """

    def read(table: Table, key: str, found: Any) -> Any:
        if not isinstance(found, list):
            raise table.mistyped(key, "an array of strings", found)
        if len(found) < least:
            raise table.refuse(key, f"must name at least {least}")
        return into(item.read(table, key, one) for one in found)

    return Kind({"type": "array", "items": item.schema} | ({"minItems": least} if least else {}), read)


def one_or_many(item: Kind) -> Kind:
    """Return the kind of a text, or of an array of at least one such text; both are read as a tuple."""
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
        least: the least number of entries.
    """

    def read(table: Table, key: str, _: Any) -> Any:
        inner = table.inner(key)
        if len(inner.members) < least:
            raise inner.refuse("", f"must have at least {least} entry")
        found: dict[Any, Any] = {}
        refusals: list[RefusedSetting] = []
        for one, value in inner.members.items():
            with collecting(refusals):
                found[name.read(inner, one, one)] = item.read(inner, one, value)
        raise_first(refusals)
        return found

    schema = {"type": "object", "additionalProperties": item.schema}
    return Kind(schema | ({"minProperties": least} if least else {}), read)


def text_or_table(word: Kind, table: Kind) -> Kind:
    """Return the kind of a text or a table, each of a kind of its own."""
    return Kind(
        {"anyOf": [word.schema, table.schema]},
        lambda place, key, found: (table if isinstance(found, dict) else word).read(place, key, found),
    )


def seconds(least: float, most: float = math.inf, *, fractions: bool = False) -> Kind:
    """Return the kind of a duration: a number of seconds, or a text such as ``90s``, ``15m``, ``12h`` or ``7d``.

    Args:
        least: seconds at least.
        most: seconds at most.
        fractions: whether it is read as a float, and a number need not be whole.
    """
    bounds, fault = _bounds("number" if fractions else "integer", least, most), _out_of(least, most)
    types, expected = ((int, float), "a number") if fractions else ((int,), "an integer")

    def read(table: Table, key: str, found: Any) -> Any:
        if isinstance(found, str):
            if _DURATION.fullmatch(found) is None:
                raise table.refuse(key, 'must be seconds, or a duration like "90s", "15m", "12h" or "7d"')
            found = int(found[:-1]) * _UNITS[found[-1]]
        # Not isinstance: bool is a subclass of int.
        if type(found) not in types:
            raise table.mistyped(key, f'{expected} (seconds) or a string like "15m"', found)
        what = fault(found)
        if what is not None:
            raise table.refuse(key, what)
        return float(found) if fractions else found

    text_form = {"type": "string", "pattern": f"^{_DURATION.pattern}$"}
    return Kind({"anyOf": [bounds, text_form], "title": "duration"}, read)


def url(*schemes: str, words: tuple[str, ...] = ()) -> Kind:
    """Return the kind of a URL with a host, or of certain words in its place."""
    expected = " or ".join([*(f'"{one}"' for one in words), *(f"{one}://..." for one in schemes)])
    pattern = "|".join([*(f"^{one}://" for one in schemes), *(f"^{one}$" for one in words)])
    return text(
        " or ".join([*(f'`"{one}"`' for one in words), "URL"]),
        lambda found: None if found in words or is_url(found, schemes) else f"must be {expected}",
        {"pattern": pattern},
    )


def is_url(text: str, schemes: tuple[str, ...]) -> bool:
    """Tell whether a text is a URL of one of the schemes, with a host and, where it names a port, a valid one."""
    try:
        parts = urlsplit(text)
        return bool(_URL.fullmatch(text)) and parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def is_broker_url(text: str) -> bool:
    """Tell whether a text is an AMQP URL, or ``kafka://host:port`` with further servers after commas."""
    scheme, _, rest = text.partition("://")
    servers = rest.split(",") if scheme == "kafka" else [rest]
    return all(is_url(f"{scheme}://{server}", _BROKERS) for server in servers)


def _bounds(name: str, least: float, most: float) -> dict[str, Any]:
    return {"type": name, "minimum": least} | ({} if most == math.inf else {"maximum": most})


def _out_of(least: float, most: float) -> Fault:
    """Return the function that refuses numbers outside the bounds; NaN is never inside."""
    bounds = f"at least {least}" if most == math.inf else f"{least:.15g} to {most:.15g}"
    return lambda found: None if least <= found <= most else f"must be {bounds}, not {found}"


def _name_fault(found: str) -> str | None:
    return None if is_name(found) else f"must be 1 to {MAX_NAME} characters, none a control character"


def _audience_fault(found: str) -> str | None:
    return _name_fault(found) or ("must be a name, never a wildcard" if "*" in found else None)


def _destination_fault(found: str) -> str | None:
    # Unlike every other refusal this one repeats the text: among many destinations one has to find the wrong one.
    try:
        destination.parse(found)
    except MalformedMessage as error:
        return str(error)
    return None


ANY: Final = text("text", lambda _: None)
NAME: Final = text("name", _name_fault, _NAME_LIMITS)
AUDIENCE: Final = text("name", _audience_fault, {**_NAME_LIMITS, "pattern": r"^[^*]*$"})
DESTINATION: Final = text("destination", _destination_fault)
BROKER_URL: Final = text(
    "URL",
    lambda found: None if is_broker_url(found) else "must be amqp://..., amqps://... or kafka://host:port",
    {"pattern": "^(amqp|amqps|kafka)://"},
)
PATH: Final = text(
    "path",
    lambda found: None if found and "\0" not in found else "must be a path",
    {"minLength": 1},
    into=lambda found, table: Path(table.file).parent / found,
)
"""A path, relative to the folder of the file in which it stands."""
POSITIVE: Final = whole(1)
FLAG: Final = single((bool,), "a boolean", {"type": "boolean"}, lambda _: None)
DATE: Final = single(
    (date,),
    "a date like 2027-01-31, without quotation marks",
    {"type": "string", "format": "date", "title": "date"},
    lambda _: None,
)
MOMENT: Final = single(
    (datetime,),
    "a time like 2026-12-04T10:00:00Z, without quotation marks",
    {"type": "string", "format": "date-time", "title": "time"},
    lambda found: None if found.tzinfo is not None else "must say its zone, like Z",
)
