"""All tests in one go: pytest sessions side by side, units and real services, one sum, nothing left over."""

from __future__ import annotations

import os
import re
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
import zlib
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from integration import pace, scale
from integration.services import (
    UnavailableError,
    keycloak,
    prepare_all,
    prometheus,
    softhsm,
    spire,
    valgrind,
)
from integration.services.compose import RUN_VARIABLE
from integration.services.machine import (
    CommandError,
    cache_folder,
    docker_answers,
    run,
    say,
)

ROOT = Path(__file__).resolve().parents[1]
COMPUTING = 1
"""Sessions at a time of those that compute, as long as any that waits is left."""
WAITING = 6
"""Sessions at a time of those that mostly wait for services: together they leave one of two cores to units."""
UNIT_GROUPS = 4
"""Sessions of unit tests: each then takes about as long as one on real services."""
_GROUPS = {
    "clients": r"integration/test_(contract_)?(aiokafka|celery|confluent|faststream|kills|pika|storms)",
    "others": (
        r"integration/((audit|benchmarks|capabilities|fuzz|keys|peers)/|test_(docs|interop|jwks|redis|services))"
    ),
    "chaos": r"integration/chaos/",
    "review": r"integration/((console|review)/|test_(contract_|simulated_)?rabbitmq)",
    "kafka": r"integration/test_((contract_)?kafka|store_race)",
    "holders": r"integration/test_(awskms|opa|pkcs11|transit)",
    "spire": r"integration/test_spire",
    "keycloak": r"integration/test_keycloak",
    "rest": r"integration/",
}
"""Which files are a group's, by a pattern; the first that fits counts. Each has brokers of its own, which take ten
seconds of CPU to start: so there are few."""
_NOT_QUICK = {"clients", "chaos", "holders"}
"""Of further clients, whose leaves the unit tests hold to the contract on doubles, of services beside the brokers,
and what is slow as a whole."""
_SHORT = {"holders"}
"""What takes less than six minutes, and so begins after the others."""
_NIGHTLY = {"keycloak", "spire"}
"""Of services that take minutes each."""
# The brokers of tests end before the code of Java's second compiler repays what compiling took.
_JAVA_OPTIONS = "-XX:TieredStopAtLevel=1"
_TERMINAL_TELLS_WITHIN = 2.0  # a Ctrl-C reaches the whole process group; a kill only us
_NO_TESTS = 5  # pytest's exit code
_ENDS_WITHIN = 60.0
HANGS_AFTER = 2400.0
"""Seconds of one test after which its session ends, and writes what each thread does; at night some are long."""
_LOOK_EVERY = 0.1


@dataclass(frozen=True)
class _Counts:
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: _Counts) -> _Counts:
        return _Counts(
            self.passed + other.passed,
            self.failed + other.failed,
            self.skipped + other.skipped,
        )

    def line(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"


@dataclass(frozen=True)
class Group:
    """Test files that one pytest session runs, on services of its own.

    Args:
        name: what its output is headed with.
        files: files or folders.
        computes: whether it keeps a core busy, as those do that wait for no service.
    """

    name: str
    files: tuple[str, ...]
    computes: bool = False


def unit_tests() -> list[Group]:
    """Return the unit tests in a few groups.

    A file's path alone decides which group it is in, so that a new file moves no other one.
    """
    groups = defaultdict[int, list[str]](list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        file = path.relative_to(ROOT).as_posix()
        groups[zlib.crc32(file.encode()) % UNIT_GROUPS + 1].append(file)
    return [
        Group(f"units-{number}", tuple(files), computes=True)
        for number, files in sorted(groups.items())
    ]


def cluster_tests() -> list[Group]:
    """Return the tests on clusters as one group: side by side they would take each other's CPU for a lost node."""
    return [Group("clusters", ("integration/chaos",))]


def integration_tests(*, quick: bool = False) -> list[Group]:
    """Return the tests on real services in groups that take about as long as each other, the longest first.

    Args:
        quick: only those of the first client of each broker, and of what all clients share.
    """
    left_out = (_NOT_QUICK if quick else set()) | (
        set() if scale.is_nightly() else _NIGHTLY
    )
    left = sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "integration").rglob("test_*.py")
    )
    groups = []
    for name, pattern in _GROUPS.items():
        mine = tuple(file for file in left if re.match(pattern, file))
        left = [file for file in left if file not in mine]
        groups.append(Group(name, mine))
    groups.sort(key=lambda group: group.name in _SHORT)
    return [group for group in groups if group.files and group.name not in left_out]


def run_tests(
    units: Sequence[Group], integration: Sequence[Group], arguments: Sequence[str]
) -> int:
    """Run pytest on each group, several at once, print the sum as the last lines, and return the exit code.

    Tests on real services mostly wait, so that some of them, and some that compute, go side by side.
    """
    began, run_id = time.monotonic(), _marked()
    total, groups = _Counts(), [*units, *integration]
    if integration:
        try:
            prepare_all()
            prometheus.prepare()
            softhsm.prepare()
            valgrind.prepare()
            if scale.is_nightly():
                keycloak.prepare()
                spire.prepare()
        except UnavailableError as missing:
            say(f"error: {missing}")
            total, groups = _Counts(failed=1), [*units]
    with tempfile.TemporaryDirectory(prefix="mqauth-tests-") as folder:
        sessions = [Session(group, Path(folder), arguments) for group in groups]
        total += run_sessions(sessions)
    for line in _times(sessions, time.monotonic() - began):
        say(line)
    left = _settled(run_id)
    for line in left:
        say(f"left running: {line}")
    print(
        "nothing is left running" if not left else "not everything was stopped",
        flush=True,
    )
    if not total.passed + total.failed:
        say("error: no test ran")
    print(total.line(), flush=True)
    return 0 if total.passed and not total.failed and not left else 1


def _marked() -> str:
    """Set what sessions and their services inherit, and return the mark of this run, by which they are found."""
    os.environ[RUN_VARIABLE] = run_id = secrets.token_hex(6)
    os.environ[pace.BESIDE_OTHERS] = "1"
    os.environ.setdefault("JDK_JAVA_OPTIONS", _JAVA_OPTIONS)
    os.environ.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # each session and command would compile the same modules
    return run_id


def run_sessions(
    sessions: Sequence[Session], *, at_once: int = COMPUTING + WAITING
) -> _Counts:
    """Run sessions, so many at a time, print what each wrote when it has ended, and sum them up.

    An interrupt is passed on to those that run, and their services are given time to stop; the rest is not begun.
    """
    waiting, running, total = [*sessions], list[Session](), _Counts()
    while waiting or running:
        try:
            while waiting and len(running) < at_once:
                running.append(next_session(waiting, running))
                waiting.remove(running[-1])
                running[-1].start()
            for session in [session for session in running if session.ended]:
                running.remove(session)
                total += session.finish()
            time.sleep(_LOOK_EVERY)
        except KeyboardInterrupt:
            waiting.clear()
            _interrupt(running)
    return total


def next_session(waiting: Sequence[Session], running: Sequence[Session]) -> Session:
    """Return which session begins: one that computes until there are enough, else one that waits, if any does."""
    enough = sum(session.group.computes for session in running) >= COMPUTING
    return next(
        (session for session in waiting if session.group.computes != enough), waiting[0]
    )


def _interrupt(running: Sequence[Session]) -> None:
    """Stop sessions that a Ctrl-C in their terminal has not told already."""
    deadline = time.monotonic() + _TERMINAL_TELLS_WITHIN
    with suppress(KeyboardInterrupt):
        while time.monotonic() < deadline and not all(
            session.ended for session in running
        ):
            time.sleep(_LOOK_EVERY)
    for session in running:
        session.interrupt()


def _hanging() -> tuple[str, ...]:
    return (
        "-o",
        f"faulthandler_timeout={HANGS_AFTER}",
        "-o",
        "faulthandler_exit_on_timeout=true",
    )


class Session:
    """One pytest session, whose output is kept until it has ended.

    Args:
        group: what it runs.
        folder: where its output and its report go.
        arguments: further ones for pytest.

    Attributes:
        seconds: from its begin to its end, once it has ended.
        cpu: seconds of CPU that it took with its services, once it has ended.
    """

    def __init__(self, group: Group, folder: Path, arguments: Sequence[str]) -> None:
        self.group = group
        self._report = folder / f"{group.name}.xml"
        self._output = folder / f"{group.name}.txt"
        self._command = [
            sys.executable, "-m", "pytest", *group.files, f"--junitxml={self._report}",
            "-o", f"cache_dir=.pytest_cache/{group.name}",
            *(() if scale.is_nightly() else _hanging()), *arguments,
        ]  # fmt: skip
        self._child: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self.seconds = 0.0
        self.cpu = 0.0

    @property
    def ended(self) -> bool:
        """Whether it does not run, or no longer."""
        before = _cpu_of_ended()
        ended = self._child is None or self._child.poll() is not None
        self.cpu += _cpu_of_ended() - before
        return ended

    def start(self) -> None:
        """Begin."""
        say(f"== {self.group.name}: begins")
        self._began = time.monotonic()
        with self._output.open("wb") as output:
            self._child = subprocess.Popen(
                self._command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
            )

    def interrupt(self) -> None:
        """Ask it to stop."""
        if self._child is not None:
            self._child.send_signal(
                signal.SIGTERM
            )  # nothing happens to one that has ended

    def finish(self) -> _Counts:
        """Print what it wrote and return its counts; one that broke off counts as a failure more."""
        self.seconds = time.monotonic() - self._began
        say(f"== {self.group.name}: {self.seconds:.0f} s")
        if self._output.exists():
            print(self._output.read_text("utf-8", "replace"), end="", flush=True)
        counts = _read(self._report) if self._report.exists() else _Counts()
        broke_off = self._child is None or self._child.returncode not in (0, _NO_TESTS)
        return counts + _Counts(failed=1) if broke_off and not counts.failed else counts


def _cpu_of_ended() -> float:
    """Return the CPU seconds of all children that were waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _times(sessions: Sequence[Session], seconds: float) -> list[str]:
    """Return a line for each session, and one for all: seconds, and seconds of CPU."""
    rows = [(session.group.name, session.seconds, session.cpu) for session in sessions]
    rows.append(("all", seconds, sum(session.cpu for session in sessions)))
    return [f"{name:<15} {wall:5.0f} s, {cpu:5.0f} s of CPU" for name, wall, cpu in rows]


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
            if int(entry.name) != os.getpid() and mark in (
                entry / "environ"
            ).read_bytes().split(b"\0"):
                words = (
                    (entry / "cmdline")
                    .read_bytes()
                    .replace(b"\0", b" ")
                    .decode(errors="replace")
                )
                found.append(f"process {entry.name}: {words[:120]}")
    return found


def _mounts() -> list[str]:
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return [f"mount {line}" for line in mounts if str(cache_folder()) in line]


def _containers(run_id: str) -> list[str]:
    if not docker_answers():
        return []
    try:
        return run(
            ["docker", "ps", "-aq", "--filter", f"name=mqauth-{run_id}"], timeout=60
        ).splitlines()
    except CommandError as failed:
        return [str(failed)]
