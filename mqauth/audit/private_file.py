"""Files of mode 0600 that a service needs later; one that root makes gets the owner of its folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_MODE: Final = 0o600
_MAKE: Final = os.O_CREAT | os.O_EXCL


def open_private(path: Path, flags: int) -> int:
    """Open a file and return its descriptor; a missing one is made with mode 0600.

    One that root makes gets the user and group of its folder, so that a command run once by root does not lock
    the service out.

    Args:
        path: the file.
        flags: those of ``os.open``, without ``O_CREAT``; ``O_CLOEXEC`` is added.

    Raises:
        OSError: the system refused.
    """
    flags |= os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | _MAKE, _MODE)
    except FileExistsError:
        return os.open(path, flags | os.O_CREAT, _MODE)
    try:
        with closed_on_error(descriptor):
            give_to_folder(descriptor, path.parent)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return descriptor


def give_to_folder(descriptor: int, folder: Path) -> None:
    """Give a file to the user and group of the folder it is in; only root can, so others change nothing.

    A file with a second name is left alone: the folder's owner may have linked another user's file there.

    Raises:
        OSError: the system refused.
    """
    if os.geteuid() != 0:
        return
    found, owner = os.fstat(descriptor), folder.stat()
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


@contextmanager
def closed_on_error(descriptor: int) -> Iterator[None]:
    """Close a descriptor if the block raises, for nobody else has it then."""
    try:
        yield
    except BaseException:
        os.close(descriptor)
        raise
