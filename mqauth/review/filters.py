"""Which letters are meant: a filter, and a selection frozen from it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

DIMENSIONS: Final = ("reason", "issuer", "kid", "subject", "destination")
"""What makes letters one group."""
_FORMS: Final = {"id": "substr(id, 1, length(?)) = ?", "since": "time >= ?", "until": "time < ?"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which letters are meant; what is ``None`` does not matter.

    Args:
        id: dead-letter id, or its beginning.
        reason, issuer, kid, subject, destination: exact, as the index shows them; an empty one is *none*.
        since: UTC seconds, inclusive; a letter that names no time is never within times.
        until: UTC seconds, exclusive.
        today: verdict of the last ``judge``: ``accepted``, a reason, or a cause.
        mark: exact: one letter, or those that are byte for byte the same.
        sound: whether the letter proved to be the one it names.
    """

    id: str | None = None
    reason: str | None = None
    issuer: str | None = None
    kid: str | None = None
    subject: str | None = None
    destination: str | None = None
    since: float | None = None
    until: float | None = None
    today: str | None = None
    mark: str | None = None
    sound: bool | None = None

    @property
    def whole_groups(self) -> bool:
        """Whether every group is meant as a whole, or not at all."""
        return all(getattr(self, found.name) is None for found in fields(self) if found.name not in DIMENSIONS)

    def where(self) -> tuple[str, list[Any]]:
        """Return the condition in SQL and its parameters."""
        parts: list[str] = ["1"]
        values: list[Any] = []
        for name in (found.name for found in fields(self)):
            value = getattr(self, name)
            if value is not None:
                parts.append(_FORMS.get(name, f"{name} = ?"))
                values += [value] * _FORMS.get(name, "?").count("?")
        return " AND ".join(parts), values


ALL: Final = Filter()


@dataclass(frozen=True, slots=True)
class Selection:
    """A frozen, counted choice of letters: what arrives later is not in it.

    Args:
        marks: how many letters of each mark.
        as_of: UTC seconds of the index it was taken from.
    """

    marks: dict[str, int]
    as_of: float

    def __len__(self) -> int:
        return sum(self.marks.values())

    def __bool__(self) -> bool:
        """A choice of no letters is a choice."""
        return True
