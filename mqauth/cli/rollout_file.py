"""Changes one entry of ``[[rollout]]`` in the text of a file, by tomlkit: all else stays as it was written."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from datetime import date
from typing import Any, Final

import tomlkit

from mqauth.errors import refusing, require

_FORM: Final = "the entry cannot be changed: write it as [[rollout]] with a key a line"
Value = str | date | None


def number_of(entries: list[Mapping[str, Any]], destination: str) -> int:
    """Return the number of the entry, from 0, that lists a destination or pattern.

    Raises:
        ConfigurationError: no entry lists it.
    """
    numbers = (number for number, each in enumerate(entries) if destination in each["destinations"])
    return require(next(numbers, -1) + 1, f"{destination} is in no [[rollout]] of the file") - 1


def changed(text: str, number: int, values: Mapping[str, Value], accepted: Mapping[str, str]) -> str:
    """Return a text with some keys of an entry set, and others removed.

    Args:
        text: of the file.
        number: of the entry, from 0.
        values: by key; ``None`` removes the key.
        accepted: what is added to the entry's table ``accepted``.
    """
    document: Any = tomlkit.parse(text)
    entry = document["rollout"][number]
    with _without_its_end(entry):
        for key, value in values.items():
            if value is None:
                entry.pop(key, None)
            else:
                entry[key] = value
        for key, why in accepted.items():
            if "accepted" in entry:
                entry["accepted"][key] = why
            else:
                entry.append(tomlkit.key(["accepted", key]), why)
    return _written(document)


def split(text: str, number: int, destination: str) -> str:
    """Return a text in which a destination has the entry ``number``, and what it stood in comes after it.

    Args:
        text: of the file.
        number: of the entry that holds it, from 0.
        destination: listed there, or held by a pattern, which stays.
    """
    document: Any = tomlkit.parse(text)
    entry = document["rollout"][number]
    if list(entry["destinations"]) == [destination]:
        return text
    with _without_its_end(entry):
        own = deepcopy(entry)
    own["destinations"] = [destination]
    if destination in entry["destinations"]:
        entry["destinations"].remove(destination)
    own.add(tomlkit.nl())
    document["rollout"].insert(number, own)
    return _written(document)


@contextmanager
def _without_its_end(entry: Any) -> Iterator[None]:
    """Take the blank lines and comments behind an entry's last key away: they belong to what comes after it."""
    body, end = getattr(entry.value, "body", []), []
    while body and body[-1][0] is None:
        end.append(body.pop())
    yield
    body.extend(reversed(end))


def _written(document: Any) -> str:
    """Return a document as text, which says what the document holds."""
    text = str(tomlkit.dumps(document))
    with refusing(ValueError, _FORM):
        require(tomllib.loads(text) == document.unwrap(), _FORM)
    return text
