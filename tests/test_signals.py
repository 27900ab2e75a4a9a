"""SIGTERM and SIGINT stop a consumer gracefully; the second Ctrl-C ends a process whose handler hangs."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest

from mqauth.brokers.event_loop import loop_stopping_on_signals, stopping_on_signals

TWICE = """
import asyncio, signal
from mqauth.brokers.event_loop import loop_stopping_on_signals

async def main():
    with loop_stopping_on_signals(lambda: None, enabled=True):
        signal.raise_signal(signal.{0})
        print("goes on", flush=True)
        signal.raise_signal(signal.{0})
        print("goes on", flush=True)

asyncio.run(main())
"""
"""A coroutine that holds its event loop while two signals come, as a handler that blocks does."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_for_a_stop(number: signal.Signals) -> None:
    """It calls the function, and the handlers of before come back."""
    kept, asked = signal.getsignal(number), []
    with stopping_on_signals(lambda: asked.append(1)):
        signal.raise_signal(number)
    assert (asked, signal.getsignal(number)) == ([1], kept)


async def test_the_function_is_called_in_the_event_loop() -> None:
    """What an event loop waits for is set in that loop, and wakes it."""
    stopping = asyncio.Event()
    with loop_stopping_on_signals(stopping.set, enabled=True):
        signal.raise_signal(signal.SIGTERM)
        assert not stopping.is_set()
        await stopping.wait()


def test_nothing_is_changed_where_signals_are_not_asked_for() -> None:
    """A consumer within another program leaves its handlers alone."""
    kept = signal.getsignal(signal.SIGINT)
    with stopping_on_signals(lambda: None, enabled=False):
        assert signal.getsignal(signal.SIGINT) is kept


@pytest.mark.parametrize(
    ("name", "code", "lines"), [("SIGINT", -signal.SIGINT, 1), ("SIGTERM", 0, 2)]
)
def test_the_second_ctrl_c_ends_the_process(name: str, code: int, lines: int) -> None:
    """Even where a handler holds the event loop; a second SIGTERM is no more than the first."""
    done = subprocess.run(
        [sys.executable, "-c", TWICE.format(name)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.count(b"goes on")) == (code, lines)
