"""Files on disk: private ones, files that are written as a whole, and files of lines, each whole or absent.

A private file has mode 0600. One that root makes gets the owner of its folder, so that a command that root ran
once does not lock a service out. A ``LineFile`` has one writer, and its lines are on disk before ``append``
returns.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from mqauth.clock import SYSTEM_RANDOMNESS
from mqauth.errors import file_errors, refusing, require
from mqauth.logs import emit

_MODE: Final = 0o600
_FLAGS: Final = os.O_RDWR | os.O_APPEND
_BLOCK: Final = 64 * 1024


def open_private(path: Path, flags: int) -> int:
    """Open a file and return its descriptor; make it with mode 0600 if it is missing.

    Args:
        path: the file.
        flags: those of ``os.open``, without ``O_CREAT``; ``O_CLOEXEC`` is added.

    Raises:
        OSError: the system refused.
    """
    flags |= os.O_CLOEXEC
    # Made exclusively first, because only a file that is known to be new is given to the folder's owner.
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, _MODE)
    except FileExistsError:
        return os.open(path, flags | os.O_CREAT, _MODE)
    with undone_on_error(path.unlink, True), undone_on_error(os.close, descriptor):
        give_to_folder(descriptor, path.parent)
    return descriptor


def give_to_folder(descriptor: int, folder: Path) -> None:
    """Give a file to the user and group of its folder; does nothing unless root runs it.

    Raises:
        OSError: the system refused.
    """
    if os.geteuid() == 0:
        current, owner = os.fstat(descriptor), folder.stat()
        # With a second name it may be another user's file, which the folder's owner has linked there.
        if stat.S_ISREG(current.st_mode) and current.st_nlink == 1:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)


def read_bounded(
    path: Path, limit: int, *, private: bool = False, own: bool = False
) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file.
        limit: the most bytes it may have.
        private: refuse a file that its group or others may read or write.
        own: refuse a file of another user.

    Raises:
        ConfigurationError: the file cannot be read, is too large, or is not as private as it must be.
    """
    with file_errors(path):
        # Without O_NONBLOCK the open of a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            mode, user = stat.S_IMODE(status.st_mode), status.st_uid
            require(stat.S_ISREG(status.st_mode), f"{path}: not a regular file")
            require(
                not private or not mode & 0o077,
                f"{path}: private, but open to others (mode {mode:04o}); chmod 600 it",
            )
            require(
                not own or user == os.geteuid(),
                f"{path}: belongs to user {user}, not to {os.geteuid()}",
            )
            raw = file.read(limit + 1)
    require(len(raw) <= limit, f"{path}: over {limit} bytes")
    return raw


@contextmanager
def undone_on_error(undo: Callable[..., object], *arguments: Any) -> Iterator[None]:
    """Call a function if the block raises, whatever it raises; an ``OSError`` of the function is ignored."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            undo(*arguments)
        raise


class LineFile:
    """Appends lines to a file that it holds locked against other writers.

    Args:
        path: the file; made with mode 0600 if it is missing.
        fsync: wait for the disk at every line.

    Raises:
        ConfigurationError: the file cannot be opened, or another process writes it.
    """

    def __init__(self, path: Path, *, fsync: bool = True) -> None:
        self.path = path
        self._fsync = fsync
        self._torn = False
        with file_errors(path):
            self._descriptor = open_private(path, _FLAGS)
            busy = f"{path}: another process writes it: stop that, or put {{pid}} into the name"
            with undone_on_error(os.close, self._descriptor):
                with refusing(BlockingIOError, busy):
                    fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                sync_folder(path)
        self.end = os.fstat(self._descriptor).st_size

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return self._descriptor < 0

    def append(self, line: bytes) -> None:
        """Write a whole line; a write that fails leaves nothing behind.

        Raises:
            OSError: the disk refused, or the file is closed.
        """
        size = os.fstat(self._descriptor).st_size
        if size > self.end and self._torn:
            os.ftruncate(self._descriptor, self.end)
        elif size != self.end:
            # Foreign lines are kept: they are evidence, and the chain shows that they do not belong.
            emit(
                "audit.changed",
                "%s: somebody else changed this file: %d bytes, not %d",
                self.path,
                size,
                self.end,
            )
            self.end = size
        self._torn = True
        _append(self._descriptor, line, self.end, fsync=self._fsync)
        self._torn = False
        self.end += len(line)

    def in_place(self) -> bool:
        """Tell whether the path still names this file, which may have been moved or deleted.

        Raises:
            OSError: one of them cannot be looked at, or the file is closed.
        """
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def cut(self, end: int) -> None:
        """Have the bytes behind ``end`` removed by the next append."""
        self.end, self._torn = end, True

    def close(self) -> None:
        """Close the file and release its lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def append_shared(path: Path, line: bytes) -> None:
    """Append a line to a file that several processes append to; a line that a crash tore is removed first.

    Raises:
        OSError: the disk refused.
    """
    with os.fdopen(open_private(path, _FLAGS), "rb+", buffering=0) as file:
        descriptor = file.fileno()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        end = last_whole(descriptor)
        if end != os.fstat(descriptor).st_size:
            os.ftruncate(descriptor, end)
        if end == 0:
            sync_folder(path)
        _append(descriptor, line, end)


def _append(descriptor: int, line: bytes, end: int, *, fsync: bool = True) -> None:
    # A disk that fills up may take a part of the line, which is removed again: a torn line looks like tampering.
    left = line
    with undone_on_error(os.ftruncate, descriptor, end):
        while left:
            left = left[os.write(descriptor, left) :]
        if fsync:
            os.fsync(descriptor)


def last_whole(descriptor: int) -> int:
    """Return the position at which the last whole line of a file ends."""
    blocks = _backwards(descriptor, os.fstat(descriptor).st_size)
    return next(
        (start + block.rindex(b"\n") + 1 for start, block in blocks if b"\n" in block), 0
    )


def last_line(path: Path) -> tuple[bytes | None, int, bytes]:
    """Return a file's last whole line, the position at which it ends, and the beginning of a torn line behind it.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    with file_errors(path), path.open("rb", buffering=0) as file:
        end = last_whole(file.fileno())
        torn = os.pread(file.fileno(), 64, end)
    return next(iter(last_lines(path, 1)), None), end, torn


def last_lines(path: Path, count: int) -> list[bytes]:
    """Return the last whole lines of a file, oldest first, and read no more of it than needed.

    Args:
        path: the file.
        count: how many; fewer are returned if lines are longer than 64 KiB.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    tail, complete = b"", True
    with file_errors(path), path.open("rb", buffering=0) as file:
        for start, block in _backwards(file.fileno(), last_whole(file.fileno())):
            tail = block + tail
            complete = start == 0
            if tail.count(b"\n") > count or len(tail) > (count + 1) * _BLOCK:
                break
    return [line + b"\n" for line in tail.split(b"\n")[0 if complete else 1 : -1]][
        -count:
    ]


def sync_folder(path: Path) -> None:
    """Make the name of a new or renamed file durable; without it, a crash could take the whole file.

    Raises:
        OSError: the disk refused.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _backwards(descriptor: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks of a file before ``end``, the last one first, each with the position where it starts."""
    for start in reversed(range(0, end, _BLOCK)):
        yield start, os.pread(descriptor, min(_BLOCK, end - start), start)


_LOCK: Final = ".lock"
Stamp = tuple[int, int, int, int, int]
"""Numbers of a file that change whenever its content does."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, against all other processes and threads that would change it.

    Raises:
        ConfigurationError: the lock file cannot be made or opened.
    """
    with ExitStack() as stack:
        with file_errors(folder / _LOCK):
            descriptor = open_private(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            stack.callback(os.close, descriptor)
            # An earlier run of root may have left a lock file that the folder's owner cannot open.
            give_to_folder(descriptor, folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def write_whole(path: Path, raw: bytes, *, public: bool = False) -> None:
    """Write a file so that a crash leaves either the old file or the new one.

    Args:
        path: the file.
        raw: its content.
        public: everybody may read it, or whoever could read the one in whose place it comes; a link is followed,
            and other processes may write into its folder at the same time. Otherwise it has mode 0600, and the
            caller holds the lock of the folder.

    Raises:
        ConfigurationError: the system refused.
    """
    mode, before, target = _MODE, None, path
    temporary = path.with_name(".writing")
    if public:
        target = Path(os.path.realpath(path))
        temporary = target.with_name(f".{target.name}.{SYSTEM_RANDOMNESS(4).hex()}")
        with file_errors(path):
            before = None if is_missing(target) else os.stat(target)
        mode = 0o644 if before is None else stat.S_IMODE(before.st_mode)

    with file_errors(path), undone_on_error(temporary.unlink):
        # A crash may have left a temporary file, with a private key in it.
        temporary.unlink(missing_ok=True)
        with os.fdopen(
            open_private(temporary, os.O_WRONLY | os.O_EXCL | os.O_NOFOLLOW), "wb"
        ) as file:
            if before is not None:
                _give(file.fileno(), before)
            os.fchmod(file.fileno(), mode)
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target)


def _give(descriptor: int, before: os.stat_result) -> None:
    """Give a file to user and group of the one whose place it takes, as far as the system lets us."""
    with suppress(PermissionError):
        os.fchown(descriptor, before.st_uid, before.st_gid)


def refuse_writable(path: Path) -> None:
    """Refuse a file that anybody but this process's user and root may write, or put another one in place of.

    Raises:
        ConfigurationError: they may, or its mode cannot be read.
    """
    for each in (path, path.parent):
        with file_errors(each):
            status = os.stat(each)
        require(
            status.st_uid in (0, os.geteuid()),
            f"{each}: another user owns it (uid {status.st_uid})",
        )
        # In a folder with the sticky bit nobody can replace the file of another user.
        sticky = each is not path and status.st_mode & stat.S_ISVTX
        mode = stat.S_IMODE(status.st_mode)
        require(
            sticky or not mode & 0o022,
            f"{each}: others may write it (mode {mode:04o}); chmod go-w it",
        )


def stamp(path: Path) -> Stamp | None:
    """Return the stamp of a file, ``None`` where it cannot be read.

    Take the stamp before the content: a write in between then shows as a new stamp at the next look.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def is_missing(path: Path) -> bool:
    """Tell whether nothing exists under a path. A path that we may not look at counts as existing."""
    try:
        os.stat(path)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False
