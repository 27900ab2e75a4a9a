"""A SQLite database on a local disk that one process has open, and no other.

A write is in SQLite's log (WAL, https://sqlite.org/wal.html) before the call returns, so that a process that is
killed loses nothing. The disk syncs it when ``sync`` tells it to, which is for a thread to call: until then a
power cut may take the last writes back.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Final

from mqauth.audit.disk import open_private, sync_folder, undone_on_error
from mqauth.errors import Cause, file_errors, refusing, require

SHARE: Final = "several processes (prefork, replicas) share a store on Redis or Valkey"
MOUNTS: Final = Path("/proc/self/mountinfo")
_NETWORK: Final = frozenset(
    (
        "9p",
        "afs",
        "ceph",
        "cifs",
        "fuse.glusterfs",
        "fuse.sshfs",
        "gfs2",
        "lustre",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb3",
    )
)
_FRAMES: Final = 4096  # pages in the log, 16 MiB, beyond which it is to begin anew
_DAMAGE: Final = (
    "damaged. Move it away, with its -wal and -shm, to begin a new one, which does not know what was handled: a "
    "copy of a message whose token is still good would be handled again"
)
_GONE: Final = (
    "deleted or moved while it was open. Put it back, or restart this process to begin a new one, which does not"
    " know what was handled"
)
_OTHER: Final = "replaced while it was open. Put the old one back, or restart this process to go on with the new"
_MAGIC: Final = b"SQLite format 3\0"


class SQLiteFile:
    """A database that is locked, whole, and ours.

    Args:
        path: the file, made with mode 0600. Beside it stand ``-wal`` and ``-shm`` of SQLite, and ``.lock``.
        schema: SQL that makes the tables of a new file.
        application: what ``PRAGMA application_id`` tells of files of this kind.

    Raises:
        ConfigurationError: the file is open already, its disk is not local or cannot be written, or it is damaged
            or another program's.

    Attributes:
        connection: for one thread at a time.
    """

    def __init__(self, path: Path, schema: str, application: int) -> None:
        # A link is another name for the file, but its lock would be another one.
        self.path = path = Path(os.path.realpath(path))
        self._process = os.getpid()
        self._damaged = False
        with file_errors(path):
            # Whether a process on another machine is dead no lock can prove.
            device = path.parent.stat().st_dev
            with suppress(FileNotFoundError):
                for line in MOUNTS.read_text("utf-8", "surrogateescape").splitlines():
                    mount, _, file_system = line.partition(" - ")
                    kind = file_system.partition(" ")[0]
                    if mount.split(" ")[2] == f"{os.major(device)}:{os.minor(device)}":
                        require(
                            kind not in _NETWORK,
                            f"{path}: a store needs a local disk, and this is {kind}; {SHARE}",
                        )
            # First the lock: what a living process has open is not looked at. SQLite's own locks (``fcntl``) are
            # lost when the process closes any descriptor of their file. So the lock is one of another kind
            # (``flock``), on another file, and the file's own descriptor is kept until SQLite has closed it.
            lock = open_private(path.with_name(f"{path.name}.lock"), os.O_RDWR)
            with undone_on_error(os.close, lock):
                with refusing(
                    BlockingIOError,
                    f"{path}: already open, here or in another process; {SHARE}",
                ):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file = open_private(path, os.O_RDWR)
                with undone_on_error(os.close, file):
                    sync_folder(path)
            self._descriptors = lock, file
        # The connections are closed first, also of a file that is refused.
        self._opened = ExitStack()
        for descriptor in self._descriptors:
            self._opened.callback(os.close, descriptor)
        with (
            undone_on_error(self._opened.close),
            refusing(sqlite3.Error, lambda error: self.words(error)[1]),
        ):
            self.connection, self._syncing = self._connect(), self._connect()
            execute = self.connection.execute
            if execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                self.connection.executescript(
                    f"BEGIN; {schema}; PRAGMA application_id = {application}; COMMIT"
                )
            (application_id,) = execute("PRAGMA application_id").fetchone()
            require(application_id == application, f"{path}: another program's file")
            # A page that is damaged is to be met here, and not while messages are handled.
            require(
                execute("PRAGMA quick_check(1)").fetchone() == ("ok",),
                f"{path}: {_DAMAGE}",
            )
        self._size = os.fstat(file).st_size
        _OPEN.append(self)

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that opened it, and no child after a fork."""
        return os.getpid() == self._process

    def sync(self) -> bool:
        """Have the disk sync the log, and copy it to its place in the file; ``connection`` may write meanwhile.

        Returns:
            Whether the log is so long that it is to begin anew.

        Raises:
            OSError, sqlite3.Error: the disk refused.
        """
        _, frames, _ = self._syncing.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        self._size = max(self._size, os.fstat(self._descriptors[1]).st_size)
        if frames > _FRAMES:
            # What the next step would have to wait for is done here, while claims go on.
            os.fsync(self._descriptors[1])
        return bool(frames > _FRAMES)

    def begin_anew(self) -> None:
        """Let the next write begin the log anew; nobody may write meanwhile. That write syncs the log, too."""
        self._syncing.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()

    def words(self, error: Exception) -> tuple[Cause, str]:
        """Return the cause and the detail of a deferral by an error of SQLite or of the system."""
        code = getattr(error, "sqlite_errorcode", 0)
        full = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
        if code in full or getattr(error, "errno", 0) == errno.ENOSPC:
            return Cause.REPLAY_STORE_FULL, f"{self.path}: the disk is full"
        damaged = code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        self._damaged = self._damaged or damaged
        return (
            Cause.REPLAY_STORE_UNAVAILABLE,
            f"{self.path}: {_DAMAGE if damaged else error}",
        )

    def loss(self) -> str | None:
        """Return how the file lost what was written to it; ``None`` where it is as it was left.

        Raises:
            OSError: the file cannot be looked at.
        """
        if self._damaged:
            return _DAMAGE

        # SQLite never makes it shorter. It has pages in memory, and may meet the damage much later.
        file = self._descriptors[1]
        status = os.fstat(file)
        if status.st_size < self._size or os.pread(file, len(_MAGIC), 0) != _MAGIC:
            self._damaged = True
            return _DAMAGE

        # The name may have been taken from it, or given to another file.
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            return _GONE
        return None if os.path.samestat(status, named) else _OTHER

    def close(self) -> None:
        """Copy the log to its place, and close the file, while nobody uses it; in a forked child do nothing."""
        if self.is_ours and self in _OPEN:
            _OPEN.remove(self)
            self._opened.close()

    def _connect(self) -> sqlite3.Connection:
        """Return a connection that waits for nobody, and copies the log only when it is told to."""
        connection = self._opened.enter_context(
            closing(
                sqlite3.connect(
                    self.path, timeout=0, isolation_level=None, check_same_thread=False
                )
            )
        )
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        require(mode == "wal", f"{self.path}: SQLite cannot keep a log (WAL) here")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        return connection


_OPEN: Final[list[SQLiteFile]] = []


def _forked() -> None:
    """Let a child go of the locks of its parent, or they would outlive that."""
    while _OPEN:
        os.close(_OPEN.pop()._descriptors[0])


os.register_at_fork(after_in_child=_forked)
