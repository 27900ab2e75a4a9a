"""Files of a keystore: written as a whole, read up to a limit, and private where they hold secrets."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mqauth.audit import disk
from mqauth.audit.disk import give_to_folder, open_private, sync_folder, undone_on_error
from mqauth.errors import file_errors, require

_LOCK: Final = ".lock"
Stamp = tuple[int, int, int, int, int]
"""Numbers of a file that change whenever its content does."""
read_bounded: Final = disk.read_bounded
"""Reads the content of a regular file, up to a limit."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, against all other processes and threads that would change it.

    Raises:
        ConfigurationError: the lock file cannot be made or opened.
    """
    with file_errors(folder / _LOCK):
        descriptor = open_private(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
        # An earlier run of root may have left a lock file that the folder's owner cannot open.
        with undone_on_error(os.close, descriptor):
            give_to_folder(descriptor, folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_whole(path: Path, raw: bytes, *, public: bool = False) -> None:
    """Write a file so that a crash leaves either the old file or the new one.

    Args:
        path: the file.
        raw: its content.
        public: everybody may read it, and other processes may write into its folder at the same time. Otherwise
            it has mode 0600, and the caller holds the lock of the folder.

    Raises:
        ConfigurationError: the system refused.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}" if public else ".writing")
    with file_errors(path), undone_on_error(temporary.unlink):
        # A crash may have left a temporary file, with a private key in it.
        temporary.unlink(missing_ok=True)
        with os.fdopen(open_private(temporary, os.O_WRONLY | os.O_EXCL | os.O_NOFOLLOW), "wb") as file:
            os.fchmod(file.fileno(), 0o644 if public else 0o600)
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path)


def refuse_writable(path: Path) -> None:
    """Refuse a file that anybody but this process's user and root may write, or put another one in place of.

    Raises:
        ConfigurationError: they may, or its mode cannot be read.
    """
    for each in (path, path.parent):
        with file_errors(each):
            status = os.stat(each)
        require(status.st_uid in (0, os.geteuid()), f"{each}: another user owns it (uid {status.st_uid})")
        # In a folder with the sticky bit nobody can replace the file of another user.
        sticky = each is not path and status.st_mode & stat.S_ISVTX
        mode = stat.S_IMODE(status.st_mode)
        require(sticky or not mode & 0o022, f"{each}: others may write it (mode {mode:04o}); chmod go-w it")


def stamp(path: Path) -> Stamp | None:
    """Return the stamp of a file, ``None`` where it cannot be read.

    Take the stamp before the content: a write in between then shows as a new stamp at the next look.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def is_missing(path: Path) -> bool:
    """Tell whether nothing exists under a path. A path that we may not look at counts as existing."""
    try:
        os.stat(path)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False
