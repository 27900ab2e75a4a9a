"""Counters of one minute each, bounded in number: how many of one kind there may be."""

from __future__ import annotations

import math
import threading
from typing import Final

from mqauth.clock import Clock

CAPACITY: Final = 4096
WINDOW: Final = 60.0
"""Seconds."""


class Rate:
    """Counts keys within a minute; beyond the capacity the counter that was used least goes.

    Args:
        limit: how many of one key there may be in a minute; 0 for any number.
        clock: tells the time.
        capacity: counters at most.
    """

    def __init__(self, limit: int, clock: Clock, capacity: int = CAPACITY) -> None:
        self._limit = limit
        self._clock = clock
        self._capacity = capacity
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._ends = -math.inf

    def __len__(self) -> int:
        return len(self._counts)

    def take(self, key: str, more: int = 1) -> int:
        """Count so many more of a key if there may be another now; return the seconds after which there may be.

        Returns:
            0 where there may be one now.
        """
        with self._lock:
            now = self._clock.monotonic()
            if now >= self._ends:
                self._counts.clear()
                self._ends = now + WINDOW
            if 0 < self._limit <= self._counts.get(key, 0):
                return max(1, math.ceil(self._ends - now))
            if more and key not in self._counts and len(self._counts) >= self._capacity:
                del self._counts[min(self._counts, key=self._counts.__getitem__)]
            if more:
                self._counts[key] = self._counts.get(key, 0) + more
            return 0
