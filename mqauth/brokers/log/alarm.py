"""A call a few milliseconds after it was asked for, on a thread that is there only while it is needed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

IDLE: Final = 1.0
"""Seconds after which a thread that has nothing to wait for ends."""


class Alarm(Protocol):
    """Rings once after it was last set."""

    def set(self, seconds: float, /) -> None:
        """Have it ring in so many seconds, in place of what was set before."""


class ThreadAlarm:
    """Rings on a daemon thread of its own, which is started when it is set and ends after an idle second.

    Args:
        ring: called at the time; what it raises ends the thread, and the next ``set`` starts another.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._changed = threading.Condition(threading.Lock())
        self._due: float | None = None
        self._thread: threading.Thread | None = None

    def set(self, seconds: float, /) -> None:
        """Have it ring in so many seconds, in place of what was set before."""
        due = time.monotonic() + seconds
        with self._changed:
            sooner = self._due is None or due < self._due
            self._due = due
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="mqauth-linger", daemon=True)
                self._thread.start()
            elif sooner:  # a later time it sees by itself
                self._changed.notify()

    def _run(self) -> None:
        """Ring whenever it is due, until nothing has been for a while."""
        while self._wait():
            self._ring()

    def _wait(self) -> bool:
        """Wait until it is due; false where the thread is to end."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._due is not None, IDLE):
                self._thread = None
                return False
            while self._due is not None and (left := self._due - time.monotonic()) > 0:
                self._changed.wait(left)
            self._due = None
            return True
