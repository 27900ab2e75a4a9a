"""An index of a dead-letter queue on disk: 100,000 letters in bounded memory, as of a moment that it says.

SQLite in a private file that goes with the index. Letters are kept in the JSON form of a message.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Final, Self

from mqauth import jsonform, strictjson
from mqauth.audit import harmless
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import ConfigurationError, MalformedMessage
from mqauth.flow import Flow, call
from mqauth.review.letter import Letter, Reading, read
from mqauth.review.letterbox import BATCH, LetterBox

_DEPTH: Final = 128
_DIMENSIONS: Final = ("reason", "issuer", "kid", "subject", "destination")
_TABLE: Final = """
CREATE TABLE letters (
  number INTEGER PRIMARY KEY, mark TEXT NOT NULL, id TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
  issuer TEXT NOT NULL, kid TEXT NOT NULL, subject TEXT NOT NULL, destination TEXT NOT NULL, scope TEXT NOT NULL,
  time REAL, form TEXT NOT NULL, size INTEGER NOT NULL, sound INTEGER NOT NULL, today TEXT, letter BLOB NOT NULL
);
CREATE INDEX by_id ON letters (id);
CREATE INDEX by_group ON letters (reason, issuer, kid, subject, destination);
"""


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

    def where(self) -> tuple[str, list[Any]]:
        """Return the condition in SQL and its parameters."""
        parts: list[str] = ["1"]
        values: list[Any] = []
        forms = {"id": "substr(id, 1, length(?)) = ?", "since": "time >= ?", "until": "time < ?"}
        for name in (found.name for found in fields(self)):
            value = getattr(self, name)
            if value is not None:
                parts.append(forms.get(name, f"{name} = ?"))
                values += [value] * forms.get(name, "?").count("?")
        return " AND ".join(parts), values


ALL: Final = Filter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Letters of one reason, issuer, kid, subject and destination; ``first`` and ``last`` are UTC seconds."""

    reason: str
    issuer: str
    kid: str
    subject: str
    destination: str
    count: int
    first: float | None
    last: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One letter in a list; texts are harmless to show, and claims are claims."""

    number: int
    id: str
    mark: str
    reason: str
    detail: str
    issuer: str
    kid: str
    subject: str
    destination: str
    scope: str
    time: float | None
    form: str
    size: int
    sound: bool
    today: str | None


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


class Index:
    """What one pass over a letter box found; made by ``survey``.

    Args:
        as_of: UTC seconds at which the pass began.
    """

    def __init__(self, as_of: float) -> None:
        self.as_of = as_of
        descriptor, self._path = tempfile.mkstemp(prefix="mqauth-review-", suffix=".sqlite")  # mode 0600
        os.close(descriptor)
        self._db = sqlite3.connect(self._path, check_same_thread=False)
        self._db.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_TABLE}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget everything."""
        self._db.close()
        if os.path.exists(self._path):
            os.unlink(self._path)

    def add(self, letter: Letter) -> None:
        """Add one letter."""
        found = read(letter)
        form = strictjson.dumps(jsonform.to_form(letter.message))
        kid = "" if found.kid is None else harmless(found.kid)
        self._db.execute(
            "INSERT INTO letters (mark, id, reason, detail, issuer, kid, subject, destination, scope, time, form,"
            " size, sound, letter) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (found.mark, found.id, found.reason, found.detail, found.issuer, kid, found.subject,
             found.destination, found.scope, found.time, found.form, found.size, found.sound, form),
        )  # fmt: skip

    def count(self, wanted: Filter = ALL) -> int:
        """Return how many letters are meant."""
        where, values = wanted.where()
        return int(self._db.execute(f"SELECT count(*) FROM letters WHERE {where}", values).fetchone()[0])  # noqa: S608

    def groups(self, wanted: Filter = ALL) -> list[Group]:
        """Return the groups, the largest first."""
        where, values = wanted.where()
        names = ", ".join(_DIMENSIONS)
        rows = self._db.execute(
            f"SELECT {names}, count(*), min(time), max(time) FROM letters WHERE {where}"  # noqa: S608
            f" GROUP BY {names} ORDER BY count(*) DESC, {names}",
            values,
        )
        return [
            Group(**dict(zip(_DIMENSIONS, row[:5], strict=True)), count=row[5], first=row[6], last=row[7])
            for row in rows
        ]

    def page(self, wanted: Filter = ALL, *, after: int = 0, limit: int = 100) -> list[Row]:
        """Return a page of letters in the order of the queue.

        Args:
            wanted: which.
            after: ``number`` of the last row of the page before.
            limit: at most so many.
        """
        where, values = wanted.where()
        names = [found.name for found in fields(Row)]
        rows = self._db.execute(
            f"SELECT {', '.join(names)} FROM letters WHERE {where} AND number > ? ORDER BY number LIMIT ?",  # noqa: S608
            [*values, after, limit],
        )
        return [Row(**(dict(zip(names, row, strict=True)) | {"sound": bool(row[13])})) for row in rows]

    def reading(self, number: int) -> Reading:
        """Return one letter, read.

        Raises:
            ConfigurationError: no such letter.
        """
        found = self._db.execute("SELECT letter FROM letters WHERE number = ?", [number]).fetchone()
        if found is None:
            raise ConfigurationError("no such letter")
        return read(Letter(message=_message(found[0])))

    def forms(self, wanted: Filter = ALL) -> Iterator[dict[str, Any]]:
        """Yield letters in the message form, in order, never all at once."""
        where, values = wanted.where()
        for (raw,) in self._db.execute(f"SELECT letter FROM letters WHERE {where} ORDER BY number", values):  # noqa: S608
            yield json.loads(raw)

    def ids(self) -> Iterator[tuple[str, bool]]:
        """Yield each id once, and whether one of its letters is sound."""
        yield from (
            (row[0], bool(row[1])) for row in self._db.execute("SELECT id, max(sound) FROM letters GROUP BY id")
        )

    def freeze(self, wanted: Filter = ALL) -> Selection:
        """Return the letters that are meant now, counted."""
        where, values = wanted.where()
        rows = self._db.execute(f"SELECT mark, count(*) FROM letters WHERE {where} GROUP BY mark", values)  # noqa: S608
        return Selection({row[0]: row[1] for row in rows}, self.as_of)

    def note(self, number: int, today: str) -> None:
        """Keep the verdict that a letter would get today."""
        self._db.execute("UPDATE letters SET today = ? WHERE number = ?", [today, number])


def survey(
    box: LetterBox, *, clock: Clock = SYSTEM_CLOCK, progress: Callable[[int], None] = lambda count: None
) -> Flow[Index]:
    """Look through a letter box once, removing nothing, and return its index.

    Args:
        box: the letter box.
        clock: says as of when.
        progress: called with the number of letters seen so far.

    Raises:
        Unavailable: the broker cannot be asked.
    """
    index, count = Index(clock.now()), 0
    try:
        while letters := (yield from call(box.browse, BATCH)):
            for letter in letters:
                index.add(letter)
            count += len(letters)
            progress(count)
    except BaseException:
        index.close()
        raise
    return index


def _message(raw: bytes) -> Any:
    """Return a letter's message from the index's own form."""
    form = strictjson.loads(raw, depth=_DEPTH, wide=True)
    try:
        return jsonform.from_form(form)
    except MalformedMessage as error:
        raise ConfigurationError(f"the letter cannot be shown: {error}") from error
