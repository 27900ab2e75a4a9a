"""The command that runs all tests: its groups, its sessions side by side, and the pace it holds tests to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from integration import pace, runner, scale

MEETS = """
import threading
from pathlib import Path

def test_meets_the_other():
    here = Path(__file__).parent
    (here / "{mine}").touch()
    ticks = threading.Event()
    assert any((here / "{other}").exists() or ticks.wait(0.05) for _ in range(2400))
"""
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
TELLS_CPU = """
import time
from pathlib import Path

def test_tells():
    Path(__file__).with_suffix(".cpu").write_text(str(time.process_time()))
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
    groups = {"integration": runner.integration_tests, "tests": runner.unit_tests}[folder]()
    found = Counter(file for group in groups for file in group.files)
    files = {path.relative_to(runner.ROOT).as_posix() for path in (runner.ROOT / folder).rglob("test_*.py")}
    assert found == dict.fromkeys(files, 1)


def test_quick_has_the_first_client_of_each_broker() -> None:
    """The quick form has the contracts of aio-pika and kafka-python on real brokers, and of no other client."""
    files = {file for group in runner.integration_tests(quick=True) for file in group.files}
    contracts = {file for file in files if "test_contract" in file}
    assert contracts == {"integration/test_contract_kafka.py", "integration/test_contract_rabbitmq.py"}


@pytest.mark.parametrize("quick", [True, False])
def test_slow_services_are_of_the_nightly_form(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a service that takes minutes are left out of every run but the nightly one; no other is."""
    monkeypatch.delenv(scale.VARIABLE, raising=False)
    ordinary = {file for group in runner.integration_tests(quick=quick) for file in group.files}
    monkeypatch.setenv(scale.VARIABLE, "1")
    nightly = {file for group in runner.integration_tests(quick=quick) for file in group.files}
    assert nightly - ordinary == {"integration/test_keycloak.py", "integration/test_spire.py"}
    assert ordinary <= nightly


def test_new_file_moves_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit test's file stays in its group, whatever files come and go."""
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    (tmp_path / "tests").mkdir()
    homes: dict[str, str] = {}
    for number in range(20):
        (tmp_path / "tests" / f"test_{97 * number % 20}.py").touch()
        now = {file: group.name for group in runner.unit_tests() for file in group.files}
        assert homes.items() <= now.items()
        homes = now
    assert len(set(homes.values())) > 1


def test_sessions_run_side_by_side(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two sessions that wait for each other both pass; each one's output comes whole, under its name."""
    here = session(tmp_path, "here", MEETS.format(mine="a", other="b"))
    there = session(tmp_path, "there", MEETS.format(mine="b", other="a"))
    counts = runner.run_sessions([here, there], at_once=2)
    assert (counts.passed, counts.failed) == (2, 0)
    said = capfd.readouterr()
    assert len(re.findall(r"== (?:here|there): [0-9]+ s", said.out + said.err)) == 2
    assert said.out.count("100%") == 2


def test_two_that_compute_beside_those_that_wait(tmp_path: Path) -> None:
    """Two sessions compute at any time, and more only where none is left that waits."""
    groups = [
        runner.Group(name, (), computes=name.startswith("units"))
        for name in ("units-1", "units-2", "units-3", "a", "b")
    ]
    waiting, begun = [runner.Session(group, tmp_path, ()) for group in groups], list[runner.Session]()
    while waiting:
        begun.append(runner.next_session(waiting, begun))
        waiting.remove(begun[-1])
    assert [each.group.name for each in begun] == ["units-1", "units-2", "a", "b", "units-3"]
    left = [each for each in begun if not each.group.computes]
    assert runner.next_session(begun[::-1], left).group.name == "units-3"


def test_cpu_is_a_sessions_own(tmp_path: Path) -> None:
    """A session has at least the CPU time its test took, and all have no more than this process's children."""
    before = os.times()
    sessions = [session(tmp_path, name, TELLS_CPU) for name in ("here", "there")]
    runner.run_sessions(sessions, at_once=2)
    after = os.times()
    for each in sessions:
        assert each.cpu >= float((tmp_path / f"test_{each.group.name}.cpu").read_text())
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert sum(each.cpu for each in sessions) <= spent + 0.1  # os.times counts in ticks


@pytest.mark.parametrize(
    ("source", "counts"),
    [("def test_a():\n    pass", (1, 0)), ("def test_a():\n    assert False", (0, 1)), ("x = 1", (0, 0)),
     ("syntax error", (0, 1)), ("import os\ndef test_a():\n    os._exit(3)", (0, 1))],
    ids=["passes", "fails", "empty", "broken", "dies"],
)  # fmt: skip
def test_counts_of_a_session(tmp_path: Path, source: str, counts: tuple[int, int]) -> None:
    """A failure counts, a session that broke off counts as one, and one without tests as none."""
    found = runner.run_sessions([session(tmp_path, "one", source)])
    assert (found.passed, found.failed) == counts


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
    command = [sys.executable, "-m", "pytest", "-q", *BARE, "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, cwd=runner.ROOT, capture_output=True, text=True, check=False)
    assert re.findall(r"^FAILED .*::(\w+)", done.stdout, re.MULTILINE) == ["test_unmarked"], done.stdout
    assert "make it shorter or mark it slow" in done.stdout
    assert "2 passed" in done.stdout


def test_process_that_does_not_end_fails(tmp_path: Path) -> None:
    """A session whose last test left a thread that never ends fails, and its output names what the thread does."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_left.py").write_text(LEAVES_A_THREAD)
    command = [sys.executable, "-m", "pytest", "-q", *BARE, "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, cwd=runner.ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert "1 passed" in done.stdout
    assert done.returncode == 1
    assert "in waits_for_ever" in done.stderr


def test_time_without_a_cpu_is_not_the_tests() -> None:
    """What each process was kept waiting since the test began is subtracted, of new processes all of it."""
    before = pace.Reading(0.0, {1: 5.0, 2: 1.0, 3: 9.0})
    now = pace.Reading(20.0, {1: 7.0, 2: 1.0, 4: 0.5})
    assert pace.own_seconds(10.0, before, now) == pytest.approx(10.0 - 2.0 - 0.5)


@pytest.mark.parametrize(("ended", "took"), [(0.0, 10.0), (1.0, 4.0)])
def test_where_a_child_ended_the_machine_counts(ended: float, took: float) -> None:
    """The pressure of the machine is subtracted only where a child's own delay can no longer be read."""
    before = pace.Reading(0.0, {1: 5.0}, ended=3.0, pressure=100.0)
    now = pace.Reading(10.0, {1: 5.0}, ended=3.0 + ended, pressure=106.0)
    assert pace.own_seconds(0.0, before, now) == pytest.approx(took)


def test_readings_are_of_this_session() -> None:
    """A reading has this process and its children, and no negative delay."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        found = pace.read().delays
        assert child.stdin is not None
        child.stdin.close()
    assert child.pid in found
    assert all(delay >= 0 for delay in found.values())


@pytest.mark.parametrize(("value", "number"), [(None, 2), ("", 2), ("1", 10)])
def test_nightly_counts(monkeypatch: pytest.MonkeyPatch, value: str | None, number: int) -> None:
    """The variable alone decides between the full count and the smaller one."""
    monkeypatch.delenv(scale.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(scale.VARIABLE, value)
    assert scale.nightly(10, otherwise=2) == number
