"""Clock, ids and randomness: the only module of the core that asks the machine, so that tests can replace it."""

from __future__ import annotations

import os
import time
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
