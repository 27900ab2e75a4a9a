"""The audit file: JSON lines, one hash chain a writer, on disk before the message is settled.

A file that reaches its size is renamed ``NAME.000001``, ``NAME.000002`` and so on, and the chain goes on in a
new one. At intervals the head of the chain is signed into a second file, where one is given.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from pathlib import Path
from typing import BinaryIO, Final

from mqauth import strictjson
from mqauth.audit import GENESIS, AuditRecord, chain_hash
from mqauth.auditchain import Head, raw_lines
from mqauth.audithead import HeadFile
from mqauth.errors import Cause, ConfigurationError, Unavailable

_LOG: Final = logging.getLogger("mqauth.audit")
_DEPTH: Final = 8
_TAIL: Final = 64 * 1024
_CHUNK: Final = 1 << 20
MIN_BYTES: Final = 64 * 1024


class AuditFile:
    """Appends records to one file, each on disk before ``write`` returns.

    Args:
        path: the file, made with mode 0600; ``{pid}`` in its name is the process id. One writer at a time:
            a second is refused.
        fsync: leave at ``True`` unless losing the last records with the machine is acceptable.
        max_bytes: size at which the file is rotated, at least 64 KiB; ``None`` is never.
        heads: where the chain's head is signed at intervals and at ``close``.

    Raises:
        ConfigurationError: the file cannot be opened, another process writes it, or its last whole line
            is no record.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fsync: bool = True,
        max_bytes: int | None = None,
        heads: HeadFile | None = None,
    ) -> None:
        if max_bytes is not None and max_bytes < MIN_BYTES:
            raise ConfigurationError(f"max_bytes is at least {MIN_BYTES}")
        self.path = Path(str(path).replace("{pid}", str(os.getpid())))
        self._fsync = fsync
        self._max_bytes = max_bytes
        self._heads = heads
        self._lock = threading.Lock()
        self._file = _open_alone(self.path)
        try:
            self._head, self._end = self._recovered()
            self._chain, self._records = ("", 0) if heads is None else _counted(self._parts())
        except ConfigurationError:
            self._file.close()  # or its lock outlives the refusal
            raise
        self._signed = self._records

    def write(self, record: AuditRecord, /) -> None:
        """Append one record and make it durable.

        Raises:
            Unavailable: ``audit_unavailable``, the disk refused.
        """
        with self._lock:
            if self._max_bytes is not None and self._end >= self._max_bytes:
                self._rotate()
            members = record.as_dict() | {"prev": self._head}
            digest = chain_hash(self._head, members)
            line = strictjson.dumps(members | {"hash": digest}) + b"\n"
            self._append(line)
            self._head, self._end = digest, self._end + len(line)
            self._chain = self._chain or digest
            self._records += 1
            if self._heads is not None and self._records - self._signed >= self._heads.every:
                self._sign()

    def close(self) -> None:
        """Sign the head and close the file; further writes raise ``Unavailable``."""
        with self._lock:
            if not self._file.closed:
                self._sign()
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

    def _rotate(self) -> None:
        """Rename the full file and go on in a new one, whose first record follows the last of the old."""
        done = rotated(self.path)
        number = int(done[-1].suffix[1:]) + 1 if done else 1
        try:
            os.rename(self.path, self.path.with_name(f"{self.path.name}.{number:06d}"))
            fresh = _open_alone(self.path)
        except (OSError, ConfigurationError) as error:
            raise Unavailable(Cause.AUDIT_UNAVAILABLE, f"{self.path}: cannot be rotated") from error
        self._file.close()
        self._file, self._end = fresh, 0

    def _sign(self) -> None:
        """Sign the head; a second file that refuses is loud, and the next record tries again."""
        if self._heads is None or self._records == self._signed:
            return
        try:
            self._heads.append(Head(chain=self._chain, records=self._records, hash=self._head))
            self._signed = self._records
        except OSError as error:
            _LOG.error("%s: the head was not signed: %s", self._heads.path, type(error).__name__)

    def _recovered(self) -> tuple[str, int]:
        """Return the hash the next record follows and where it goes; an empty file goes on from a rotated one."""
        head, end = _last_hash(self._file, self.path)
        done = rotated(self.path)
        if head != GENESIS or not done:
            return head, end
        with done[-1].open("rb") as file:
            return _last_hash(file, done[-1])[0], 0

    def _parts(self) -> list[Path]:
        """Return every file of this chain, in order."""
        return [*rotated(self.path), self.path]


def rotated(path: Path) -> list[Path]:
    """Return the rotated files of an audit file, oldest first; ``mqauth audit verify`` takes them in order."""
    found = (part for part in path.parent.glob(f"{path.name}.*") if part.suffix[1:].isdigit())
    return sorted(found, key=lambda part: int(part.suffix[1:]))


def _counted(parts: list[Path]) -> tuple[str, int]:
    """Return the first hash of a chain and how many whole lines it has."""
    chain, records = "", 0
    for part in parts:
        first = next(iter(raw_lines(part)), b"")
        chain = chain or (_hash_of(first[:-1], part) if first.endswith(b"\n") else "")
        with part.open("rb") as file:
            while chunk := file.read(_CHUNK):
                records += chunk.count(b"\n")
    return chain, records


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


def _last_hash(file: BinaryIO, path: Path) -> tuple[str, int]:
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
    return _hash_of(whole[:-1].rpartition(b"\n")[2], path), end


def _hash_of(line: bytes, path: Path) -> str:
    """Return the hash a line carries."""
    try:
        return str(strictjson.loads(line, depth=_DEPTH)["hash"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path}: its last line is no audit record") from error
