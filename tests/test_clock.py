"""The clock and the ids made from it."""

from __future__ import annotations

import time
import uuid

from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Backoff, Pause, uuid7
from mqauth.testing import FakeClock


def test_uuid7_has_the_layout_of_rfc_9562() -> None:
    """The first 48 bits are milliseconds, then version 7 and variant 10."""
    identity = uuid.UUID(uuid7(FakeClock(1_645_557_742.0), lambda size: b"\xff" * size))
    assert identity.int >> 80 == 1_645_557_742_000
    assert (identity.version, identity.variant) == (7, uuid.RFC_4122)


def test_uuid7_uses_every_random_bit() -> None:
    """All 74 random bits reach the text."""
    ones = uuid.UUID(uuid7(FakeClock(0.0), lambda size: b"\xff" * size)).int
    zeros = uuid.UUID(uuid7(FakeClock(0.0), bytes)).int
    assert (ones ^ zeros).bit_count() == 74


def test_uuid7_orders_by_time() -> None:
    """A later id sorts after an earlier one as text."""
    clock = FakeClock()
    first = uuid7(clock, SYSTEM_RANDOMNESS)
    clock.advance(0.001)
    assert first < uuid7(clock, SYSTEM_RANDOMNESS)


def test_uuid7_of_an_absurd_clock_is_still_a_uuid() -> None:
    """A clock before 1970 or far ahead gives a valid id, not an error."""
    for now in (-1.0, 1e15):
        assert uuid.UUID(uuid7(FakeClock(now), SYSTEM_RANDOMNESS)).version == 7


def test_the_system_clock_reads_wall_and_monotonic_time() -> None:
    """The system clock is the machine's: between two readings of it."""
    before, steady = time.time(), time.monotonic()
    assert before <= SYSTEM_CLOCK.now() <= time.time()
    assert steady <= SYSTEM_CLOCK.monotonic() <= time.monotonic()


def test_one_asks_for_all_after_a_pause() -> None:
    """Once the pause is over one request begins; others wait for what becomes of it."""
    pause = Pause(Backoff(first=1, longest=30))
    assert pause.begin(0.0, 0.5)
    pause.failed(0.0, 0.5)
    assert not pause.begin(1.0, 0.5)
    assert pause.begin(1.5, 0.5)
    assert not pause.begin(1.6, 0.5)
    pause.answered()
    assert pause.begin(1.7, 0.5)
    assert pause.begin(1.7, 0.5)


def test_failures_together_count_once() -> None:
    """Requests that were under way together and fail make one failure."""
    pause = Pause(Backoff(first=1, longest=30))
    for _ in range(4):
        pause.failed(0.0, 0.5)
    assert (pause.failures, pause.until) == (1, 1.5)
