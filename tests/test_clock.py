"""The clock and the ids made from it."""

from __future__ import annotations

import time
import uuid

from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Backoff, Pause, uuid7
from mqauth.testing import FakeClock


def test_uuid7_of_an_absurd_clock_is_still_a_uuid() -> None:
    """A clock before 1970 or far ahead gives a valid id, not an error."""
    for now in (-1.0, 1e15):
        assert uuid.UUID(uuid7(FakeClock(now), SYSTEM_RANDOMNESS)).version == 7


def test_the_system_clock_reads_wall_and_monotonic_time() -> None:
    """The system clock is the machine's: between two readings of it."""
    before, steady = time.time(), time.monotonic()
    assert before <= SYSTEM_CLOCK.now() <= time.time()
    assert steady <= SYSTEM_CLOCK.monotonic() <= time.monotonic()


def test_failures_together_count_once() -> None:
    """Requests that were under way together and fail make one failure."""
    pause = Pause(Backoff(first=1, longest=30))
    for _ in range(4):
        pause.failed(0.0, 0.5)
    assert (pause.failures, pause.until) == (1, 1.5)
