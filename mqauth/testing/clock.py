"""Clocks for tests: one that moves only when it is told to, and one that runs and can be moved forward."""

from __future__ import annotations

from typing import Final

from mqauth.clock import SYSTEM_CLOCK

START: Final = 1_900_000_000.0


class FakeClock:
    """Wall time and monotonic time under a test's control.

    Args:
        now: UTC seconds to start at.
    """

    def __init__(self, now: float = START) -> None:
        self._now = now
        self._monotonic = 0.0

    def now(self) -> float:
        """Return the wall time, UTC seconds."""
        return self._now

    def monotonic(self) -> float:
        """Return the monotonic time, seconds since the clock was made."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass on both readings."""
        self._now += seconds
        self._monotonic += seconds

    def step(self, seconds: float) -> None:
        """Step the wall time only, as an administrator or NTP does."""
        self._now += seconds


class RunningClock:
    """The machine's clock, which a test can move forward, for threads that really wait for some things."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def now(self) -> float:
        """Return the wall time, UTC seconds."""
        return SYSTEM_CLOCK.now() + self._ahead

    def monotonic(self) -> float:
        """Return monotonic seconds."""
        return SYSTEM_CLOCK.monotonic() + self._ahead

    def advance(self, seconds: float) -> None:
        """Move both readings forward."""
        self._ahead += seconds
