"""The replay store of one process on its disk: it survives a restart, and needs no server.

A row has the id of a single token, or up to 32 messages of a batch: as bits which of them were *seen* and which
are *done*, and the place of each that was seen. Who holds a claim, and until when, is in memory alone. A lock
proves that whoever had the file before is dead: what that process held is over, whatever its clock said.

While a thread has the store to itself, to forget or to sync, another thread waits, and an event loop gets an
awaitable.

An id is forgotten only when two clocks say so: the wall clock, by which tokens expire, and the seconds for which
the file was open, which nobody can set. The thread goes round the rows in the order of their keys, which are
digests, and looks at eight for each id that was added: so about an eighth of the rows at most is over.

For example, offset 7 of partition 0 of ``orders`` is claimed and confirmed, and then a copy comes at offset 9::

    claim     the row of the id: seen 1, done 0, places (log 2, offset 7); in memory held[0] = owner, end of lease
    confirm   done 1, and the row leaves the memory
    claim     of the copy: the row is read, its place is another: REPLAYED
"""

from __future__ import annotations

import asyncio
import json
import math
import sqlite3
import struct
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock
from mqauth.errors import Cause, T, Unavailable, require
from mqauth.logs import emit
from mqauth.replay.rules import (
    FORGOT,
    ClaimRequest,
    ClaimStatus,
    Entry,
    MemoryLost,
    judge,
)
from mqauth.stores.sqlite_file import SHARE, SQLiteFile
from mqauth.threads import in_event_loop
from mqauth.wire.message import Place

A = TypeVar("A")
BYTES_AN_ID: Final = 80
"""On the disk, at most, with those that are over and not forgotten yet; in batches less."""
_SCHEMA: Final = """
CREATE TABLE ids (key BLOB PRIMARY KEY, expires INTEGER, kept INTEGER, seen INTEGER, done INTEGER, places BLOB)
WITHOUT ROWID;
CREATE TABLE names (number INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE age (seconds INTEGER);
INSERT INTO age VALUES (0)
"""
_WRITE: Final = "REPLACE INTO ids VALUES (?, ?, ?, ?, ?, ?)"
_GROW_OLD: Final = "UPDATE age SET seconds = ?"
_BITS: Final = (
    5  # a row has at most 2 ** 5 messages, so that it is always far smaller than a page
)
_PLACE: Final = struct.Struct(
    ">Iq"
)  # the number of a log, from 1, and an offset; zeros for no place
_LOOK: Final = 1000  # rows that are looked at while claims wait: a millisecond or two
_LAST: Final = b"\xff" * 32  # after every key


@dataclass(slots=True, eq=False)
class _Row:
    """A row, and what is held in it.

    Attributes:
        expires: UTC seconds after which no copy can be accepted.
        kept: the file's age, in seconds, by which the same is so.
        seen, done: bits of the messages that were claimed, and are done.
        places: of each that was claimed, in the order of the bits.
        held: owner and end of the lease of each that is held in this process, by its bit.
    """

    key: bytes
    expires: int = 0
    kept: int = 0
    seen: int = 0
    done: int = 0
    places: bytes = b""
    held: dict[int, tuple[str, float]] = field(default_factory=dict)

    def start(self, bit: int) -> int:
        """Return where the place of a message starts, or would."""
        return (self.seen & ((1 << bit) - 1)).bit_count() * _PLACE.size

    def is_held_by(self, owner: str, bit: int) -> bool:
        """Tell whether an owner holds a message."""
        return bit in self.held and self.held[bit][0] == owner

    def columns(self) -> tuple[Any, ...]:
        """Return what is on the disk."""
        return self.key, self.expires, self.kept, self.seen, self.done, self.places


class FileReplayStore:
    """Remembers claims in a file, for one process; its threads and event loops may share the store.

    Args:
        path: the file, made with mode 0600, on a local disk. ``-wal`` and ``-shm`` beside it are SQLite's;
            ``.lock`` is held locked for as long as the store is open.
        clock: tells how long tokens live, and how long leases hold.

    Raises:
        ConfigurationError: another process or store has the file open, its disk is not local or cannot be written,
            or the file is damaged or something else.
    """

    # A poll of 500 in one transaction costs as much as in eight, and keeps a loop for 17 ms in place of 1.5.
    in_process: Final = True

    def __init__(self, path: str | Path, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.where = str(path)
        self._clock = clock
        self._file = SQLiteFile(Path(path), _SCHEMA, 0x6D717277)
        self._execute = self._file.connection.execute
        self._names = [
            (),
            *(
                tuple(json.loads(name))
                for (name,) in self._execute("SELECT name FROM names ORDER BY number")
            ),
        ]
        self._numbers = {name: number for number, name in enumerate(self._names)}
        ((age,),) = self._execute("SELECT seconds FROM age")
        self._opened = clock.monotonic() - age
        self._rows: dict[bytes, _Row] = {}  # those in which something is held
        self._added = 0  # ids since the thread last came by
        self._looked_at = SYSTEM_RANDOMNESS(
            16
        )  # the last key that it came to; not the first one at each start
        self._trouble: tuple[Cause, str] | None = None  # what it met
        self.lost: MemoryLost | None = None
        """What became of the file, until that is on record."""
        self.losses = 0
        """How often it was lost, since it was opened."""
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(
            target=self._tending, name=f"mqauth {path}", daemon=True
        )
        self._thread.start()

    def at_start(self) -> None:
        """Refuse a consumer in a process that was forked from the one that opened the file.

        Raises:
            ConfigurationError: it was forked.
        """
        require(self._file.is_ours, f"{self.where}: opened before a fork; {SHARE}")

    def recorded(self, lost: MemoryLost, /) -> None:
        """Take note; nothing is claimed all the same, until the file is back or this process has ended."""
        if self.lost is lost:
            self.lost = None

    def claim(self, request: ClaimRequest, /) -> ClaimStatus | Awaitable[ClaimStatus]:
        """Take or renew the lease if the table allows it.

        Returns:
            The answer; an awaitable of it in an event loop that would have to wait for the disk.

        Raises:
            Unavailable: ``replay_store_full``, or ``replay_store_unavailable``.
        """
        return self._alone(self._claim, request)

    def claim_many(
        self, requests: Sequence[ClaimRequest], /
    ) -> list[ClaimStatus] | Awaitable[list[ClaimStatus]]:
        """Claim each, in order, in one transaction; answers and errors are those of ``claim``."""
        return self._alone(self._claim_many, requests)

    def confirm(self, request: ClaimRequest, /) -> Awaitable[None] | None:
        """Make the claim done, if this owner still holds it."""
        return self.confirm_many((request,))

    def confirm_many(self, requests: Sequence[ClaimRequest], /) -> Awaitable[None] | None:
        """Make each done, in one transaction."""
        return self._alone(self._confirm_many, requests)

    def release(self, request: ClaimRequest, /) -> Awaitable[None] | None:
        """Forget the claim, if this owner still holds it."""
        return self._alone(self._release, request)

    def first_place(self, request: ClaimRequest, /) -> Place | None:
        """Return where the first delivery of an id was, ``None`` where that is not known now."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            entry = self._entry(*self._row(request))
            return None if entry is None else entry.place
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the file; further calls raise ``Unavailable``. In a child after a fork it does nothing."""
        if self._file.is_ours:
            self._closed.set()
            self._thread.join()
            with self._lock:
                self._file.close()

    def _alone(
        self, action: Callable[[A], T], given: A, *, waits: bool = False
    ) -> T | Awaitable[T]:
        """Do something while nobody else does; an event loop does not wait for that, but gets an awaitable."""
        if not self._file.is_ours:
            raise Unavailable(
                Cause.REPLAY_STORE_UNAVAILABLE,
                f"{self.where}: opened before a fork; {SHARE}",
            )
        if not self._lock.acquire(blocking=waits):
            if in_event_loop():
                return asyncio.to_thread(self._alone, action, given, waits=True)  # type: ignore[arg-type]
            self._lock.acquire()
        try:
            if self._trouble is not None:
                raise Unavailable(*self._trouble)
            return action(given)
        except sqlite3.Error as error:
            # Rows in memory may be ahead of the file now. An owner that claims again writes its row again.
            with suppress(sqlite3.Error):
                self._file.connection.rollback()
            raise Unavailable(*self._file.words(error)) from error
        finally:
            self._lock.release()

    def _claim(self, request: ClaimRequest) -> ClaimStatus:
        status, row = self._judged(request)
        if status is ClaimStatus.FRESH:
            self._execute(_WRITE, row.columns())
        return status

    def _claim_many(self, requests: Sequence[ClaimRequest]) -> list[ClaimStatus]:
        judged = [self._judged(request) for request in requests]
        taken = {row.key: row for status, row in judged if status is ClaimStatus.FRESH}
        self._write(_WRITE, [row.columns() for row in taken.values()])
        return [status for status, _ in judged]

    def _judged(self, request: ClaimRequest) -> tuple[ClaimStatus, _Row]:
        """Return what is said of a claim, and its row, which is to be written where the claim is taken."""
        row, bit = self._row(request)
        entry, now = self._entry(row, bit), self._clock.monotonic()
        status = judge(entry, request, now)
        if status is not ClaimStatus.FRESH:
            return status, row
        # Whoever takes a claim over keeps the place of the first: copies are judged by that.
        if entry is None:
            log, offset = (
                (0, 0)
                if request.place is None
                else (self._number(request.place[:3]), request.place[3])
            )
            start = row.start(bit)
            row.places = (
                row.places[:start] + _PLACE.pack(log, offset) + row.places[start:]
            )
            row.seen |= 1 << bit
            self._added += 1
        left = max(0.0, request.expires - self._clock.now())
        row.expires = max(row.expires, math.ceil(request.expires))
        row.kept = max(row.kept, math.ceil(now - self._opened + left))
        row.held[bit] = request.owner, now + request.lease
        self._rows[row.key] = row
        return status, row

    def _confirm_many(self, requests: Sequence[ClaimRequest]) -> None:
        # By row and bit, since one call may name a message twice.
        held: dict[tuple[bytes, int], _Row] = {}
        for request in requests:
            row, bit = self._row(request)
            if row.is_held_by(request.owner, bit):
                row.done |= 1 << bit
                held[row.key, bit] = row
        rows = {row.key: row for row in held.values()}.values()
        self._write(
            "UPDATE ids SET done = ? WHERE key = ?", [(row.done, row.key) for row in rows]
        )
        for (_, bit), row in held.items():
            self._let_go(row, bit)

    def _release(self, request: ClaimRequest) -> None:
        row, bit = self._row(request)
        if row.is_held_by(request.owner, bit):
            start, seen = row.start(bit), row.seen & ~(1 << bit)
            places = row.places[:start] + row.places[start + _PLACE.size :]
            if seen:
                self._execute(
                    "UPDATE ids SET seen = ?, places = ? WHERE key = ?",
                    (seen, places, row.key),
                )
            else:
                self._execute("DELETE FROM ids WHERE key = ?", (row.key,))
            row.seen, row.places = seen, places
            self._let_go(row, bit)

    def _write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        """Write rows in one transaction; a single one is a transaction by itself."""
        if len(rows) > 1:
            self._execute("BEGIN")
        self._file.connection.executemany(statement, rows)
        if len(rows) > 1:
            self._execute("COMMIT")

    def _let_go(self, row: _Row, bit: int) -> None:
        del row.held[bit]
        if not row.held:
            del self._rows[row.key]

    def _row(self, request: ClaimRequest) -> tuple[_Row, int]:
        """Return the row of an id, a new one if it has none, and its bit there."""
        key, bit, index = request.id, 0, request.index
        if index is not None:
            key, bit = (
                key[:-2] + (index >> _BITS).to_bytes(2, "big"),
                index & ((1 << _BITS) - 1),
            )
        # The number keeps scopes apart, and a single token from a batch of the same id.
        key += self._number((request.scope, index is None)).to_bytes(4, "big")
        row = self._rows.get(key)
        if row is None:
            columns = self._execute("SELECT * FROM ids WHERE key = ?", (key,)).fetchone()
            row = _Row(key) if columns is None else _Row(*columns)
        return row, bit

    def _entry(self, row: _Row, bit: int) -> Entry | None:
        """Return what is known of an id, ``None`` if it is unseen."""
        if not row.seen >> bit & 1:
            return None
        log, offset = _PLACE.unpack_from(row.places, row.start(bit))
        place: Any = (*self._names[log], offset) if log else None
        if bit in row.held:
            owner, ends = row.held[bit]
            return Entry(owner, place, ends)
        # What a process held that is dead has an owner that nobody is: owners that live are random.
        return Entry(
            None if row.done >> bit & 1 else "a process that is dead", place, -math.inf
        )

    def _number(self, name: tuple[Any, ...]) -> int:
        """Return the number of a log, or of a scope with whether it is that of single tokens."""
        number = self._numbers.get(name)
        if number is None:
            number = len(self._names)
            self._execute("INSERT INTO names VALUES (?, ?)", (number, json.dumps(name)))
            self._names.append(name)
            self._numbers[name] = number
        return number

    def _tending(self) -> None:
        while not self._closed.wait(1.0):
            self._tend()

    def _tend(self) -> None:
        """Forget some ids that are over, and sync; what goes wrong is everybody's trouble until it is over."""
        try:
            if (why := self._file.loss()) is not None:
                self._forgot(why)
                return
            added, self._added = self._added, 0
            for _ in range(1 + 8 * added // _LOOK):
                with self._lock:
                    self._forget()
            if added:
                with self._lock:
                    self._execute(
                        _GROW_OLD, (int(self._clock.monotonic() - self._opened),)
                    )
            if self._file.sync():
                with self._lock:
                    self._file.begin_anew()
                    self._execute(
                        _GROW_OLD, (int(self._clock.monotonic() - self._opened),)
                    )
            self._trouble = None
        except (OSError, sqlite3.Error) as error:
            self._trouble = self._file.words(error)

    def _forgot(self, why: str) -> None:
        """Claim nothing any more: whoever opens the file next does not find what was written to this one."""
        trouble = Cause.REPLAY_STORE_UNAVAILABLE, f"{self.where}: {why}"
        if trouble == self._trouble:
            return
        self._trouble = trouble
        self.losses += 1
        self.lost = MemoryLost(
            where=self.where, why=why, scope=None, since=None, until=self._clock.now()
        )
        emit("store.forgot", FORGOT, self.where, why)

    def _forget(self) -> None:
        """Forget what is over among the next rows, and after the last row what is held in memory."""
        after, wall, age = (
            self._looked_at,
            self._clock.now(),
            self._clock.monotonic() - self._opened,
        )
        upto = self._execute(
            "SELECT key FROM ids WHERE key > ? ORDER BY key LIMIT 1 OFFSET ?",
            (after, _LOOK - 1),
        )
        (last,) = upto.fetchone() or (_LAST,)
        self._execute(
            "DELETE FROM ids WHERE key > ? AND key <= ? AND expires < ? AND kept < ?",
            (after, last, wall, age),
        )
        self._looked_at = last
        if last == _LAST:
            self._looked_at = b""
            for row in [
                each
                for each in self._rows.values()
                if each.expires < wall and each.kept < age
            ]:
                del self._rows[row.key]
