"""The audit file: lines of JSON, one hash chain for each writer, on disk before the message is settled.

A file that reaches its size is renamed ``NAME.000001``, ``NAME.000002`` and so on, and the chain continues in a
new file. Whoever can edit the file can also compute its chain anew, or cut off its end. Therefore the head of the
chain (how many records it has, and the hash of the last) is signed at intervals into a second file, best on
another disk or host. A head is a compact JWS with the type ``mqauth-head+jwt`` over the chain's first hash, the
number of records and the last hash.
"""

from __future__ import annotations

import atexit
import glob
import os
import re
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from mqauth.audit.chain import GENESIS, MAX_LINE, Head, chain_hash, raw_lines, read_lines
from mqauth.audit.disk import (
    LineFile,
    append_shared,
    last_line,
    last_lines,
    undone_on_error,
)
from mqauth.audit.record import AuditRecord
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import (
    Cause,
    ConfigurationError,
    Rejection,
    Unavailable,
    refusing,
    require,
)
from mqauth.logs import emit
from mqauth.threads import Closing
from mqauth.wire import jwk, jws, strict_json
from mqauth.wire.keys import Key, KeySet, SigningKey, jwk_members

HEAD_TYPE: Final = "mqauth-head+jwt"
MIN_BYTES: Final = 64 * 1024
_DEPTH: Final = 8
_BEGINS: Final = b'{"v":'
_UNREADABLE: Final = (ValueError, KeyError, TypeError, Rejection, ConfigurationError)


class HeadFile:
    """Signs the heads of a chain into a file.

    Args:
        path: the file that heads are appended to, mode 0600; several chains may share it. ``{pid}``, ``{host}``,
            ``{instance}`` in it are filled in.
        key: the private key of this instance.
        every: records between two heads; if records behind the last head are cut off, nobody notices.
        seconds: a record that comes so long after the last head is signed at once, with those before it.

    Raises:
        ConfigurationError: an interval is not positive, or the key cannot sign.
    """

    def __init__(
        self,
        path: str | Path,
        key: Key,
        *,
        every: int = 1000,
        seconds: float = 60,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        require(
            every >= 1 and seconds > 0, "every is at least 1 record, seconds more than 0"
        )
        self.path = _own(path)
        self._every = every
        self._seconds = seconds
        self._public = jwk_members(key.public_only)
        self._keys = KeySet([key])
        self._key: SigningKey = jws.LocalSigningKey(key)
        self._clock = clock
        self._tried = clock.monotonic()

    def due(self, unsigned: int) -> bool:
        """Tell whether a head is due, with so many records behind the last one."""
        return unsigned >= self._every or (
            unsigned > 0 and self._clock.monotonic() - self._tried >= self._seconds
        )

    def append(self, head: Head) -> None:
        """Sign one head and make it durable.

        Raises:
            OSError: the disk refused.
        """
        self._tried = self._clock.monotonic()
        claims = {
            "chain": head.chain,
            "records": head.records,
            "hash": head.hash,
            "iat": int(self._clock.now()),
        }
        token = jws.compact(strict_json.dumps(claims), self._key, typ=HEAD_TYPE)
        append_shared(
            self.path, strict_json.dumps({"head": token, "jwk": self._public}) + b"\n"
        )

    def recent(self) -> list[Head]:
        """Return those of the file's last hundred heads that this key signed; none if the file cannot be read."""
        heads = []
        with suppress(ConfigurationError):
            for raw in last_lines(self.path, 100):
                with suppress(*_UNREADABLE):
                    heads.append(_head(raw, self._keys))
        return heads


class AuditFile(Closing):
    """Appends records to one file, each on disk before ``write`` returns; safe to share between threads.

    Args:
        path: the file, made with mode 0600. ``{pid}``, ``{host}``, ``{instance}`` in it are filled in. It has one
            writer: a second one is refused, and so is a process that was forked from the one that opened it.
        fsync: leave at ``True``, unless the last records may be lost with the machine.
        max_bytes: size at which the file is rotated, at least 64 KiB; ``None`` means never.
        heads: where the chain's head is signed: at intervals, at rotation, at ``close``, and when the interpreter
            ends in order.

    Raises:
        ConfigurationError: the file cannot be opened, another process writes it, or its last whole line is no
            record.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fsync: bool = True,
        max_bytes: int | None = None,
        heads: HeadFile | None = None,
    ) -> None:
        require(
            max_bytes is None or max_bytes >= MIN_BYTES,
            f"max_bytes is at least {MIN_BYTES}",
        )
        self._process = os.getpid()
        self.path = _own(path)
        self._fsync = fsync
        self._max_bytes = max_bytes
        self._heads = heads
        self._lock = threading.Lock()
        self._renamed = False
        self._lines = LineFile(self.path, fsync=fsync)
        # Otherwise the lock of a file that is refused would outlive the refusal.
        with undone_on_error(self._lines.close):
            # The next record follows the last whole one; a torn line is cut off.
            line, end, torn = last_line(self.path)
            # A crash can leave the beginning of a record, or zeros. Anything else no audit file has written.
            require(
                _BEGINS.startswith(torn[: len(_BEGINS)]) or not torn.strip(b"\0"),
                f"{self.path}: no audit file",
            )
            if end < self._lines.end:
                emit(
                    "audit.torn",
                    "%s: a torn last line is cut off: %d bytes",
                    self.path,
                    self._lines.end - end,
                )
                self._lines.cut(end)
            before = rotated(self.path)
            last = self.path if line is not None or not before else before[-1]
            self._hash = (
                GENESIS
                if line is None and not before
                else _hash_of(line or last_line(last)[0], last)
            )
            self._chain, self._records, self._signed = self._counted()
        self._tried = self._signed
        # A crash may have left records unsigned.
        self._sign()
        # A service that ends in order signs its last records.
        if heads is not None:
            atexit.register(self.close)

    @property
    def where(self) -> str:
        """The file."""
        return str(self.path)

    def write(self, record: AuditRecord, /) -> None:
        """Append one record and make it durable.

        Raises:
            Unavailable: ``audit_unavailable``: the disk refused, or the file was opened by another process.
        """
        # Two writers would write at one position, and each would overwrite records of the other.
        require(
            os.getpid() == self._process,
            "opened before a fork: each process opens its own",
            self._unavailable,
        )
        with self._lock:
            with refusing(OSError, "the record was not written", self._unavailable):
                self._go_on()
                members = record.as_dict() | {"prev": self._hash}
                digest = chain_hash(self._hash, members)
                self._lines.append(strict_json.dumps(members | {"hash": digest}) + b"\n")
                self._hash, self._chain = digest, self._chain or digest
                self._records += 1
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

    def _go_on(self) -> None:
        """Begin a new file if this one is full, or if it was moved or deleted."""
        if not self._lines.in_place():
            if not self._renamed:
                emit(
                    "audit.moved",
                    "%s: somebody else moved or deleted this file; continuing in a new one",
                    self.path,
                )
        elif self._max_bytes is not None and self._lines.end >= self._max_bytes:
            self._sign()
            before = rotated(self.path)
            number = int(before[-1].suffix[1:]) + 1 if before else 1
            os.rename(self.path, self.path.with_name(f"{self.path.name}.{number:06d}"))
            # Kept until the new file is there: if that fails now, the next write finishes the rotation quietly.
            self._renamed = True
        else:
            return
        with refusing(
            ConfigurationError, "a new file cannot be begun", self._unavailable
        ):
            fresh = LineFile(self.path, fsync=self._fsync)
        with undone_on_error(fresh.close):
            require(not fresh.end, "another file stands in its place", self._unavailable)
        self._lines.close()
        self._lines, self._renamed = fresh, False

    def _sign(self) -> None:
        """Sign the head; if that fails, it is logged, and tried again at the next interval."""
        if self._heads is not None and self._records != self._signed:
            self._tried = self._records
            try:
                self._heads.append(
                    Head(chain=self._chain, records=self._records, hash=self._hash)
                )
                self._signed = self._records
            except OSError as error:
                emit(
                    "audit.head_unsigned",
                    "%s: the head was not signed: %s",
                    self._heads.path,
                    type(error).__name__,
                )

    def _counted(self) -> tuple[str, int, int]:
        """Return the chain's first hash, its number of records, and how many of them a signed head covers."""
        files = [part for part in parts(self.path) if part.exists()]
        begun = next(read_lines(files), None)
        if self._heads is None or begun is None:
            return "", 0, 0
        heads = {head.hash: head for head in self._heads.recent()}
        # Where older parts were archived, the first line that is left follows a signed head.
        before = heads.get(begun.prev)
        chain, records = (
            (begun.hash, 0) if before is None else (before.chain, before.records)
        )
        signed, unmet = (
            records,
            {head.hash for head in heads.values() if head.chain == chain},
        )
        for line in read_lines(files):
            records += 0 if line.torn else 1
            if line.hash in heads and heads[line.hash].chain == chain:
                records = signed = heads[line.hash].records
                unmet.discard(line.hash)
        gone = max(
            (head.records for head in heads.values() if head.hash in unmet), default=0
        )
        if gone > records:
            emit(
                "audit.cut",
                "%s: %d records, but a signed head covers %d: some are gone",
                self.path,
                records,
                gone,
            )
        return chain, records, signed

    def _unavailable(self, what: str) -> Unavailable:
        return Unavailable(Cause.AUDIT_UNAVAILABLE, f"{self.path}: {what}")


def read_heads(path: str | Path, keys: KeySet | None = None) -> list[Head]:
    """Return the heads of a file, each signature verified; a last line that a crash tore is ignored.

    Args:
        path: the file.
        keys: who may sign heads; by default the key that its first line names, so keep the file out of reach.

    Raises:
        ConfigurationError: the file cannot be read, or a head is not signed by one of these keys.
    """
    heads: list[Head] = []
    for number, raw in enumerate(raw_lines(Path(path)), 1):
        if not raw.endswith(b"\n") and len(raw) < MAX_LINE:
            break
        with refusing(
            _UNREADABLE, f"{path}: line {number} is no head signed by a known key"
        ):
            keys = (
                KeySet([jwk.load_key(strict_json.loads(raw, depth=_DEPTH)["jwk"])])
                if keys is None
                else keys
            )
            heads.append(_head(raw, keys))
    return heads


def rotated(path: Path) -> list[Path]:
    """Return the rotated files of an audit file, oldest first; none if its folder does not exist."""
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    before = f"{path.name}."
    ends = [name.removeprefix(before) for name in names if name.startswith(before)]
    return [
        path.with_name(before + end)
        for end in sorted(filter(str.isdecimal, ends), key=int)
    ]


def parts(path: Path) -> list[Path]:
    """Return the files of an audit file's chain, oldest first; the last is the one that is being written."""
    return [*rotated(path), path]


def with_parts(paths: Iterable[Path]) -> list[Path]:
    """Return audit files in the given order, the rotated parts of each before it, none twice."""
    given = list(paths)
    return list(
        dict.fromkeys(
            part
            for path in given
            for part in parts(path)
            if part == path or part not in given
        )
    )


def files_of(path: Path, scope: str | None = None) -> list[Path]:
    """Return the audit files that a path with placeholders stands for, of all processes, without rotated parts.

    Args:
        path: as ``[audit] file`` has it, ``{pid}``, ``{host}``, ``{instance}`` and ``{scope}`` among its text.
        scope: what stands for ``{scope}``; any, where none is known.
    """
    known = {"{scope}": "*" if scope is None else glob.escape(scope.replace("/", "_"))}
    pieces = re.split(r"(\{(?:pid|host|instance|scope)\})", str(path))
    pattern = "".join(
        known.get(piece, "*") if number % 2 else glob.escape(piece)
        for number, piece in enumerate(pieces)
    )
    paths = {Path(name) for name in glob.glob(pattern)}
    return sorted(
        path
        for path in paths
        if not (path.suffix[1:].isdecimal() and path.with_suffix("") in paths)
    )


def _own(path: str | Path) -> Path:
    """Return a path with what is this process's own in place of ``{pid}``, ``{host}`` and ``{instance}``."""
    host = os.uname().nodename
    own = {
        "{pid}": str(os.getpid()),
        "{host}": host,
        "{instance}": os.environ.get("MQAUTH_INSTANCE") or host,
    }
    return Path(
        re.sub("|".join(map(re.escape, own)), lambda match: own[match[0]], str(path))
    )


def _head(raw: bytes, keys: KeySet) -> Head:
    """Return the head in a line, once its signature is verified."""
    opened = jws.take_apart(
        str(strict_json.loads(raw, depth=_DEPTH)["head"]).encode("ascii"), typ=HEAD_TYPE
    )
    jws.verify(opened, require(keys.get(opened.kid), "an unknown key"))
    claims = strict_json.loads(opened.payload, depth=_DEPTH)
    return Head(
        chain=str(claims["chain"]),
        records=int(claims["records"]),
        hash=str(claims["hash"]),
    )


def _hash_of(line: bytes | None, path: Path) -> str:
    """Return the hash in a record's line."""
    with refusing(
        (ValueError, KeyError, TypeError), f"{path}: its last line is no audit record"
    ):
        digest = strict_json.loads(line or b"", depth=_DEPTH)["hash"]
        require(re.fullmatch("[0-9a-f]{64}", digest), "no hash", ValueError)
    return str(digest)
