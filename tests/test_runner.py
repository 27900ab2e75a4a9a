"""The command that runs all tests: its groups, its sessions side by side, and the pace it holds tests to."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from integration import pace, runner, scale

PACED = """
import threading

import pytest

def waits():
    threading.Event().wait(0.5)

def test_short():
    pass

def test_unmarked():
    waits()

@pytest.mark.slow
def test_marked():
    waits()
"""
LEAVES_A_THREAD = """
import threading

def waits_for_ever():
    threading.Event().wait()

def test_leaves_a_thread():
    threading.Thread(target=waits_for_ever).start()
"""
HANGS = """
import threading

def waits_for_ever():
    threading.Event().wait()

def test_hangs():
    waits_for_ever()
"""
BARE = ["-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:hypothesispytest"]
CONFTEST = """
import time

from integration import pace

def on_a_quiet_machine():
    return pace.Reading(time.monotonic(), {})

pace.read = on_a_quiet_machine

def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes long")
    config.pluginmanager.register(pace.Pace(limit=0.25, ends_within=1))
"""


def session(folder: Path, name: str, source: str) -> runner.Session:
    """Return a session of one file."""
    file = folder / f"test_{name}.py"
    file.write_text(source)
    return runner.Session(runner.Group(name, (str(file),)), folder, BARE)


@pytest.mark.parametrize("folder", ["integration", "tests"])
def test_every_file_is_in_one_group(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The groups of a folder together are all its test files, each once, in the nightly form."""
    monkeypatch.setenv(scale.VARIABLE, "1")
    groups = {"integration": runner.integration_tests, "tests": runner.unit_tests}[
        folder
    ]()
    found = Counter(file for group in groups for file in group.files)
    files = {
        path.relative_to(runner.ROOT).as_posix()
        for path in (runner.ROOT / folder).rglob("test_*.py")
    }
    assert found == dict.fromkeys(files, 1)


def test_quick_has_the_first_client_of_each_broker() -> None:
    """The quick form has the contracts of aio-pika and kafka-python on real brokers, and of no other client."""
    files = {
        file for group in runner.integration_tests(quick=True) for file in group.files
    }
    contracts = {file for file in files if "test_contract" in file}
    assert contracts == {
        "integration/test_contract_kafka.py",
        "integration/test_contract_rabbitmq.py",
    }


def test_one_that_computes_beside_those_that_wait(tmp_path: Path) -> None:
    """One session computes at any time, and more only where none is left that waits."""
    groups = [
        runner.Group(name, (), computes=name.startswith("units"))
        for name in ("units-1", "units-2", "units-3", "a", "b")
    ]
    waiting, begun = (
        [runner.Session(group, tmp_path, ()) for group in groups],
        list[runner.Session](),
    )
    while waiting:
        begun.append(runner.next_session(waiting, begun))
        waiting.remove(begun[-1])
    assert [each.group.name for each in begun] == [
        "units-1",
        "a",
        "b",
        "units-2",
        "units-3",
    ]
    left = [each for each in begun if not each.group.computes]
    assert runner.next_session(begun[::-1], left).group.name == "units-3"


def test_a_test_that_hangs_ends_its_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A client that never returns from a call fails its session, whose output names the call."""
    monkeypatch.setattr(runner, "HANGS_AFTER", 0.5)
    found = runner.run_sessions([session(tmp_path, "one", HANGS)])
    assert (found.passed, found.failed) == (0, 1)
    assert "in waits_for_ever" in capfd.readouterr().out


def test_unmarked_test_that_is_slow_fails(tmp_path: Path) -> None:
    """A test over the limit fails unless it is marked, and says what to do."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_paced.py").write_text(PACED)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        *BARE,
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(
        command, cwd=runner.ROOT, capture_output=True, text=True, check=False
    )
    assert re.findall(r"^FAILED .*::(\w+)", done.stdout, re.MULTILINE) == [
        "test_unmarked"
    ], done.stdout
    assert "make it shorter or mark it slow" in done.stdout
    assert "2 passed" in done.stdout


def test_process_that_does_not_end_fails(tmp_path: Path) -> None:
    """A session whose last test left a thread that never ends fails, and its output names what the thread does."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_left.py").write_text(LEAVES_A_THREAD)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        *BARE,
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(
        command, cwd=runner.ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert "1 passed" in done.stdout
    assert done.returncode == 1
    assert "in waits_for_ever" in done.stderr


@pytest.mark.parametrize(("ended", "took"), [(0.0, 10.0), (1.0, 4.0)])
def test_where_a_child_ended_the_machine_counts(ended: float, took: float) -> None:
    """The pressure of the machine is subtracted only where a child's own delay can no longer be read."""
    before = pace.Reading(0.0, {1: 5.0}, ended=3.0, pressure=100.0)
    now = pace.Reading(10.0, {1: 5.0}, ended=3.0 + ended, pressure=106.0)
    assert pace.own_seconds(0.0, before, now) == pytest.approx(took)
