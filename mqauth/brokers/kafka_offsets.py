"""Offsets of one partition, pure: what was received, what is settled, and the prefix that may be committed.

Kafka's offsets have gaps (compaction, transaction markers), so *contiguous* means by order of receipt.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass


class Prefix:
    """The contiguous settled prefix of one partition.

    ``next`` is the offset to commit, as Kafka wants it: one past the last settled record of the prefix.
    Workers settle while the polling thread receives, hence the lock.
    """

    __slots__ = ("_committed", "_lock", "_settled", "_waiting", "last", "next")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[int] = deque()
        self._settled: set[int] = set()
        self._committed: int | None = None
        self.last: int | None = None
        """The highest offset received."""
        self.next: int | None = None

    @property
    def first_unsettled(self) -> int | None:
        """The lowest offset received and not settled: where to read again from."""
        with self._lock:
            return self._waiting[0] if self._waiting else None

    @property
    def due(self) -> int | None:
        """The offset to commit, where it is not committed yet."""
        return self.next if self.next != self._committed else None

    def receive(self, offset: int) -> bool:
        """Note a record received; false where the log went back: it was read before, or the topic is a new one."""
        if self.last is not None and offset <= self.last:
            return False
        with self._lock:
            self._waiting.append(offset)
        self.last = offset
        return True

    def receive_all(self, offsets: list[int]) -> bool:
        """Note records received; false, with none noted, unless each stands behind the one before."""
        last = self.last
        for offset in offsets:
            if last is not None and offset <= last:
                return False
            last = offset
        with self._lock:
            self._waiting.extend(offsets)
        self.last = last
        return True

    def settle(self, offset: int) -> None:
        """Note a record settled, in whatever order."""
        waiting, settled = self._waiting, self._settled
        with self._lock:
            if not settled and waiting and waiting[0] == offset:
                self.next = waiting.popleft() + 1
                return
            settled.add(offset)
            while waiting and waiting[0] in settled:
                first = waiting.popleft()
                settled.discard(first)
                self.next = first + 1

    def forget_after(self, offset: int) -> None:
        """Forget what was received after an offset; it will be read again."""
        with self._lock:
            while self._waiting and self._waiting[-1] > offset:
                self._settled.discard(self._waiting.pop())
        self.last = offset

    def committed(self, offset: int) -> None:
        """Note that the broker has an offset."""
        self._committed = offset


@dataclass(frozen=True, slots=True)
class Receipt:
    """When records up to an offset were first received, UTC seconds."""

    upto: int
    received: float


def receipts(times: Iterable[tuple[int, float]]) -> tuple[Receipt, ...]:
    """Return the times of receipt of records in order, one entry for each run of equal times."""
    found: list[Receipt] = []
    for offset, received in times:
        if found and found[-1].received == received:
            found.pop()
        found.append(Receipt(offset, received))
    return tuple(found)


def received_at(known: Iterable[Receipt], offset: int, now: float) -> float:
    """Return when a record was first received: now, unless it was read before and put back."""
    return next((receipt.received for receipt in known if offset <= receipt.upto), now)
