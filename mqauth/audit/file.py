"""The audit file: JSON lines, one hash chain a writer, on disk before the message is settled.

A file that reaches its size is renamed ``NAME.000001``, ``NAME.000002`` and so on, and the chain goes on in a
new one. At intervals the head of the chain is signed into a second file, where one is given.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mqauth.audit.chain import Head, first_line, hashes
from mqauth.audit.head import HeadFile
from mqauth.audit.line_file import LineFile, last_line
from mqauth.audit.record import GENESIS, AuditRecord, chain_hash
from mqauth.errors import Cause, ConfigurationError, Unavailable
from mqauth.wire import strict_json as strictjson

_LOG: Final = logging.getLogger("mqauth.audit")
_DEPTH: Final = 8
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BEGINS: Final = b'{"v":'
MIN_BYTES: Final = 64 * 1024


class AuditFile:
    """Appends records to one file, each on disk before ``write`` returns; safe to share between threads.

    Args:
        path: the file, made with mode 0600; ``{pid}`` in its name is the process id. One writer at a time:
            a second is refused, and so is a process forked from the one that opened it.
        fsync: leave at ``True`` unless losing the last records with the machine is acceptable.
        max_bytes: size at which the file is rotated, at least 64 KiB; ``None`` is never.
        heads: where the chain's head is signed at intervals, at rotation, at ``close``, and where an
            interpreter ends in order.

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
        self._process = os.getpid()
        self.path = Path(str(path).replace("{pid}", str(self._process)))
        self._fsync = fsync
        self._max_bytes = max_bytes
        self._heads = heads
        self._lock = threading.Lock()
        self._renamed = False
        self._lines = LineFile(self.path, fsync=fsync)
        try:
            self._hash = self._recovered()
            self._chain, self._records, self._signed = self._counted()
        except ConfigurationError:
            self._lines.close()  # or its lock outlives the refusal
            raise
        self._tried = self._signed
        self._sign()  # over what a crash left unsigned
        if heads is not None:
            atexit.register(self.close)  # a service that ends in order signs what it wrote last

    def write(self, record: AuditRecord, /) -> None:
        """Append one record and make it durable.

        Raises:
            Unavailable: ``audit_unavailable``, the disk refused, or the file was opened by another process.
        """
        if os.getpid() != self._process:
            raise self._unavailable("opened before a fork: each process opens its own")
        with self._lock:
            try:
                self._go_on()
                self._append(record)
            except OSError as error:
                raise self._unavailable("the record was not written") from error
            if self._heads is not None and self._heads.due(self._records - self._tried):
                self._sign()

    def close(self) -> None:
        """Sign the head and close the file; further writes raise ``Unavailable``."""
        with self._lock:
            if not self._lines.closed:
                if os.getpid() == self._process:
                    self._sign()
                self._lines.close()
                atexit.unregister(self.close)

    def __enter__(self) -> AuditFile:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _append(self, record: AuditRecord) -> None:
        """Write a record as the chain's next."""
        members = record.as_dict() | {"prev": self._hash}
        digest = chain_hash(self._hash, members)
        self._lines.append(strictjson.dumps(members | {"hash": digest}) + b"\n")
        self._hash = digest
        self._chain = self._chain or digest
        self._records += 1

    def _go_on(self) -> None:
        """Begin a new file where this one is full, or is no longer where it was."""
        if not self._lines.in_place():
            if not self._renamed:
                _LOG.error("%s: somebody else moved or deleted this file; going on in a new one", self.path)
        elif self._max_bytes is not None and self._lines.end >= self._max_bytes:
            self._sign()
            os.rename(self.path, _next_part(self.path))
            self._renamed = True
        else:
            return
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Go on in a new file, whose first record follows the last of the old."""
        try:
            fresh = LineFile(self.path, fsync=self._fsync)
        except ConfigurationError as error:
            raise self._unavailable("a new file cannot be begun") from error
        if fresh.end:
            fresh.close()
            raise self._unavailable("another file stands in its place")
        self._lines.close()
        self._lines, self._renamed = fresh, False

    def _sign(self) -> None:
        """Sign the head; a second file that refuses is loud, and tried again at the next interval."""
        if self._heads is None or self._records == self._signed:
            return
        self._tried = self._records
        try:
            self._heads.append(Head(chain=self._chain, records=self._records, hash=self._hash))
            self._signed = self._records
        except OSError as error:
            _LOG.error("%s: the head was not signed: %s", self._heads.path, type(error).__name__)

    def _recovered(self) -> str:
        """Return the hash the next record follows; a torn line is cut, an empty file follows a rotated one."""
        line, end, torn = last_line(self.path)
        if not _BEGINS.startswith(torn[: len(_BEGINS)]) and torn.strip(b"\0"):
            raise ConfigurationError(f"{self.path}: no audit file")
        if end < self._lines.end:
            _LOG.warning("%s: a torn last line is cut off: %d bytes", self.path, self._lines.end - end)
            self._lines.cut(end)
        if line is None and (done := rotated(self.path)):
            return _hash_of(last_line(done[-1])[0], done[-1])
        return GENESIS if line is None else _hash_of(line, self.path)

    def _counted(self) -> tuple[str, int, int]:
        """Return the chain's first hash, how many records it has, and how many of them a signed head covers."""
        files = [part for part in parts(self.path) if part.exists()]
        begun = first_line(files)
        if self._heads is None or begun is None:
            return "", 0, 0
        heads = {head.hash: head for head in self._heads.recent()}
        before = heads.get(begun.prev)  # where older parts are archived
        chain, records = (begun.hash, 0) if before is None else (before.chain, before.records)
        signed, unmet = records, {head.hash for head in heads.values() if head.chain == chain}
        for own in hashes(files):
            records += 1
            if own in heads and heads[own].chain == chain:
                records = signed = heads[own].records
                unmet.discard(own)
        self._mourn(records, (head for head in heads.values() if head.hash in unmet))
        return chain, records, signed

    def _mourn(self, records: int, unmet: Iterable[Head]) -> None:
        """Say loudly that records are gone which a signed head covers."""
        gone = max((head.records for head in unmet), default=0)
        if gone > records:
            _LOG.critical("%s: %d records, but a signed head covers %d: some are gone", self.path, records, gone)

    def _unavailable(self, what: str) -> Unavailable:
        return Unavailable(Cause.AUDIT_UNAVAILABLE, f"{self.path}: {what}")


def rotated(path: Path) -> list[Path]:
    """Return the rotated files of an audit file, oldest first; none where there is no such folder."""
    if not path.parent.is_dir():
        return []
    found = (
        (name[len(path.name) + 1 :], name) for name in os.listdir(path.parent) if name.startswith(f"{path.name}.")
    )
    return [path.with_name(name) for _, name in sorted((int(end), name) for end, name in found if end.isdecimal())]


def parts(path: Path) -> list[Path]:
    """Return the files of an audit file's chain, oldest first; the one that is being written is the last."""
    return [*rotated(path), path]


def with_parts(paths: Iterable[Path]) -> list[Path]:
    """Return audit files in the order given, the rotated parts of each before it, none twice."""
    given = list(paths)
    found = (part for path in given for part in parts(path) if part == path or part not in given)
    return list(dict.fromkeys(found))


def _next_part(path: Path) -> Path:
    """Return the name a full file is given."""
    done = rotated(path)
    number = int(done[-1].suffix[1:]) + 1 if done else 1
    return path.with_name(f"{path.name}.{number:06d}")


def _hash_of(line: bytes | None, path: Path) -> str:
    """Return the hash a line carries."""
    try:
        found = strictjson.loads(line or b"", depth=_DEPTH)["hash"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path}: its last line is no audit record") from error
    if not isinstance(found, str) or not _DIGEST.fullmatch(found):
        raise ConfigurationError(f"{path}: its last line is no audit record")
    return found
