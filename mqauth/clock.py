"""Clock, ids and randomness: the only module of the core that asks the machine, so that tests can replace it.

What waits after a failure waits by a ``Backoff``, and what leaves a service alone after one has a ``Pause``.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Tells wall time, for tokens, and monotonic time, for leases and waits."""

    def now(self) -> float:
        """Return UTC seconds since the epoch."""

    def monotonic(self) -> float:
        """Return seconds that are never set forward or back."""


class Randomness(Protocol):
    """Makes unpredictable bytes."""

    def __call__(self, size: int, /) -> bytes:
        """Return ``size`` random bytes."""


class SystemClock:
    """The clock of the machine."""

    now = staticmethod(time.time)
    """Return UTC seconds since the epoch."""
    monotonic = staticmethod(time.monotonic)
    """Return monotonic seconds."""


SYSTEM_CLOCK: Clock = SystemClock()
SYSTEM_RANDOMNESS: Randomness = os.urandom


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long what failed waits before each retry: exponential, without end.

    Args:
        first: longest first wait, seconds, above 0; later ones double.
        longest: no wait is longer, seconds.
    """

    first: float = 0.5
    longest: float = 30.0

    def step(self, failures: int) -> float:
        """Return the longest wait, in seconds, after so many failures in a row."""
        return min(self.first * 2.0 ** min(failures - 1, 60), self.longest)

    def wait(self, failures: int, randomness: Randomness = SYSTEM_RANDOMNESS) -> float:
        """Return the seconds to wait with equal jitter: between half of the step and the whole step.

        Args:
            failures: how many there were in a row, at least 1.
            randomness: gives the jitter.
        """
        jitter = int.from_bytes(randomness(4), "big") / (1 << 32)
        return self.step(failures) / 2 * (1 + jitter)


class Pause:
    """For how long nobody asks a service that failed; then one asks, and all others wait for its end.

    Moments are monotonic seconds. It is not safe for threads to change.

    Args:
        backoff: its steps are the pauses.
    """

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self.failures = 0
        self.failing_since: float | None = None
        self.until = self._from = float("-inf")

    def begin(self, now: float, longest: float) -> bool:
        """Tell whether a request may begin that takes ``longest`` seconds at most; after a failure one may."""
        if now < self.until:
            return False
        if self.failures:
            self.until = now + longest
        return True

    def failed(self, begun: float, now: float) -> None:
        """Note that a request brought no answer; of several that were under way together only the first counts."""
        if begun >= self._from:
            self.failures += 1
            self.failing_since = (
                begun if self.failing_since is None else self.failing_since
            )
            self._from, self.until = now, now + self._backoff.step(self.failures)

    def answered(self) -> None:
        """Note that the service answers."""
        self.failures, self.failing_since, self.until = 0, None, float("-inf")


def uuid7(clock: Clock, randomness: Randomness) -> str:
    """Return a UUID version 7 as text, which sorts by time (RFC 9562, section 5.7).

    Args:
        clock: tells the milliseconds of the first 48 bits.
        randomness: makes the other 74 bits.
    """
    milliseconds = int(clock.now() * 1000) & ((1 << 48) - 1)
    tail = int.from_bytes(randomness(10), "big")
    high = (milliseconds << 16) | 0x7000 | (tail >> 68)
    low = (0b10 << 62) | (tail & ((1 << 62) - 1))
    text = f"{(high << 64) | low:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
