"""A file of lines with one writer: a line is in it whole or not at all, and on disk before ``append`` returns."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from mqauth.audit.private_file import open_private
from mqauth.errors import ConfigurationError

_LOG: Final = logging.getLogger("mqauth.audit")
_FLAGS: Final = os.O_RDWR | os.O_APPEND
_BLOCK: Final = 64 * 1024


class LineFile:
    """Appends lines to a file it holds locked against other writers.

    Args:
        path: the file, made with mode 0600 where it is not there.
        fsync: wait for the disk at every line.

    Raises:
        ConfigurationError: the file cannot be opened, or another process writes it.
    """

    def __init__(self, path: Path, *, fsync: bool = True) -> None:
        self.path = path
        self._fsync = fsync
        self._torn = False
        self._descriptor = _open(path)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sync_folder(path)
        except OSError as error:
            self.close()
            locked = isinstance(error, BlockingIOError)
            what = "another process writes this audit file" if locked else error.strerror or "cannot be opened"
            raise ConfigurationError(f"{path}: {what}") from error
        self.end = self._size()

    @property
    def closed(self) -> bool:
        """Tell whether the file was closed."""
        return self._descriptor < 0

    def append(self, line: bytes) -> None:
        """Write a whole line; one that fails leaves nothing behind.

        Raises:
            OSError: the disk refused, or the file is closed.
        """
        self._settle_end()
        self._torn = True
        _append(self._descriptor, line, self.end, fsync=self._fsync)
        self._torn = False
        self.end += len(line)

    def in_place(self) -> bool:
        """Tell whether the path still leads to this file: it may have been moved or deleted.

        Raises:
            OSError: neither can be looked at, or the file is closed.
        """
        own = os.fstat(self._descriptor)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)

    def cut(self, end: int) -> None:
        """Take what stands behind ``end`` off, and write from there on."""
        self.end, self._torn = end, True

    def close(self) -> None:
        """Close the file and give its lock up."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _settle_end(self) -> None:
        """Take a torn line off; where somebody else cut or lengthened the file, go on behind it, loudly."""
        size = self._size()
        if size == self.end:
            return
        if self._torn and size > self.end:
            os.ftruncate(self._descriptor, self.end)
        else:
            _LOG.error("%s: somebody else changed this file: %d bytes, not %d", self.path, size, self.end)
            self.end = size
        self._torn = False

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size


def append_shared(path: Path, line: bytes) -> None:
    """Append a line to a file that several processes append to; a line a crash tore is taken off first.

    Raises:
        OSError: the disk refused.
    """
    descriptor = open_private(path, _FLAGS)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        end = last_whole(descriptor)
        if end != os.fstat(descriptor).st_size:
            os.ftruncate(descriptor, end)
        if end == 0:
            sync_folder(path)
        _append(descriptor, line, end)
    finally:
        os.close(descriptor)


def _append(descriptor: int, line: bytes, end: int, *, fsync: bool = True) -> None:
    """Write a line behind the last one; a disk that fills up may take a part of it, which is taken off again."""
    left = line
    try:
        while left:
            left = left[os.write(descriptor, left) :]
        if fsync:
            os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, end)
        raise


def last_whole(descriptor: int) -> int:
    """Return where the last whole line of a file ends."""
    end = os.fstat(descriptor).st_size
    for start, block in _backwards(descriptor, end):
        found = block.rfind(b"\n")
        if found >= 0:
            return start + found + 1
    return 0


def last_line(path: Path) -> tuple[bytes | None, int, bytes]:
    """Return a file's last whole line, where it ends, and the beginning of what stands torn behind it.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    with _reading(path) as descriptor:
        end = last_whole(descriptor)
        torn = os.pread(descriptor, 64, end)
    return next(iter(last_lines(path, 1)), None), end, torn


def last_lines(path: Path, count: int) -> list[bytes]:
    """Return the last whole lines of a file, oldest first, reading no more of it than they take.

    Args:
        path: the file.
        count: how many; a file of lines longer than 64 KiB gives fewer.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    tail, complete = b"", True
    with _reading(path) as descriptor:
        for start, block in _backwards(descriptor, last_whole(descriptor)):
            tail = block + tail
            complete = start == 0
            if tail.count(b"\n") > count or len(tail) > (count + 1) * _BLOCK:
                break
    lines = [line + b"\n" for line in tail.split(b"\n")[:-1]]
    return lines[0 if complete else 1 :][-count:]


def sync_folder(path: Path) -> None:
    """Make a new or renamed file's name durable too, or a crash takes the whole file.

    Raises:
        OSError: the disk refused.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _open(path: Path) -> int:
    try:
        return open_private(path, _FLAGS)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or 'cannot be opened'}") from error


@contextmanager
def _reading(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or 'cannot be read'}") from error
    try:
        yield descriptor
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or 'cannot be read'}") from error
    finally:
        os.close(descriptor)


def _backwards(descriptor: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks of a file before ``end``, the last one first, each with where it starts."""
    while end > 0:
        start = max(0, end - _BLOCK)
        yield start, os.pread(descriptor, end - start, start)
        end = start
