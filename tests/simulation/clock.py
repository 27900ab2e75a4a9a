"""Virtual time: one agenda for everything that happens, and the clocks that processes read from it.

Nothing here sleeps. The next entry of the agenda is taken, the time is set to its own, and it runs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

EPOCH: Final = 1_900_000_000.0
"""UTC seconds at which every simulation begins."""


class Entry:
    """A scheduled action, which can be cancelled.

    Args:
        action: called when its time has come.
    """

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Cancel the action."""
        self.action = None


class Agenda:
    """Scheduled actions in the order of their times; those of one time in the order of scheduling."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Entry]] = []
        self._made = 0

    def at(self, when: float, action: Callable[[], None]) -> Entry:
        """Schedule a function for a time in virtual seconds, at the earliest for now."""
        entry = Entry(action)
        self._made += 1
        heapq.heappush(self._heap, (max(when, self.now), self._made, entry))
        return entry

    def after(self, seconds: float, action: Callable[[], None]) -> Entry:
        """Schedule a function for so many seconds from now."""
        return self.at(self.now + seconds, action)

    def step(self) -> bool:
        """Run the next action; return ``False`` if there is none."""
        while self._heap:
            when, _, entry = heapq.heappop(self._heap)
            action = entry.action
            if action is None:
                continue
            self.now = when
            entry.action = None
            action()
            return True
        return False

    def step_until(self, when: float | None) -> bool:
        """Run the next action, or advance to ``when`` if that is earlier; return ``False`` if there is neither."""
        while self._heap and self._heap[0][2].action is None:
            heapq.heappop(self._heap)
        if when is None or (self._heap and self._heap[0][0] <= when):
            return self.step()
        self.now = max(self.now, when)
        return True


class ProcessClock:
    """The clock of one process: its wall time may step, its monotonic time is everybody's.

    Args:
        time: returns the virtual seconds that this process sees.
    """

    def __init__(self, time: Callable[[], float]) -> None:
        self._time = time
        self.offset = 0.0

    def now(self) -> float:
        """Return UTC seconds."""
        return EPOCH + self._time() + self.offset

    def monotonic(self) -> float:
        """Return seconds that never step."""
        return self._time()
