"""An index of a dead-letter queue on disk: 100,000 letters in bounded memory, as of a moment that it names.

It is an SQLite database in a private file that is deleted with the index. Other threads can read it while it is
filled. Letters are kept in the JSON form of a message. An index of the database covers what groups are counted by.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any, Final

from mqauth.errors import MalformedMessage, refusing, require
from mqauth.logs import harmless
from mqauth.review.letter import Letter, Reading, read
from mqauth.threads import Closing
from mqauth.wire import json_form, strict_json

_TEXTS: Final = (
    "id",
    "reason",
    "replace(reason, '_', ' ')",
    "subject",
    "kid",
    "issuer",
    "destination",
    "detail",
)
_CONDITIONS: Final = {
    "id": "substr(id, 1, length(?)) = ?",
    "since": "time >= ?",
    "until": "time < ?",
    "marks": "mark IN (SELECT value FROM json_each(?))",
    "search": f"instr(lower({' || char(10) || '.join(_TEXTS)}), lower(?)) > 0",
}
_CHUNK: Final = 200
_TABLES: Final = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE; PRAGMA cache_size = -16384;
CREATE TABLE letters (
  number INTEGER PRIMARY KEY, reason TEXT NOT NULL, issuer TEXT NOT NULL, kid TEXT NOT NULL, subject TEXT NOT NULL,
  destination TEXT NOT NULL, mark TEXT NOT NULL, id TEXT NOT NULL, detail TEXT NOT NULL, scope TEXT NOT NULL,
  time REAL, form TEXT NOT NULL, size INTEGER NOT NULL, intact INTEGER NOT NULL, today TEXT
);
CREATE TABLE originals (number INTEGER PRIMARY KEY, letter BLOB NOT NULL);
CREATE INDEX by_group ON letters (reason, issuer, kid, subject, destination, time);
CREATE INDEX by_mark ON letters (mark);
"""
_COLUMNS: Final = """
SELECT reason, min(max(CAST((time - ?) / ? AS INTEGER), 0), ?) AS at, count(*) FROM letters
WHERE time >= 0 AND time < ? GROUP BY 1, 2
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which letters are meant. A field that is ``None`` does not matter; an empty text means *none*.

    Args:
        id: dead-letter id, or its beginning.
        reason, issuer, kid, subject, destination: exact, as the index shows them.
        since: UTC seconds, inclusive. A letter without a time is in no span of time.
        until: UTC seconds, exclusive.
        today: verdict of the last ``judge``: ``accepted``, a reason, or a cause.
        marks: of the letters that were chosen one by one; letters that are byte for byte the same have one mark.
        intact: whether the letter proved to be the one that it names.
        search: text that stands in id, reason, producer, key, issuer, destination or detail, in any case of ASCII.
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
    marks: tuple[str, ...] | None = None
    intact: bool | None = None
    search: str | None = None

    def given(self) -> dict[str, Any]:
        """Return the fields that matter."""
        members = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in members.items() if value is not None}


ALL: Final = Filter()


DIMENSIONS: Final = ("reason", "issuer", "kid", "subject", "destination")
"""What makes letters one group. The texts are harmless to show; issuer, kid and subject are only claimed."""
GROUP: Final = (*DIMENSIONS, "count", "first", "last")
"""What is told of a group: how many letters, and the time of the first and the last, UTC seconds or ``None``."""
ROW: Final = (
    *DIMENSIONS,
    "number",
    "id",
    "mark",
    "detail",
    "scope",
    "time",
    "form",
    "size",
    "intact",
    "today",
)
"""What is told of a letter in a list; its texts are harmless to show."""


@dataclass(frozen=True, slots=True)
class Order:
    """An order by one column; what is the same there is in the order of the queue.

    Args:
        by: one of ``ROW`` for letters, of ``GROUP`` for groups.
        down: whether the largest comes first.
    """

    by: str = "number"
    down: bool = False

    @property
    def reverse(self) -> Order:
        """The same the other way round."""
        return Order(self.by, not self.down)


QUEUE: Final = Order()
LARGEST: Final = Order("count", down=True)
_NAMES: Final = ", ".join(DIMENSIONS)


class Index(Closing):
    """The letters that one pass over a letter box found. It can be read from any thread.

    Attributes: ``complete`` once all letters were read, ``size`` in letters, and ``expected``, about how many
    letters the broker says there are, 0 where it does not say.

    Args:
        as_of: UTC seconds at which the pass began.
    """

    def __init__(self, as_of: float) -> None:
        self.as_of = as_of
        self.complete = False
        self.expected = self.size = 0
        self._lock = threading.RLock()
        # Without a name SQLite makes a file of its own, of mode 0600, which goes with the connection.
        self._db = sqlite3.connect("", check_same_thread=False)
        self._db.executescript(_TABLES)

    def close(self) -> None:
        """Close the index, which deletes its file."""
        with self._lock:
            self._db.close()

    def add(self, letters: Sequence[Letter]) -> None:
        """Read letters one by one and add them."""
        readings = [read(letter) for letter in letters]
        forms = [
            strict_json.dumps(json_form.to_form(letter.message)) for letter in letters
        ]
        rows = [
            (
                reading.reason,
                reading.issuer,
                harmless(reading.kid or ""),
                reading.subject,
                reading.destination,
                reading.mark,
                reading.id,
                reading.detail,
                reading.scope,
                reading.time,
                reading.form,
                reading.size,
                reading.intact,
            )
            for reading in readings
        ]
        with self._lock:
            numbers = range(self.size + 1, self.size + len(letters) + 1)
            self._db.executemany(
                f"INSERT INTO letters VALUES (?, {', '.join('?' * 13)}, NULL)",  # noqa: S608
                ((number, *row) for number, row in zip(numbers, rows, strict=True)),
            )
            self._db.executemany(
                "INSERT INTO originals VALUES (?, ?)", zip(numbers, forms, strict=True)
            )
            self.size += len(letters)

    def count(self, wanted: Filter = ALL) -> int:
        """Return how many letters are meant."""
        return int(self._ask(*_select("count(*)", wanted))[0][0])

    def groups(
        self, wanted: Filter = ALL, *, limit: int | None = None, order: Order = LARGEST
    ) -> list[Any]:
        """Return the groups, each with the attributes ``GROUP``, by default the largest first.

        Args:
            wanted: letters that count.
            limit: at most so many; by default all of them.
            order: by one of ``GROUP``.

        Raises:
            ConfigurationError: there is no such column.
        """
        require(order.by in GROUP, f"groups are sorted by {', '.join(GROUP)}")
        down = "DESC" if order.down else "ASC"
        rest = f"GROUP BY {_NAMES} ORDER BY {order.by} {down}, {_NAMES} LIMIT ?"
        times = "count(*) AS count, min(time) AS first, max(time) AS last"
        rows = self._ask(
            *_select(f"{_NAMES}, {times}", wanted, rest, [-1 if limit is None else limit])
        )
        return [SimpleNamespace(**dict(zip(GROUP, row, strict=True))) for row in rows]

    def kinds(self) -> int:
        """Return how many groups there are."""
        return int(
            self._ask(f"SELECT count(*) FROM (SELECT 1 FROM letters GROUP BY {_NAMES})")[  # noqa: S608
                0
            ][0]
        )

    def reasons(self) -> list[tuple[str, int]]:
        """Return how many letters name each reason, the most frequent first."""
        return self._ask(
            "SELECT reason, count(*) FROM letters GROUP BY reason ORDER BY 2 DESC, 1"
        )

    def span(self, before: float) -> tuple[float, float] | None:
        """Return the first and last time of letters, UTC seconds from 0 to ``before``; ``None`` without any."""
        span = "SELECT min(time), max(time) FROM letters WHERE time >= 0 AND time < ?"
        first, last = self._ask(span, [before])[0]
        return None if first is None else (first, last)

    def columns(
        self, first: float, step: float, count: int, *, before: float
    ) -> list[tuple[str, int, int]]:
        """Return reason, column and number of letters, for letters with a time from 0 to ``before``.

        Args:
            first: UTC seconds at which the first column begins; earlier letters are in it too.
            step: seconds of a column.
            count: number of columns; later letters are in the last one.
            before: UTC seconds.
        """
        return self._ask(_COLUMNS, [first, step, count - 1, before])

    def page(
        self,
        wanted: Filter = ALL,
        *,
        after: int = 0,
        limit: int = 100,
        order: Order = QUEUE,
    ) -> list[Any]:
        """Return a page of letters, each with the attributes ``ROW``, by default in the order of the queue.

        Args:
            wanted: which letters.
            after: ``number`` of the last row of the page before, 0 for the first page.
            limit: at most so many.
            order: by one of ``ROW``. Letters without a value come last in the times, else first.

        Raises:
            ConfigurationError: there is no such column.
        """
        require(order.by in ROW, f"letters are sorted by {', '.join(ROW)}")
        more, down = ("<", " DESC") if order.down else (">", "")
        # By number alone the index need not be sorted for each page.
        keys = (
            ["number"]
            if order.by == QUEUE.by
            else [f"coalesce({order.by}, '')", "number"]
        )
        here = f"(SELECT {', '.join(keys)} FROM letters WHERE number = ?)"  # noqa: S608
        follows = f"AND ({', '.join(keys)}) {more} {here}" if after else "AND ? = 0"
        rest = f"{follows} ORDER BY {', '.join(key + down for key in keys)} LIMIT ?"
        selected = self._ask(*_select(", ".join(ROW), wanted, rest, [after, limit]))
        rows = [dict(zip(ROW, row, strict=True)) for row in selected]
        return [SimpleNamespace(**row | {"intact": bool(row["intact"])}) for row in rows]

    def reading(self, number: int) -> Reading:
        """Return one letter, read again from what is kept of it.

        Raises:
            ConfigurationError: there is no such letter, or it cannot be shown.
        """
        rows = self._ask("SELECT letter FROM originals WHERE number = ?", [number])
        require(rows, "no such letter")
        with refusing(
            MalformedMessage, lambda error: f"the letter cannot be shown: {error}"
        ):
            message = json_form.from_form(
                strict_json.loads(rows[0][0], depth=json_form.JSON_DEPTH, wide=True)
            )
        return read(Letter(message=message))

    def forms(self, wanted: Filter = ALL) -> Iterator[dict[str, Any]]:
        """Yield letters in the JSON form of a message, in the order of the queue, a few at a time."""
        sql = _select(
            "letter",
            wanted,
            "ORDER BY number",
            table="letters JOIN originals USING (number)",
        )
        yield from (json.loads(raw) for (raw,) in self._each(*sql))

    def ids(self) -> Iterator[tuple[str, bool]]:
        """Yield each id once, and whether one of its letters is intact."""
        yield from (
            (id, bool(intact))
            for id, intact in self._each(
                "SELECT id, max(intact) FROM letters GROUP BY id", []
            )
        )

    def freeze(self, wanted: Filter = ALL) -> Counter[str]:
        """Return the letters that are meant now, counted."""
        return Counter(
            dict(self._each(*_select("mark, count(*)", wanted, "GROUP BY mark")))
        )

    def note(self, number: int, today: str) -> None:
        """Keep the verdict that a letter would get today."""
        with self._lock:
            self._db.execute(
                "UPDATE letters SET today = ? WHERE number = ?", [today, number]
            )

    def _ask(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def _each(self, sql: str, values: Sequence[Any]) -> Iterator[Any]:
        """Yield rows that may be many; the lock is released while the caller works on them."""
        with self._lock:
            cursor = self._db.execute(sql, values)
            rows = cursor.fetchmany(_CHUNK)
        while rows:
            yield from rows
            with self._lock:
                rows = cursor.fetchmany(_CHUNK)


def _select(
    what: str,
    wanted: Filter,
    rest: str = "",
    more: Sequence[Any] = (),
    *,
    table: str = "letters",
) -> tuple[str, list[Any]]:
    """Return a query for the letters that are meant, and its parameters. No value stands in the SQL itself."""
    conditions, values = ["1"], list[Any]()
    for name, value in wanted.given().items():
        condition = _CONDITIONS.get(name, f"{name} = ?")
        conditions.append(condition)
        values += [json.dumps(value) if name == "marks" else value] * condition.count("?")
    return f"SELECT {what} FROM {table} WHERE {' AND '.join(conditions)} {rest}", [  # noqa: S608
        *values,
        *more,
    ]
