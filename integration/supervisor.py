"""Services kept running for other programs: in the foreground, or by a supervisor in the background."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from integration.services import launch_all, prepare_all
from integration.services.control import close_all
from integration.services.machine import say

_UP_WITHIN = 1800.0  # the first time builds and fetches
_DOWN_WITHIN = 60.0
_OWNER = "# kept running by process "


def up(env_file: Path) -> int:
    """Start the services, write and print their variables, and keep them until a signal comes."""
    owner = _owner(env_file)
    if owner:
        say(f"already up: process {owner}, {env_file}")
        return 1
    code = 130
    try:
        prepare_all()  # what is missing is said before anything runs
        running = launch_all()
        for line in running.lines():
            say(line)
        exports = [
            f"{name}={shlex.quote(value)}"
            for name, value in running.environment().items()
        ]
        _write(env_file, exports)
        print("export", *exports, flush=True)
        code = 0
        threading.Event().wait()
    except KeyboardInterrupt:
        say("stopping")
    finally:
        if _writer(env_file) == os.getpid():
            env_file.unlink()
        close_all()
    say("nothing is left running")
    return code


def detach(env_file: Path) -> int:
    """Start a supervisor in the background and return once its services are ready."""
    if _owner(env_file):
        print(env_file.read_text(), end="")
        return 0
    log = env_file.with_name(env_file.name + ".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "integration", "up", "--env-file", str(env_file.resolve())],
            cwd=Path(__file__).resolve().parents[1], stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        ready = _until(
            lambda: _owner(env_file) == process.pid or process.poll() is not None,
            _UP_WITHIN,
        )
    except KeyboardInterrupt:
        ready = False
    if not ready or process.poll() is not None:
        with suppress(ProcessLookupError):
            process.terminate()
        process.wait()
        sys.stderr.write(log.read_text())
        return 1
    print(env_file.read_text(), end="")
    process.returncode = 0  # it goes on without us: no warning that it was not waited for
    return 0


def down(env_file: Path) -> int:
    """Stop the supervisor that wrote a file and return once its services are gone."""
    owner = _owner(env_file)
    if not owner:
        say(f"not up: {env_file}")
        return 1
    os.kill(owner, signal.SIGTERM)
    if not _until(lambda: not _alive(owner), _DOWN_WITHIN):
        say(f"process {owner} has not ended within {_DOWN_WITHIN:g} s")
        return 1
    say("nothing is left running")
    return 0


def _write(env_file: Path, exports: list[str]) -> None:
    lines = [f"{_OWNER}{os.getpid()}", *(f"export {line}" for line in exports)]
    partial = env_file.with_name(env_file.name + ".partial")
    partial.write_text("".join(f"{line}\n" for line in lines))
    partial.replace(env_file)


def _owner(env_file: Path) -> int | None:
    """Return the process that keeps a file's services running, None where there is none."""
    owner = _writer(env_file)
    return owner if owner and _alive(owner) else None


def _writer(env_file: Path) -> int | None:
    try:
        first = env_file.read_text().partition("\n")[0]
    except FileNotFoundError:
        return None
    return int(first.removeprefix(_OWNER)) if first.startswith(_OWNER) else None


def _alive(process: int) -> bool:
    """Tell whether a process is a supervisor of ours: numbers are used again."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"integration" in words and b"up" in words


def _until(done: Callable[[], object], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
