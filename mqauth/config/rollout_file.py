"""Changes one entry of ``[[rollout]]`` in the text of a file: only its own lines, so that comments stay."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Final

from mqauth.config.toml_file import spelt
from mqauth.errors import ConfigurationError, require

_HEADER: Final = re.compile(r"^[ \t]*\[\[[ \t]*rollout[ \t]*\]\][ \t]*(?:#.*)?$", re.MULTILINE)
_ANY_HEADER: Final = re.compile(r"^[ \t]*\[", re.MULTILINE)


def number_of(text: str, destination: str) -> int:
    """Return the number of the entry, from 0, that lists a destination or pattern.

    Raises:
        ConfigurationError: no entry lists it.
    """
    entries = tomllib.loads(text).get("rollout", [])
    for number, entry in enumerate(entries):
        if destination in entry.get("destinations", ()):
            return number
    raise ConfigurationError(f"{destination} is in no [[rollout]] of the file")


def changed(text: str, number: int, values: Mapping[str, str | None]) -> str:
    """Return a text with some keys of an entry set, and others removed; each key stands on a line of its own.

    Args:
        text: of the file.
        number: of the entry, from 0.
        values: the values in TOML by key; ``None`` removes the key.

    Raises:
        ConfigurationError: the entry is not written as ``[[rollout]]`` with a key a line.
    """
    headers = list(_HEADER.finditer(text))
    require(number < len(headers), "write each entry as [[rollout]] with a key a line")
    start = headers[number].end()
    following = _ANY_HEADER.search(text, start)
    end = len(text) if following is None else following.start()
    block = text[start:end]
    for key, value in values.items():
        block = _with(block, key, value)
    found = text[:start] + block + text[end:]
    _check(text, found, number)
    return found


def _with(block: str, key: str, value: str | None) -> str:
    line = re.compile(rf"^([ \t]*{re.escape(key)}[ \t]*=[ \t]*)([^#\n]*?)([ \t]*(?:#[^\n]*)?)$", re.MULTILINE)
    if value is None:
        return line.sub("", block, count=1)
    if line.search(block):
        return line.sub(lambda found: f"{found[1]}{value}{found[3]}", block, count=1)
    body = block.rstrip()
    return f"{body}\n{key} = {value}\n{block[len(body) :].lstrip(chr(10)) and chr(10)}"


def _check(before: str, after: str, number: int) -> None:
    """Refuse a change of anything but the entry."""
    try:
        old, new = tomllib.loads(before), tomllib.loads(after)
    except ValueError as error:
        raise ConfigurationError("write each entry as [[rollout]] with a key a line") from error
    old["rollout"].pop(number)
    new["rollout"].pop(number)
    require(old == new, "write each entry as [[rollout]] with a key a line")


def accepted_key(group: str) -> str:
    """Return the key under which an entry keeps a group that was accepted."""
    return f"accepted.{spelt(group)}"


def text_value(text: str) -> str:
    """Return a text as TOML writes it."""
    return json.dumps(text)
