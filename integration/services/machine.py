"""What this machine has and may install: commands, Debian packages, ports, the cache folder, Docker."""

from __future__ import annotations

import fcntl
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

LOOPBACK = "127.0.0.1"
for _folder in (
    "/usr/sbin",
    "/sbin",
):  # debootstrap and chroot are there, where Debian's users do not look
    if _folder not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] += os.pathsep + _folder
_POLICY = Path("/usr/sbin/policy-rc.d")
_UNPRIVILEGED_PORTS = range(
    20_000, 32_000
)  # below the kernel's ephemeral range: no client socket takes one


class UnavailableError(RuntimeError):
    """A service cannot be had on this machine; the message says what to install."""


class CommandError(RuntimeError):
    """A command ended with an error or did not end in time; the message has the end of its output."""


def say(line: str) -> None:
    """Print a progress line on standard error at once."""
    print(line, file=sys.stderr, flush=True)


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    stderr: bool = True,
) -> str:
    """Return what a command printed, with its standard error mixed in unless told otherwise."""
    words = " ".join(argv)
    try:
        process = subprocess.Popen(
            argv, env=env, text=True, errors="replace", start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if stderr else subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError as missing:
        raise CommandError(f"{argv[0]}: not found") from missing
    with process:
        try:
            printed, errors = process.communicate(timeout=timeout)
        except BaseException as broken_off:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with all that it started
            if isinstance(broken_off, subprocess.TimeoutExpired):
                raise CommandError(
                    f"{words}: no end within {timeout:g} s"
                ) from broken_off
            raise
    if process.returncode:
        tail = "\n".join((printed + (errors or "")).splitlines()[-15:])
        raise CommandError(f"{words}: exit code {process.returncode}\n{tail}")
    return printed


def cache_folder() -> Path:
    """Return mqauth's folder in the user's cache, created if need be."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(home) / "mqauth"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock that any other run of this user waits for."""
    with (cache_folder() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetched(name: str, fetch: Callable[[Path], None], *, what: str) -> Path:
    """Return a folder of the cache, filled on first use; where that fails nothing of it is left.

    Args:
        name: the folder's.
        fetch: fills an empty folder.
        what: it brings, in the line that says so and in errors.

    Raises:
        UnavailableError: it cannot be had.
    """
    folder = cache_folder() / name
    with locked(name):
        if folder.is_dir():
            return folder
        say(f"fetching {what} to {folder.parent}: once")
        filling = Path(
            tempfile.mkdtemp(prefix=f"{name}-", suffix=".fetch", dir=folder.parent)
        )
        try:
            fetch(filling)
            filling.rename(folder)
        except CommandError as failed:
            raise UnavailableError(f"{what} cannot be had\n{failed}") from failed
        finally:
            shutil.rmtree(filling, ignore_errors=True)
    return folder


class Port:
    """A free loopback port that no other run of this user takes until it is released."""

    def __init__(self, preferred: int | None = None) -> None:
        candidates = [preferred] if preferred else []
        candidates += random.sample(_UNPRIVILEGED_PORTS, 200)
        for number in candidates:
            if self._claim(number):
                self.number = number
                return
        raise UnavailableError(
            f"no free port on {LOOPBACK} among {len(candidates)} tried"
        )

    def _claim(self, number: int) -> bool:
        folder = cache_folder() / "ports"
        folder.mkdir(exist_ok=True)
        file = (folder / str(number)).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another run may have released the port, and removed this file, between open and lock.
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(file.name)):
                raise OSError
            with socket.socket() as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind((LOOPBACK, number))
        except OSError:
            file.close()
            return False
        self._lock = file
        return True

    def release(self) -> None:
        """Give the port back."""
        with suppress(FileNotFoundError):
            Path(self._lock.name).unlink()
        self._lock.close()


def is_root() -> bool:
    """Tell whether packages may be installed."""
    return os.geteuid() == 0


def debian_candidate(package: str) -> tuple[int, ...]:
    """Return the version that apt would install, empty where there is none."""
    if not shutil.which("apt-cache"):
        return ()
    pattern = r"Candidate: (?:\d+:)?(\d+(?:\.\d+)*)"
    found = re.search(pattern, run(["apt-cache", "policy", package], timeout=60))
    if not found and is_root():
        update_package_lists()
        found = re.search(pattern, run(["apt-cache", "policy", package], timeout=60))
    return tuple(int(part) for part in found[1].split(".")) if found else ()


@cache
def update_package_lists() -> None:
    """Refresh apt's lists, once per run; where some source fails, the others are refreshed."""
    with locked("apt"), suppress(CommandError):
        run(["apt-get", "update", "-q"], timeout=300)


def install(*packages: str, why: str) -> None:
    """Install Debian packages, or say which ones to install where that is not allowed."""
    names = " ".join(packages)
    if not shutil.which("apt-get"):
        raise UnavailableError(f"{why}: install it (on Debian: apt-get install {names})")
    if not is_root():
        raise UnavailableError(f"{why}: as root, run apt-get install {names}")
    say(f"installing {names}: {why}")
    try:
        update_package_lists()
        with locked("apt"), _no_service_started():
            run(
                ["apt-get", "install", "-y", "-q", "--no-install-recommends",
                 "-o", "DPkg::Lock::Timeout=300", *packages],
                timeout=900, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            )  # fmt: skip
    except CommandError as failed:
        raise UnavailableError(
            f"{why}: apt-get install {names} failed\n{failed}"
        ) from failed


@contextmanager
def _no_service_started() -> Iterator[None]:
    """Keep a package's own service from being started by its installation."""
    ours = False
    if not _POLICY.exists():
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
        ours = True
    try:
        yield
    finally:
        if ours:
            _POLICY.unlink(missing_ok=True)


@cache
def docker_answers() -> bool:
    """Tell whether a Docker engine and its Compose plugin answer."""
    if not shutil.which("docker"):
        return False
    try:
        run(["docker", "info"], timeout=20)
        run(["docker", "compose", "version"], timeout=20)
    except CommandError:
        return False
    return True
