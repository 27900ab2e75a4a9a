"""The pace of the tests: one that is not marked ``slow`` ends within eight seconds.

A test is slow by what it does, not by what else the machine does. So the time is subtracted in which the session's
processes, its brokers among them, were ready to run and had no CPU (``/proc/<pid>/task/*/schedstat``). What is
left is work, and waiting for timers and brokers. On a system without these files nothing is subtracted.

Of a process that has ended nobody can tell any more how long it was kept waiting. Where one did during a test, the
time counts instead in which anything on this machine was ready and had no CPU (``/proc/pressure/cpu``).

A session whose process goes on after its last test has left a thread that never ends. It fails, and writes what
each thread does.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

LIMIT: Final = 8.0
BESIDE_OTHERS: Final = "MQAUTH_TESTS_BESIDE_OTHERS"
"""The variable that says that other sessions run at the same time."""
_ROOM: Final = 3.0
FRESH: Final = 1.0
"""Seconds for which what was read of ``/proc`` serves the tests that begin then: reading it takes milliseconds."""
_PROC: Final = Path("/proc")
_SLOW: Final = "slow"


@dataclass(frozen=True, slots=True)
class Reading:
    """How long each process of this session was kept from running so far.

    Args:
        at: monotonic seconds.
        delays: seconds by process, those of its most delayed thread.
        ended: CPU seconds of children that have ended.
        pressure: seconds in which anything on this machine was kept from running.
    """

    at: float
    delays: dict[int, float]
    ended: float = 0.0
    pressure: float = 0.0


def read() -> Reading:
    """Return the delays of this process and of all that come from it."""
    times = os.times()
    return Reading(
        at=time.monotonic(), delays={process: _delay(process) for process in _family()},
        ended=times.children_user + times.children_system, pressure=_pressure(),
    )  # fmt: skip


def own_seconds(begun: float, before: Reading, now: Reading) -> float:
    """Return how long a test took, without the time in which its processes had no CPU.

    Args:
        begun: monotonic seconds.
        before: read before it began.
        now: read at its end.
    """
    kept = sum(
        delay - before.delays.get(process, 0.0) for process, delay in now.delays.items()
    )
    if now.ended != before.ended:
        kept = max(kept, now.pressure - before.pressure)
    return now.at - begun - max(0.0, kept)


class Pace:
    """The hook that fails an unmarked test which is slow.

    Args:
        limit: seconds; by default ``LIMIT``, and three times as many beside other sessions.
        ends_within: seconds that the process may take to end when all tests and their services have.
    """

    def __init__(self, limit: float | None = None, ends_within: float = 60.0) -> None:
        self._ends_within = ends_within
        # Not all that other sessions cost a test can be read and subtracted, brokers wait for disks for example.
        self._limit = limit or (LIMIT * _ROOM if os.environ.get(BESIDE_OTHERS) else LIMIT)
        self._reading = read()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        """Fail a test that passed, too late, without the marker."""
        begun = time.monotonic()
        if begun - self._reading.at > FRESH:
            self._reading = read()
        before = self._reading
        yield
        if (
            time.monotonic() - begun > self._limit
            and item.get_closest_marker(_SLOW) is None
        ):
            self._reading = read()
            took = own_seconds(begun, before, self._reading)
            if took > self._limit:
                pytest.fail(
                    f"took {took:.1f} s, over {self._limit:g}: make it shorter or mark it slow",
                    pytrace=False,
                )

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Fail a process that does not end, with the stack of each thread."""
        faulthandler.dump_traceback_later(
            self._ends_within, exit=True, file=sys.__stderr__ or sys.stderr
        )


def _pressure() -> float:
    """Return the seconds so far in which something was ready to run and had no CPU, 0 where nobody counts them."""
    with suppress(OSError, ValueError, IndexError):
        return (
            int(
                (_PROC / "pressure" / "cpu")
                .read_text()
                .splitlines()[0]
                .rpartition("total=")[2]
            )
            / 1e6
        )
    return 0.0


def _family() -> set[int]:
    """Return the ids of this process and its descendants."""
    children = defaultdict(list)
    for entry in _PROC.glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            after_name = entry.read_text(errors="replace").rpartition(")")[2].split()
            children[int(after_name[1])].append(int(entry.parent.name))
    found, waiting = set[int](), [os.getpid()]
    while waiting:
        found.add(process := waiting.pop())
        waiting += children[process]
    return found


def _delay(process: int) -> float:
    """Return for how many seconds the most delayed thread of a process was ready and did not run."""
    delays = [0.0]
    for entry in _PROC.glob(f"{process}/task/*/schedstat"):
        with suppress(OSError, ValueError, IndexError):
            delays.append(int(entry.read_text().split()[1]) / 1e9)
    return max(delays)
