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
from mqauth.config.broker import BrokerFile
from mqauth.config.declaration import schema_of
from mqauth.config.settings import FileSettings
from mqauth.console.oidc import OIDCSettings

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}(T.*Z)?")
PAGE = ROOT / "docs" / "configuration.md"
SCHEMA = ROOT / "docs" / "mqauth.schema.json"
_HEAD = """\
# Configuration

Look up what a setting means, what it may be, and what it is where you leave it out. The command
`python -m integration.settings` writes this page from the declarations in the code: change those, not the page.

* mqauth refuses an unknown key, a wrong type, a value out of its bounds, and a contradiction. The message is one
  line: file, table, key, what is wrong.
* Paths are relative to the folder of the file. No secret stands in a file: a setting names the variable or the
  other file that holds it.
* `${NAME}` in any text value is a variable of the environment, `${NAME:-default}` one that may be missing, and
  `$${` a plain `${`. Keys never have one. What comes out obeys the same limits. `mqauth check` notes where trust
  comes from the environment.
* In the path of the audit file `{pid}`, `{host}`, `{scope}` and `{instance}` (`MQAUTH_INSTANCE`, else the host)
  are filled in. In containers each process has the number 1: use `{host}` too.
* A duration is a number of seconds, or a text with its unit: `"90s"`, `"15m"`, `"12h"`, `"7d"`.
* *Required* means: in a table that is there. The examples fit by themselves; not all of them fit together.
* An editor that knows JSON Schema (Even Better TOML and Taplo do) checks `mqauth.toml` while you type.
  Make `#:schema mqauth.schema.json` the first line of the file, with the path of [the schema](mqauth.schema.json).
  The schema knows each key by itself; `mqauth check mqauth.toml` finds what several keys say together.
"""
_COLUMNS = (
    "| Key | Type | Bounds | Unit | Default | Example | What it says |\n"
    "| --- | --- | --- | --- | --- | --- | --- |\n"
)


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
    parts = [_HEAD]
    for title, said, found in (
        ("mqauth.toml", "The file that `mqauth.load` and most commands read.", schema_of(FileSettings)),
        ("--broker-settings FILE", "How `mqauth dlq` and `mqauth console` reach a broker.", schema_of(BrokerFile)),
        ("--oidc FILE", "How people log in to `mqauth console`.", schema_of(OIDCSettings)),
    ):
        parts.append(f"## `{title}`\n\n{said}\n")
        parts += _tables("", found)
    return "\n".join(parts)


def write() -> None:
    """Write page and schema."""
    SCHEMA.write_text(json.dumps(schema(), indent=2) + "\n", "utf-8")
    PAGE.write_text(page(), "utf-8")


def _tables(name: str, table: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table's keys, then the tables within it."""
    properties = table["properties"]
    rows = [
        _row(name, key, said, key in table["required"])
        for key, said in properties.items()
        if _inner(said) is None and not _is_named(said)
    ]
    if rows:
        yield _COLUMNS + "".join(rows)
    for key, said in properties.items():
        inner, dotted = _inner(said), f"{name}.{key}".lstrip(".")
        if _is_named(said):
            yield f"### `[{dotted}.NAME]`\n\n{said['description']}\n"
        if inner is not None:
            brackets = f"[[{dotted}]]" if said["type"] == "array" else f"[{dotted}]"
            required = " *Required.*" if key in table["required"] else ""
            yield f"### `{brackets}`\n\n{said['description']}{required}\n"
            yield from _tables(dotted, inner)


def _inner(said: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the table, or each table of the array, that a setting is; `None` where it is none."""
    found: Mapping[str, Any] = said.get("items", said)
    return found if "properties" in found else None


def _is_named(said: Mapping[str, Any]) -> bool:
    """Tell whether a setting is a table of tables with names of their own."""
    rest = said.get("additionalProperties")
    return isinstance(rest, dict) and "properties" in rest


def _row(table: str, key: str, said: Mapping[str, Any], required: bool) -> str:
    """Return the line of a setting."""
    unit, example = of(UNITS, table, key) or "", toml(of(EXAMPLES, table, key))
    default = "*required*" if required else f"`{json.dumps(said['default'])}`" if "default" in said else ""
    cells = (f"`{key}`", _type(said), _bounds(said), unit, default, f"`{example}`", said["description"])
    return f"| {' | '.join(cells)} |\n"


def toml(value: Any) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(name)} = {toml(one)}" for name, one in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    # A day has no quotes in TOML.
    return value if isinstance(value, str) and _DAY.fullmatch(value) else json.dumps(value)


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
    least = [said[name] for name in ("minimum", "minItems", "minProperties") if name in said]
    return f"at least {least[0]:,}" if least else ""


if __name__ == "__main__":
    write()
