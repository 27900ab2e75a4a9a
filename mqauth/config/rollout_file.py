"""Changes one entry of ``[[rollout]]`` in the text of a file: only its own lines, so that comments stay."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any, Final

from mqauth.config.toml_file import spelt
from mqauth.errors import ConfigurationError, refusing, require

_HEADER: Final = re.compile(r"^[ \t]*\[\[[ \t]*rollout[ \t]*\]\][ \t]*(?:#.*)?$", re.MULTILINE)
_FORM: Final = "write each entry as [[rollout]] with a key a line"
_VALUE: Final = r"""(?:"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[^#"'\n])*?"""
"""A value on one line; a ``#`` in its texts begins no comment."""
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
    start, end = _span(text, number)
    block = text[start:end]
    for key, value in values.items():
        block = _with(block, key, value)
    found = text[:start] + block + text[end:]
    _check(text, found, number)
    return found


def split(text: str, number: int, destination: str) -> str:
    """Return a text in which a destination has the entry ``number``, and what it stood in comes after it.

    Args:
        text: of the file.
        number: of the entry that holds it, from 0.
        destination: listed there, or held by a pattern, which stays.

    Raises:
        ConfigurationError: the entry is not written as ``[[rollout]]`` with a key a line.
    """
    listed = tomllib.loads(text)["rollout"][number]["destinations"]
    if listed == [destination]:
        return text
    start, end = _span(text, number)
    own = _with(text[start:end], "destinations", json.dumps([destination])).rstrip()
    others = [each for each in listed if each != destination]
    rest = _with(text[start:end], "destinations", json.dumps(others))
    found = f"{text[:start]}{own}\n\n[[rollout]]{rest}{text[end:]}"
    _check_split(text, found, number, ([destination], others))
    return found


def _check_split(before: str, after: str, number: int, parts: tuple[list[str], list[str]]) -> None:
    """Refuse anything but one entry that has become two."""
    wanted, found = _parsed(before), _parsed(after)
    entry = wanted["rollout"][number]
    wanted["rollout"][number : number + 1] = [entry | {"destinations": part} for part in parts]
    require(wanted == found, _FORM)


def _span(text: str, number: int) -> tuple[int, int]:
    """Return where the keys of an entry begin, behind its header, and where they end."""
    headers = list(_HEADER.finditer(text))
    require(number < len(headers), _FORM)
    start = headers[number].end()
    following = _ANY_HEADER.search(text, start)
    return start, len(text) if following is None else following.start()


def _with(block: str, key: str, value: str | None) -> str:
    line = re.compile(rf"^([ \t]*{re.escape(key)}[ \t]*=[ \t]*)({_VALUE})([ \t]*(?:#[^\n]*)?)$", re.MULTILINE)
    if value is None:
        return line.sub("", block, count=1)
    if line.search(block):
        return line.sub(lambda found: f"{found[1]}{value}{found[3]}", block, count=1)
    body = block.rstrip()
    return f"{body}\n{key} = {value}\n{block[len(body) :].lstrip(chr(10)) and chr(10)}"


def _check(before: str, after: str, number: int) -> None:
    """Refuse a change of anything but the entry."""
    old, new = _parsed(before), _parsed(after)
    old["rollout"].pop(number)
    new["rollout"].pop(number)
    require(old == new, _FORM)


def _parsed(text: str) -> dict[str, Any]:
    with refusing(ValueError, _FORM):
        return tomllib.loads(text)


def accepted_key(group: str) -> str:
    """Return the key under which an entry keeps a group that was accepted."""
    return f"accepted.{spelt(group)}"


def text_value(text: str) -> str:
    """Return a text as TOML writes it."""
    return json.dumps(text)
