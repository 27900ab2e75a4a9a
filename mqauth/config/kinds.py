"""The kinds of value that a setting may have. A kind reads a value strictly, and describes itself in JSON Schema.

A value is checked in two steps: first its type, then its limits. The refusal names what was expected. It repeats
a number that was found, but never a text, which might be a secret. Kinds can be combined: ``many(NAME, 1)`` is an
array of at least one name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from mqauth.config.toml_file import RefusedSetting, Table, collecting, raise_first
from mqauth.errors import MalformedMessage
from mqauth.wire import destination
from mqauth.wire.claims import MAX_NAME, is_name

_DURATION: Final = re.compile("[1-9][0-9]{0,8}[smhd]")
MAX_PATTERN: Final = 1600
"""Characters: exchange and routing key have up to 255 bytes each, and a byte is written with up to three."""
_NAME_LIMITS: Final = {"minLength": 1, "maxLength": MAX_NAME}


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


def single(  # noqa: PLR0917
    types: tuple[type, ...],
    called: str,
    schema: Mapping[str, Any],
    fits: Callable[[Any], object],
    refusal: str,
    into: Callable[[Any, Table], Any] = lambda value, _: value,
) -> Kind:
    """Return the kind of a single value.

    Args:
        types: the Python types that it may have; a boolean is not an integer.
        called: these types in words.
        schema: the kind in JSON Schema.
        fits: tells whether a value of such a type is within its limits.
        refusal: says what it must be; a number that was found stands behind it.
        into: converts the value, given the table it stands in.
    """

    def read(table: Table, key: str, value: Any) -> Any:
        # Not isinstance: bool is a subclass of int.
        table.require_type(type(value) in types, key, called, value)
        table.require(
            fits(value),
            key,
            f"{refusal}, not {value}" if isinstance(value, int | float) else refusal,
        )
        return into(value, table)

    return Kind(schema, read)


def text(
    title: str,
    fits: Callable[[str], object],
    refusal: str,
    limits: Mapping[str, Any] | None = None,
    **into: Any,
) -> Kind:
    """Return the kind of a text.

    Args:
        title: what the reference page calls it.
        fits: tells whether a text is one.
        refusal: says what it must be.
        limits: the limits that JSON Schema can express.
        into: as for ``single``.
    """
    return single(
        (str,),
        "a string",
        {"type": "string", "title": title, **(limits or {})},
        fits,
        refusal,
        **into,
    )


def choice(choices: tuple[str, ...]) -> Kind:
    """Return the kind of one of a few texts; a text of a ``StrEnum`` is read as the member of the enum."""
    return single(
        (str,),
        "a string",
        {"enum": [str(each) for each in choices]},
        choices.__contains__,
        "must be " + " or ".join(f'"{each}"' for each in choices),
        lambda text, _: choices[choices.index(text)],
    )


def whole(
    least: float,
    most: float = math.inf,
    *,
    called: str = "an integer",
    fractions: bool = False,
) -> Kind:
    """Return the kind of a number from ``least`` to ``most``.

    Args:
        least: the least that it may be.
        most: the most.
        called: its type in words.
        fractions: whether it is read as a float, and need not be whole.
    """
    name, types = ("number", (int, float)) if fractions else ("integer", (int,))
    schema = {"type": name, "minimum": least} | (
        {} if most == math.inf else {"maximum": most}
    )
    bounds = f"at least {least}" if most == math.inf else f"{least:.15g} to {most:.15g}"
    # NaN is never within the bounds.
    return single(
        types,
        called,
        schema,
        lambda value: least <= value <= most,
        f"must be {bounds}",
        lambda value, _: float(value) if fractions else value,
    )


def seconds(least: float, most: float = math.inf, *, fractions: bool = False) -> Kind:
    """Return the kind of a duration: a number of seconds, or a text such as ``90s``, ``15m``, ``12h`` or ``7d``.

    Arguments are those of ``whole``.
    """
    called = (
        f'{"a number" if fractions else "an integer"} (seconds) or a string like "15m"'
    )
    number = whole(least, most, called=called, fractions=fractions)

    def read(table: Table, key: str, value: Any) -> Any:
        if isinstance(value, str):
            table.require(
                _DURATION.fullmatch(value) is not None,
                key,
                'must be seconds, or a duration like "90s", "15m", "12h" or "7d"',
            )
            value = int(value[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[value[-1]]
        return number.read(table, key, value)

    return Kind(
        {
            "anyOf": [
                number.schema,
                {"type": "string", "pattern": f"^{_DURATION.pattern}$"},
            ],
            "title": "duration",
        },
        read,
    )


def many(
    item: Kind, least: int = 0, into: type[tuple[Any, ...]] | type[frozenset[Any]] = tuple
) -> Kind:
    """Return the kind of an array of texts.

    Args:
        item: the kind of its elements.
        least: the least number of elements.
        into: the type it is read as.
    """

    def read(table: Table, key: str, value: Any) -> Any:
        table.require_type(isinstance(value, list), key, "an array of strings", value)
        table.require(len(value) >= least, key, f"must name at least {least}")
        return into(item.read(table, key, element) for element in value)

    return Kind(
        {"type": "array", "items": item.schema} | ({"minItems": least} if least else {}),
        read,
    )


def one_or_many(item: Kind) -> Kind:
    """Return the kind of a text, or of an array of at least one such text; both are read as a tuple."""
    several = many(item, 1)

    def read(table: Table, key: str, value: Any) -> Any:
        table.require_type(
            isinstance(value, str | list), key, "a string or an array of strings", value
        )
        return several.read(table, key, [value] if isinstance(value, str) else value)

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
        inner.require(
            len(inner.members) >= least, "", f"must have at least {least} entry"
        )
        values: dict[Any, Any] = {}
        refusals: list[RefusedSetting] = []
        for inner_key, value in inner.members.items():
            with collecting(refusals):
                values[name.read(inner, inner_key, inner_key)] = item.read(
                    inner, inner_key, value
                )
        raise_first(refusals)
        return values

    return Kind(
        {"type": "object", "additionalProperties": item.schema}
        | ({"minProperties": least} if least else {}),
        read,
    )


def text_or_table(word: Kind, table: Kind) -> Kind:
    """Return the kind of a text or a table, each of a kind of its own."""
    return Kind(
        {"anyOf": [word.schema, table.schema]},
        lambda owner, key, value: (table if isinstance(value, dict) else word).read(
            owner, key, value
        ),
    )


def url(*schemes: str, words: tuple[str, ...] = ()) -> Kind:
    """Return the kind of a URL with a host, or of certain words in its place."""
    expected = [
        *(f'"{word}"' for word in words),
        *(f"{scheme}://..." for scheme in schemes),
    ]
    patterns = [
        *(f"^{scheme}://" for scheme in schemes),
        *(f"^{word}$" for word in words),
    ]
    return text(
        " or ".join([*(f'`"{word}"`' for word in words), "URL"]),
        lambda value: value in words or is_url(value, schemes),
        f"must be {' or '.join(expected)}",
        {"pattern": "|".join(patterns)},
    )


def is_url(text: str, schemes: tuple[str, ...]) -> bool:
    """Tell whether a text is a URL of one of the schemes, with a host and, where it names a port, a valid one."""
    try:
        parts = urlsplit(text)
        return (
            bool(re.fullmatch(r"[\x21-\x7e]+", text))
            and parts.scheme in schemes
            and bool(parts.hostname)
            and parts.port != 0
        )
    except ValueError:
        return False


def is_broker_url(text: str) -> bool:
    """Tell whether a text is an AMQP URL, or ``kafka://host:port`` with further servers after commas."""
    scheme, _, rest = text.partition("://")
    servers = rest.split(",") if scheme == "kafka" else [rest]
    return all(
        is_url(f"{scheme}://{server}", ("amqp", "amqps", "kafka")) for server in servers
    )


def _is_destination(text: str) -> bool:
    with suppress(MalformedMessage):
        return bool(destination.parse(text))
    return False


ANY: Final = text("text", lambda _: True, "")
PATTERN: Final = text(
    "destination",
    lambda pattern: is_name(pattern, 1, MAX_PATTERN),
    f"must be 1 to {MAX_PATTERN} characters, none a control character",
    {"minLength": 1, "maxLength": MAX_PATTERN},
)
NAME: Final = text(
    "name",
    is_name,
    f"must be 1 to {MAX_NAME} characters, none a control character",
    _NAME_LIMITS,
)
EXACT_NAME: Final = text(
    "name",
    lambda name: is_name(name) and "*" not in name,
    f"must be a name of 1 to {MAX_NAME} characters, never a wildcard",
    {**_NAME_LIMITS, "pattern": r"^[^*]*$"},
)
DESTINATION: Final = text(
    "destination",
    _is_destination,
    "must be a destination, rabbitmq:<exchange>/<routing key> or kafka:<topic>",
)
URLS: Final = "amqp://..., amqps://... or kafka://host:port"
BROKER_URL: Final = text(
    "URL", is_broker_url, f"must be {URLS}", {"pattern": "^(amqp|amqps|kafka)://"}
)
PATH: Final = text(
    "path",
    lambda path: path and "\0" not in path,
    "must be a path",
    {"minLength": 1},
    into=lambda path, table: Path(table.file).parent / path,
)
"""A path, relative to the folder of the file in which it stands."""
POSITIVE: Final = whole(1)
FLAG: Final = single((bool,), "a boolean", {"type": "boolean"}, lambda _: True, "")
DATE: Final = single(
    (date,),
    "a date like 2027-01-31, without quotation marks",
    {"type": "string", "format": "date", "title": "date"},
    lambda _: True,
    "",
)
MOMENT: Final = single(
    (datetime,),
    "a time like 2026-12-04T10:00:00Z, without quotation marks",
    {"type": "string", "format": "date-time", "title": "time"},
    lambda time: time.tzinfo,
    "must say its zone, like Z",
)
