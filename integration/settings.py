"""Writes the reference of the settings from their declarations: `python -m integration.settings`.

`docs/mqauth.schema.json` is the JSON Schema of `mqauth.toml`, and `docs/configuration.md` shows it table by table,
with those of the two files that commands read. A test holds both against the declarations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from integration.documentation import ROOT
from integration.settings_examples import EXAMPLES, UNITS, of
from mqauth.config.declaration import schema_of
from mqauth.config.settings import FileSettings
from mqauth.console.oidc import OIDCSettings

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}(T.*Z)?")
PAGE = ROOT / "docs" / "configuration.md"
SCHEMA = ROOT / "docs" / "mqauth.schema.json"
_HEAD = """\
# Configuration

Look up a setting. `python -m integration.settings` writes this page. In brackets stand its type, bounds, unit and
default. *Required* means: in a table that is there.

* mqauth refuses an unknown key, a wrong type, a value out of its bounds, and a contradiction, in one line.
* Paths are relative to the folder of the file. No secret stands in a file: a setting names the variable or the
  other file that holds it.
* `${NAME}` in any text value is a variable of the environment, `${NAME:-default}` one that may be missing, and
  `$${` a plain `${`. Keys never have one. `mqauth check` notes where trust comes from the environment.
* In the path of the audit file `{pid}`, `{host}`, `{scope}` and `{instance}` (`MQAUTH_INSTANCE`, else the host)
  are filled in. In containers each process has the number 1: use `{host}` too.
* A duration is a number of seconds, or a text with its unit: `"90s"`, `"15m"`, `"12h"`, `"7d"`. A name has 1 to
  256 characters. A boolean is `false` and an array is empty, unless another default is named. Where no bounds
  are named a number is at least 1.
* An editor checks `mqauth.toml` while you type: make `#:schema mqauth.schema.json` its first line, with the path
  of [the schema](mqauth.schema.json).
"""
_ALIKE = 3
"""So many keys that an earlier table has too, word for word, are told by that table's name."""
_SHOWN = ("table", "time", "date", "identi")
"""Types whose values need an example."""


def schema() -> dict[str, Any]:
    """Return the JSON Schema of `mqauth.toml`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:mqauth:configuration:1",
        "title": "mqauth.toml",
        **schema_of(FileSettings),
    }


def page() -> str:
    """Return the reference page."""
    parts, told = [_HEAD], dict[str, str]()
    for title, said, found in (
        (
            "mqauth.toml",
            "The file that `mqauth.load` and most commands read.",
            schema_of(FileSettings),
        ),
        (
            "--oidc FILE",
            "How people log in to `mqauth console`.",
            schema_of(OIDCSettings),
        ),
    ):
        parts.append(f"## `{title}`\n\n{said}\n")
        parts += _tables("", found, told)
    return "\n".join(parts)


def write() -> None:
    """Write page and schema."""
    SCHEMA.write_text(json.dumps(schema(), indent=2) + "\n", "utf-8")
    PAGE.write_text(page(), "utf-8")


def _tables(name: str, table: Mapping[str, Any], told: dict[str, str]) -> Iterator[str]:
    """Yield a table's keys, then the tables within it; `told` has the table where each item stands first."""
    properties = table["properties"]
    rows = {
        key: _row(name, key, said, key in table["required"])
        for key, said in properties.items()
        if _inner(said) is None and not _is_named(said)
    }
    alike: dict[str, list[str]] = {}
    for key, row in rows.items():
        alike.setdefault(told.get(row, ""), []).append(key)
    short = {
        place: keys for place, keys in alike.items() if place and len(keys) >= _ALIKE
    }
    lines = [row for row in rows.values() if told.get(row, "") not in short]
    lines += [
        f"* {', '.join(f'`{key}`' for key in keys)}: as in {place}\n"
        for place, keys in short.items()
    ]
    if lines:
        yield "".join(lines)
    for row in rows.values():
        told.setdefault(row, f"`[{name}]`")
    for key, said in properties.items():
        inner, dotted = _inner(said), f"{name}.{key}".lstrip(".")
        if _is_named(said):
            yield f"### `[{dotted}.NAME]`\n\n{said['description']}\n"
        if inner is not None:
            brackets = f"[[{dotted}]]" if said["type"] == "array" else f"[{dotted}]"
            required = " *Required.*" if key in table["required"] else ""
            yield f"### `{brackets}`\n\n{said['description']}{required}\n"
            yield from _tables(dotted, inner, told)


def _inner(said: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the table, or each table of the array, that a setting is; `None` where it is none."""
    found: Mapping[str, Any] = said.get("items", said)
    return found if "properties" in found else None


def _is_named(said: Mapping[str, Any]) -> bool:
    """Tell whether a setting is a table of tables with names of their own."""
    rest = said.get("additionalProperties")
    return isinstance(rest, dict) and "properties" in rest


def _row(table: str, key: str, said: Mapping[str, Any], required: bool) -> str:
    """Return the item of a setting."""
    kind, unit = _type(said), of(UNITS, table, key) or ""
    bounds = " ".join(part for part in (_bounds(said), unit) if part)
    default = f", default `{json.dumps(said['default'])}`" if said.get("default") else ""
    example = (
        f" Example: `{toml(of(EXAMPLES, table, key))}`" if kind.startswith(_SHOWN) else ""
    )
    shape = (
        f"{kind}, {bounds}" if bounds and kind != "name" and bounds != "seconds" else kind
    )
    return f"* `{key}` ({shape}{', *required*' if required else default}): {said['description']}{example}\n"


def toml(value: Any) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, dict):
        return (
            "{ "
            + ", ".join(
                f"{json.dumps(name)} = {toml(one)}" for name, one in value.items()
            )
            + " }"
        )
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    # A day has no quotes in TOML.
    return (
        value if isinstance(value, str) and _DAY.fullmatch(value) else json.dumps(value)
    )


def _type(said: Mapping[str, Any]) -> str:
    """Return the type of a setting in words."""
    if said.get("title") == "duration":
        return "duration"
    if "anyOf" in said:
        return " or ".join(_type(one) for one in said["anyOf"])
    if "enum" in said or "const" in said:
        return ", ".join(f'`"{one}"`' for one in said.get("enum", [said.get("const")]))
    if said["type"] == "array":
        return f"array of {_several(said['items'])}"
    if said["type"] == "object":
        return f"table of {_several(said['additionalProperties'])}"
    return str(said.get("title", said["type"]))


def _several(said: Mapping[str, Any]) -> str:
    """Return the plural of a type."""
    one = _type(said)
    return f"{one}s" if one.isalpha() else one.replace("array of", "arrays of")


def _bounds(said: Mapping[str, Any]) -> str:
    """Return the bounds of a setting."""
    if said.get("title") == "duration":
        said = said["anyOf"][0]
    if "maximum" in said:
        return f"{said['minimum']:,g} to {said['maximum']:,g}"
    if "maxLength" in said:
        return f"{said['minLength']} to {said['maxLength']} characters"
    least = [
        said[name] for name in ("minimum", "minItems", "minProperties") if name in said
    ]
    return f"at least {least[0]:,}" if least and least[0] != 1 else ""


if __name__ == "__main__":
    write()
