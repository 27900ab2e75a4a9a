"""Files as a keystore needs them: written whole or not at all, read bounded, and private where they must be."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mqauth.audit.disk import closed_on_error, give_to_folder, open_private
from mqauth.errors import ConfigurationError

_OTHERS: Final = 0o077
_TEMPORARY: Final = ".writing"
_LOCK: Final = ".lock"
Stamp = tuple[int, int, int, int, int]
"""What changes with a file's content."""


def make_folder(folder: Path) -> None:
    """Make a folder of mode 0700, and its parents, unless it is there.

    Raises:
        ConfigurationError: it cannot be made, or something else has its name.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(folder, error) from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against every other process and thread that would change it.

    Root gives the lock file to the folder's owner, also one that an earlier run of root left as its own.

    Raises:
        ConfigurationError: the lock file cannot be made or opened.
    """
    descriptor = _open_lock(folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_whole(path: Path, raw: bytes) -> None:
    """Write a file of mode 0600 so that a crash leaves the old one or the new one; hold the folder's lock.

    Raises:
        ConfigurationError: the disk refused.
    """
    temporary = path.parent / _TEMPORARY
    try:
        temporary.unlink(missing_ok=True)  # a crash may have left one, with a key in it
        _write_synced(temporary, raw)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise unusable(path, error) from error


def read_bounded(path: Path, limit: int, *, private: bool = False) -> bytes:
    """Return the bytes of a regular file.

    Args:
        path: the file.
        limit: most bytes it may have.
        private: refuse a file that group or others may read or write.

    Raises:
        ConfigurationError: it cannot be read, is too large, or is not as private as it must be.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hang us
        with os.fdopen(descriptor, "rb") as file:
            _check_status(path, os.fstat(descriptor), private)
            raw = file.read(limit + 1)
    except OSError as error:
        raise unusable(path, error) from error
    if len(raw) > limit:
        raise ConfigurationError(f"{path}: over {limit} bytes")
    return raw


def stamp(path: Path) -> Stamp | None:
    """Return what changes with a file's content, ``None`` where it cannot be seen.

    Take it before reading: a write during the read then shows as another stamp at the next look.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def is_missing(path: Path) -> bool:
    """Tell whether nothing has a path's name; what we may not look at counts as there, for reading it says why."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def unusable(path: Path, error: OSError) -> ConfigurationError:
    """Return a refused file operation as one line."""
    return ConfigurationError(f"{path}: {error.strerror or type(error).__name__}")


def _open_lock(folder: Path) -> int:
    """Return the descriptor of a folder's lock file, which belongs to the folder's owner."""
    path = folder / _LOCK
    try:
        descriptor = open_private(path, os.O_RDWR | os.O_NOFOLLOW)
        with closed_on_error(descriptor):
            give_to_folder(descriptor, folder)
    except OSError as error:
        raise unusable(path, error) from error
    return descriptor


def _check_status(path: Path, status: os.stat_result, private: bool) -> None:
    """Refuse what is no file, or open to others."""
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError(f"{path}: no regular file")
    mode = stat.S_IMODE(status.st_mode)
    if private and mode & _OTHERS:
        raise ConfigurationError(f"{path}: a private key open to others (mode {mode:04o}); chmod 600 it")


def _write_synced(path: Path, raw: bytes) -> None:
    """Write a new private file and wait for the disk."""
    with os.fdopen(open_private(path, os.O_WRONLY | os.O_EXCL | os.O_NOFOLLOW), "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
