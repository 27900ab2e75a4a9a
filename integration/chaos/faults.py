"""Parts of the world that a row lets fail: a clock that steps or hurries, a disk that is full."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from integration.keyserver import KeyServer
from mqauth.keystore.remote.fetch import ThreadRefresher
from mqauth.wire.keys import Key

FASTER: Final = 20
"""How much faster a key cache's time runs in a row: its cool-down of 30 s takes 1.5 s."""
_KIB: Final = 1024


class SteppingClock:
    """The machine's clock, whose wall time an administrator or NTP steps."""

    def __init__(self) -> None:
        self.offset = 0.0

    def now(self) -> float:
        """Return the stepped wall time."""
        return time.time() + self.offset

    def monotonic(self) -> float:
        """Return the machine's monotonic seconds, which never step."""
        return time.monotonic()


class FastClock:
    """The machine's clock, whose monotonic seconds run ``FASTER``."""

    def now(self) -> float:
        """Return the machine's wall time."""
        return time.time()

    def monotonic(self) -> float:
        """Return monotonic seconds that hurry."""
        return time.monotonic() * FASTER


def fast_refresher(condition: object, work: Callable[[], float]) -> ThreadRefresher:
    """Return a key cache's thread that sleeps by the fast clock."""
    return ThreadRefresher(condition, lambda: work() / FASTER)  # type: ignore[arg-type]


@contextmanager
def unreachable(keys: list[Key]) -> Iterator[KeyServer]:
    """Start a server of keys that is out of reach before anybody asks it."""
    with KeyServer() as server:
        server.down()
        server.serve(keys)
        yield server


class Disk(Protocol):
    """Where an audit file is, and how it fills up."""

    folder: Path

    def fill(self, pid: int) -> None:
        """Let no byte more onto it, for this process at least."""

    def free(self, pid: int) -> None:
        """Make room again."""


class SmallDisk:
    """A file system of 64 KiB: writes fail with ENOSPC. Needs the right to mount."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, _pid: int) -> None:
        """Fill the file system to its last byte."""
        filler = os.open(self.folder / "filler", os.O_WRONLY | os.O_CREAT)
        try:
            while True:
                os.write(filler, bytes(_KIB))
        except OSError:
            os.close(filler)

    def free(self, _pid: int) -> None:
        """Remove what fills it."""
        (self.folder / "filler").unlink()


class Quota:
    """A limit on the size of a process's files: writes fail with EFBIG. Needs no rights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, pid: int) -> None:
        """Let the process make no file larger than its largest one is now."""
        most = max(file.stat().st_size for file in self.folder.iterdir())
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    def free(self, pid: int) -> None:
        """Lift the limit."""
        resource.prlimit(
            pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        )


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """Mount a small disk, and unmount it at the end."""
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={64 * _KIB}", "mqauth", folder], check=True
    )
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def quota(folder: Path) -> Iterator[Quota]:
    """Make a folder whose files a process may not let grow."""
    folder.mkdir()
    yield Quota(folder)


def may_mount() -> bool:
    """Tell whether this process may mount a file system."""
    words = ["unshare", "--mount", "mount", "-t", "tmpfs", "mqauth", "/mnt"]
    try:
        return (
            os.geteuid() == 0
            and not subprocess.run(words, check=False, capture_output=True).returncode
        )
    except FileNotFoundError:
        return False
