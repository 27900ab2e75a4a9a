"""An index of a dead-letter queue on disk: 100,000 letters in bounded memory, as of a moment that it says.

SQLite in a private file that goes with the index. It can be read from other threads while it is filled: then
it says how far it is. Letters are kept in the JSON form of a message; groups are counted as letters come.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Final, Self

from mqauth.audit.record import harmless
from mqauth.errors import ConfigurationError, MalformedMessage
from mqauth.review.filters import ALL, DIMENSIONS, Filter, Selection
from mqauth.review.letter import Letter, Reading, read
from mqauth.wire import json_form as jsonform
from mqauth.wire import strict_json as strictjson

_CHUNK: Final = 200
_NAMES: Final = ", ".join(DIMENSIONS)
_TABLES: Final = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE; PRAGMA cache_size = -16384;
CREATE TABLE kinds (
  kind INTEGER PRIMARY KEY, reason TEXT NOT NULL, issuer TEXT NOT NULL, kid TEXT NOT NULL, subject TEXT NOT NULL,
  destination TEXT NOT NULL, count INTEGER NOT NULL, first REAL, last REAL,
  UNIQUE (reason, issuer, kid, subject, destination)
);
CREATE TABLE letters (
  number INTEGER PRIMARY KEY, kind INTEGER NOT NULL, mark TEXT NOT NULL, id TEXT NOT NULL, detail TEXT NOT NULL,
  scope TEXT NOT NULL, time REAL, form TEXT NOT NULL, size INTEGER NOT NULL, sound INTEGER NOT NULL, today TEXT
);
CREATE TABLE originals (number INTEGER PRIMARY KEY, letter BLOB NOT NULL);
CREATE INDEX by_kind ON letters (kind);
CREATE INDEX by_mark ON letters (mark);
CREATE VIEW shown AS
  SELECT letters.*, reason, issuer, kid, subject, destination FROM letters JOIN kinds USING (kind);
"""
_COUNT: Final = """
INSERT INTO kinds (reason, issuer, kid, subject, destination, count, first, last) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET count = count + excluded.count,
  first = min(coalesce(first, excluded.first), coalesce(excluded.first, first)),
  last = max(coalesce(last, excluded.last), coalesce(excluded.last, last))
"""
_KIND: Final = "SELECT kind FROM kinds WHERE (reason, issuer, kid, subject, destination) = (?, ?, ?, ?, ?)"
_SPAN: Final = """
SELECT min(at), max(at) FROM (SELECT first AS at FROM kinds UNION ALL SELECT last FROM kinds)
WHERE at >= 0 AND at < ?
"""
_COLUMNS: Final = """
SELECT reason, min(max(CAST((time - ?) / ? AS INTEGER), 0), ?) AS at, count(*) FROM shown
WHERE time >= 0 AND time < ? GROUP BY 1, 2
"""
_LETTER: Final = "INSERT INTO letters VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)"
_Kind = tuple[str, str, str, str, str]


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


_GROUP: Final = tuple(found.name for found in fields(Group))
_ROW: Final = tuple(found.name for found in fields(Row))
_SOUND: Final = _ROW.index("sound")


class Index:
    """What one pass over a letter box finds; filled by ``survey``, read from any thread.

    Args:
        as_of: UTC seconds at which the pass began.
    """

    def __init__(self, as_of: float) -> None:
        self.as_of = as_of
        self.complete = False
        self.expected = 0
        self.size = 0
        self._lock = threading.RLock()
        descriptor, self._path = tempfile.mkstemp(prefix="mqauth-review-", suffix=".sqlite")  # mode 0600
        os.close(descriptor)
        self._db = sqlite3.connect(self._path, check_same_thread=False)
        self._db.executescript(_TABLES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._db.close()
        if os.path.exists(self._path):
            os.unlink(self._path)

    def add(self, letters: Sequence[Letter]) -> None:
        """Add letters, read one by one."""
        found = [(reading := read(letter), _kind(reading), _form(letter)) for letter in letters]
        with self._lock:
            kinds = self._counted((kind, reading.time) for reading, kind, _ in found)
            numbered = list(enumerate(found, self.size + 1))
            self._db.executemany(
                _LETTER, [_letter(number, kinds[kind], reading) for number, (reading, kind, _) in numbered]
            )
            self._db.executemany(
                "INSERT INTO originals VALUES (?, ?)", [(number, form) for number, (_, _, form) in numbered]
            )
            self.size += len(found)

    def count(self, wanted: Filter = ALL) -> int:
        """Return how many letters are meant."""
        if wanted.whole_groups:
            return int(self._ask(*_select("coalesce(sum(count), 0)", wanted, table="kinds"))[0][0])
        return int(self._ask(*_select("count(*)", wanted))[0][0])

    def groups(self, wanted: Filter = ALL, *, limit: int | None = None) -> list[Group]:
        """Return the groups, the largest first.

        Args:
            wanted: letters that count.
            limit: at most so many; by default all of them.
        """
        rest, limited = f"ORDER BY count DESC, {_NAMES} LIMIT ?", [-1 if limit is None else limit]
        if wanted.whole_groups:
            sql = _select(f"{_NAMES}, count, first, last", wanted, rest, limited, table="kinds")
        else:
            times = "count(*) AS count, min(time), max(time)"
            sql = _select(f"{_NAMES}, {times}", wanted, f"GROUP BY kind {rest}", limited)
        rows = self._ask(*sql)
        return [Group(**dict(zip(_GROUP, row, strict=True))) for row in rows]

    def kinds(self) -> int:
        """Return how many groups there are."""
        return int(self._ask("SELECT count(*) FROM kinds")[0][0])

    def reasons(self) -> list[tuple[str, int]]:
        """Return how many letters name each reason, the most frequent first."""
        return self._ask("SELECT reason, sum(count) FROM kinds GROUP BY reason ORDER BY 2 DESC, 1")

    def span(self, before: float) -> tuple[float, float] | None:
        """Return the first and last time of the groups, UTC seconds from 0 to ``before``; ``None`` without any."""
        first, last = self._ask(_SPAN, [before])[0]
        return None if first is None else (first, last)

    def columns(self, first: float, step: float, count: int, *, before: float) -> list[tuple[str, int, int]]:
        """Return reason, column and number of letters, for letters with a time from 0 to ``before``.

        Args:
            first: UTC seconds at which the first column begins; what is earlier is in it too.
            step: seconds of a column.
            count: of columns; what is later is in the last.
            before: UTC seconds.
        """
        return self._ask(_COLUMNS, [first, step, count - 1, before])

    def page(self, wanted: Filter = ALL, *, after: int = 0, limit: int = 100) -> list[Row]:
        """Return a page of letters in the order of the queue.

        Args:
            wanted: which.
            after: ``number`` of the last row of the page before.
            limit: at most so many.
        """
        rest = "AND number > ? ORDER BY number LIMIT ?"
        rows = self._ask(*_select(", ".join(_ROW), wanted, rest, [after, limit]))
        return [Row(**(dict(zip(_ROW, row, strict=True)) | {"sound": bool(row[_SOUND])})) for row in rows]

    def reading(self, number: int) -> Reading:
        """Return one letter, read.

        Raises:
            ConfigurationError: no such letter.
        """
        found = self._ask("SELECT letter FROM originals WHERE number = ?", [number])
        if not found:
            raise ConfigurationError("no such letter")
        return read(Letter(message=_message(found[0][0])))

    def forms(self, wanted: Filter = ALL) -> Iterator[dict[str, Any]]:
        """Yield letters in the message form, in order, never all at once."""
        sql = _select("letter", wanted, "ORDER BY number", table="shown JOIN originals USING (number)")
        yield from (json.loads(raw) for (raw,) in self._each(*sql))

    def ids(self) -> Iterator[tuple[str, bool]]:
        """Yield each id once, and whether one of its letters is sound."""
        yield from (
            (row[0], bool(row[1])) for row in self._each("SELECT id, max(sound) FROM letters GROUP BY id", [])
        )

    def freeze(self, wanted: Filter = ALL) -> Selection:
        """Return the letters that are meant now, counted."""
        return Selection(dict(self._each(*_select("mark, count(*)", wanted, "GROUP BY mark"))), self.as_of)

    def note(self, number: int, today: str) -> None:
        """Keep the verdict that a letter would get today."""
        with self._lock:
            self._db.execute("UPDATE letters SET today = ? WHERE number = ?", [today, number])

    def _ask(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a question that are few."""
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def _each(self, sql: str, values: Sequence[Any]) -> Iterator[Any]:
        """Yield the rows of a question that may be many."""
        with self._lock:
            cursor = self._db.execute(sql, values)
            rows = cursor.fetchmany(_CHUNK)
        while rows:
            yield from rows
            with self._lock:
                rows = cursor.fetchmany(_CHUNK)

    def _counted(self, found: Iterable[tuple[_Kind, float | None]]) -> dict[_Kind, int]:
        """Count letters into their groups, and return each group's number."""
        times: dict[_Kind, list[float | None]] = {}
        for kind, time in found:
            times.setdefault(kind, []).append(time)
        for kind, among in times.items():
            known = [time for time in among if time is not None]
            edges = (min(known), max(known)) if known else (None, None)
            self._db.execute(_COUNT, (*kind, len(among), *edges))
        return {kind: self._db.execute(_KIND, kind).fetchone()[0] for kind in times}


def _select(
    what: str, wanted: Filter, rest: str = "", more: Sequence[Any] = (), *, table: str = "shown"
) -> tuple[str, list[Any]]:
    """Return a question about the letters that are meant, in SQL of our own words only, and its parameters."""
    where, values = wanted.where()
    return f"SELECT {what} FROM {table} WHERE {where} {rest}", [*values, *more]  # noqa: S608


def _kind(reading: Reading) -> _Kind:
    """Return the group of a letter."""
    kid = "" if reading.kid is None else harmless(reading.kid)
    return reading.reason, reading.issuer, kid, reading.subject, reading.destination


def _letter(number: int, kind: int, reading: Reading) -> tuple[Any, ...]:
    """Return the row of a letter."""
    return (number, kind, reading.mark, reading.id, reading.detail, reading.scope, reading.time, reading.form,
            reading.size, reading.sound)  # fmt: skip


def _form(letter: Letter) -> bytes:
    """Return a letter's message in the index's own form."""
    return strictjson.dumps(jsonform.to_form(letter.message))


def _message(raw: bytes) -> Any:
    """Return a letter's message from the index's own form."""
    form = strictjson.loads(raw, depth=jsonform.JSON_DEPTH, wide=True)
    try:
        return jsonform.from_form(form)
    except MalformedMessage as error:
        raise ConfigurationError(f"the letter cannot be shown: {error}") from error
