"""The audit file: JSON lines, one hash chain a writer, on disk before the message is settled."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from mqauth import strictjson
from mqauth.audit import GENESIS, AuditRecord, chain_hash
from mqauth.errors import Cause, ConfigurationError, Unavailable

_DEPTH: Final = 8
_TAIL: Final = 64 * 1024


class AuditFile:
    """Appends records to one file, each fsynced before ``write`` returns.

    Args:
        path: the file; made with mode 0600. One writer at a time: a second is refused.
        fsync: leave at ``True`` unless losing the last records with the machine is acceptable.

    Raises:
        ConfigurationError: the file cannot be opened, another process writes it, or its last whole line
            is no record.
    """

    def __init__(self, path: str | Path, *, fsync: bool = True) -> None:
        self.path = Path(path)
        self._fsync = fsync
        self._lock = threading.Lock()
        self._file = _open_alone(self.path)
        self._head, self._end = _recover(self._file, self.path)

    def write(self, record: AuditRecord, /) -> None:
        """Append one record and make it durable.

        Raises:
            Unavailable: ``audit_unavailable``, the disk refused.
        """
        with self._lock:
            members = record.as_dict() | {"prev": self._head}
            digest = chain_hash(self._head, members)
            line = strictjson.dumps(members | {"hash": digest}) + b"\n"
            self._append(line)
            self._head, self._end = digest, self._end + len(line)

    def close(self) -> None:
        """Close the file; further writes raise ``Unavailable``."""
        with self._lock:
            self._file.close()

    def __enter__(self) -> AuditFile:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _append(self, line: bytes) -> None:
        """Write a whole line at the end of the last good one, so that a failed write leaves no torn line."""
        try:
            self._file.seek(self._end)
            self._file.truncate(self._end)
            self._file.write(line)
            self._file.flush()
            if self._fsync:
                os.fsync(self._file.fileno())
        except (OSError, ValueError) as error:
            raise Unavailable(Cause.AUDIT_UNAVAILABLE, f"{self.path}: the record was not written") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """What reading a chain found.

    Args:
        intact: every whole line follows the one before.
        records: whole lines up to the first bad one.
        first_bad: its line number, from 1.
        what: what is wrong with it; or, of an intact chain, that a crash tore its last line.
    """

    intact: bool
    records: int
    first_bad: int | None = None
    what: str | None = None


def verify_chain(path: str | Path) -> ChainReport:
    """Read an audit file and check that each record follows the one before.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    previous, number = GENESIS, 0
    for number, line in enumerate(_lines(Path(path)), 1):
        if not line.endswith(b"\n"):  # only the last line can lack it: a torn write, not tampering
            return ChainReport(intact=True, records=number - 1, what="the last line is torn")
        what, digest = _check_line(line, previous)
        if what is not None:
            return ChainReport(intact=False, records=number - 1, first_bad=number, what=what)
        previous = digest
    return ChainReport(intact=True, records=number)


def _check_line(line: bytes, previous: str) -> tuple[str | None, str]:
    """Return what is wrong with a line, if anything, and its hash."""
    try:
        members: dict[str, Any] = strictjson.loads(line, depth=_DEPTH)
        digest = members.pop("hash")
        follows = members["prev"]
        right = chain_hash(follows, members)
        exact = strictjson.dumps(members | {"hash": digest}) + b"\n" == line
    except (ValueError, KeyError, AttributeError, TypeError):
        return "no record", ""
    if digest != right or not exact:
        return "edited", ""
    return (None if follows == previous else "removed, inserted or reordered before it"), digest


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file."""
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or 'cannot be read'}") from error


def _open_alone(path: Path) -> BinaryIO:
    """Open a file for appending, locked against other writers."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or 'cannot be opened'}") from error
    file = os.fdopen(descriptor, "r+b")
    _sync_folder(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ConfigurationError(f"{path}: another process writes this audit file") from error
    return file


def _sync_folder(path: Path) -> None:
    """Make a new file's name durable too, or a crash takes the whole file."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _recover(file: BinaryIO, path: Path) -> tuple[str, int]:
    """Return the hash of the last whole line and where it ends; a torn line after a crash is cut off."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL))
    tail = file.read()
    whole = tail[: tail.rfind(b"\n") + 1]
    end = size - len(tail) + len(whole)
    if not whole:
        if size > _TAIL:
            raise ConfigurationError(f"{path}: no audit file")
        return GENESIS, 0
    last = whole[:-1].rpartition(b"\n")[2]
    try:
        head = strictjson.loads(last, depth=_DEPTH)["hash"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path}: its last line is no audit record") from error
    return str(head), end
