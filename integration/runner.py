"""All tests in one go: a pytest session for the units, one on real services, one sum, nothing left over."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from integration.services import UnavailableError, prepare_all, prometheus
from integration.services.compose import RUN_VARIABLE
from integration.services.machine import CommandError, cache_folder, docker_answers, run, say

_ROOT = Path(__file__).resolve().parents[1]
_TERMINAL_TELLS_WITHIN = 2.0  # a Ctrl-C reaches the whole process group; a kill only us
_NO_TESTS = 5  # pytest's exit code
_ENDS_WITHIN = 10.0


@dataclass(frozen=True)
class _Counts:
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: _Counts) -> _Counts:
        return _Counts(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def line(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"


def run_tests(folders: Sequence[str], arguments: Sequence[str]) -> int:
    """Run pytest on each folder, print the sum as the last lines, and return the exit code."""
    os.environ[RUN_VARIABLE] = run_id = secrets.token_hex(6)
    total = _Counts()
    for folder in folders:
        say(f"== pytest {folder}")
        if folder == "integration":
            try:
                prepare_all()
                prometheus.prepare()
            except UnavailableError as missing:
                say(f"error: {missing}")
                total += _Counts(failed=1)
                continue
        total += _pytest(folder, arguments)
    left = _settled(run_id)
    for line in left:
        say(f"left running: {line}")
    print("nothing is left running" if not left else "not everything was stopped", flush=True)
    if not total.passed + total.failed:
        say("error: no test ran")
    print(total.line(), flush=True)
    return 0 if total.passed and not total.failed and not left else 1


def _pytest(folder: str, arguments: Sequence[str]) -> _Counts:
    """Run one session; one that breaks off counts as a failure more."""
    with tempfile.TemporaryDirectory(prefix="mqauth-junit-") as temporary:
        report = Path(temporary) / "report.xml"
        child = subprocess.Popen(
            [sys.executable, "-m", "pytest", folder, f"--junitxml={report}", *arguments], cwd=_ROOT
        )
        code = _wait(child)
        counts = _read(report) if report.exists() else _Counts()
    if code not in (0, _NO_TESTS) and not counts.failed:
        counts += _Counts(failed=1)
    return counts


def _wait(child: subprocess.Popen[bytes]) -> int:
    """Wait for a session; an interrupt is passed on, and its services are given time to stop."""
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            with suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
                child.wait(_TERMINAL_TELLS_WITHIN)
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)


def _read(report: Path) -> _Counts:
    suites = ET.parse(report).getroot().iter("testsuite")  # noqa: S314 - written by our own pytest
    total = _Counts()
    for suite in suites:
        ran, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
        failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        total += _Counts(max(0, ran - failed - skipped), failed, skipped)
    return total


def _settled(run_id: str) -> list[str]:
    """Return what is left after a moment: helpers of multiprocessing end just after their pytest."""
    deadline = time.monotonic() + _ENDS_WITHIN
    while (left := left_over(run_id)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def left_over(run_id: str) -> list[str]:
    """Return a line for each process, mount, folder and container of a run that is still there."""
    return [*_processes(run_id), *_mounts(), *_containers(run_id)]


def _processes(run_id: str) -> list[str]:
    """Return the processes that inherited a run's mark."""
    mark = f"{RUN_VARIABLE}={run_id}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may have just ended, or be another user's
            if int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes().split(b"\0"):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"process {entry.name}: {words[:120]}")
    return found


def _mounts() -> list[str]:
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return [f"mount {line}" for line in mounts if str(cache_folder()) in line]


def _containers(run_id: str) -> list[str]:
    if not docker_answers():
        return []
    try:
        return run(["docker", "ps", "-aq", "--filter", f"name=mqauth-{run_id}"], timeout=60).splitlines()
    except CommandError as failed:
        return [str(failed)]
