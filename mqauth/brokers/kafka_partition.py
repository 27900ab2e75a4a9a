"""One partition while it is assigned to us, and the threads that carry its deliveries to their end, in order."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mqauth.ahead import Ahead
from mqauth.brokers.kafka_offsets import Prefix, Receipt
from mqauth.deadletter import DeadLetter
from mqauth.errors import Cause
from mqauth.pipeline import Delivery, Outcome, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A partition that waits for the world.

    Args:
        topic, partition, offset: the record that waits; those behind it wait too.
        cause: what is out of reach.
        detail: one line for people.
        since: UTC seconds of the first of these deferrals in a row.
    """

    topic: str
    partition: int
    offset: int
    cause: Cause | None
    detail: str | None
    since: float


@dataclass(slots=True)
class Assigned:
    """One assigned partition: what was received and is not settled, oldest first.

    ``alive`` is false once the partition was taken away: nothing of it is committed any more. ``suspended`` is
    true during an eager rebalance, until it is known whether the partition comes back. ``letters`` are dead
    letters by offset that wait for the transaction they are committed in, ``unsent`` says why it takes so long.
    """

    partition: Any
    waiting: deque[Delivery] = field(default_factory=deque)
    prefix: Prefix = field(default_factory=Prefix)
    receipts: tuple[Receipt, ...] = ()
    letters: deque[tuple[int, DeadLetter]] = field(default_factory=deque)
    unsent: Stall | None = None
    alive: bool = True
    suspended: bool = False
    running: bool = False
    stall: Stall | None = None
    since: float | None = None
    attempt: int = 0
    due: float = 0.0

    def recovered(self) -> None:
        """Note that the world is back."""
        self.stall, self.since, self.attempt = None, None, 0

    @property
    def busy(self) -> bool:
        """Whether no more records of it are wanted now."""
        return self.running or self.stall is not None or bool(self.waiting) or bool(self.letters)

    @property
    def first_open(self) -> int | None:
        """The lowest offset whose record is not settled, or whose letter is not committed."""
        places = (self.prefix.first_unsettled, self.letters[0][0] if self.letters else None)
        return min((place for place in places if place is not None), default=None)


@dataclass(frozen=True, slots=True)
class Done:
    """A worker has left a partition: all settled, one deferred, stopped, or an error that stops the consumer."""

    assigned: Assigned
    deferred: Outcome | None = None
    error: BaseException | None = None


class Workers:
    """Threads that process partitions; each partition is with one of them at a time.

    Args:
        threads: how many; with 0 everything runs in ``submit``, on the caller's thread.
        process: carries one delivery of a partition to its end.
        stopping: once set, no more deliveries are started.
        ahead: makes what judges the deliveries of one visit ahead of their turns.
    """

    def __init__(
        self,
        threads: int,
        process: Callable[[Assigned, Delivery], Outcome],
        stopping: threading.Event,
        ahead: Callable[[], Ahead],
    ) -> None:
        self._process = process
        self._ahead = ahead
        self._inbox: queue.SimpleQueue[Assigned | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self._stopping = stopping
        self._threads = [
            threading.Thread(target=self._serve, name=f"mqauth-kafka-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, assigned: Assigned) -> None:
        """Have what waits of a partition processed."""
        assigned.running = True
        if self._threads:
            self._inbox.put(assigned)
        else:
            self._done.put(self._work(assigned))

    def done(self, seconds: float) -> list[Done]:
        """Return the partitions left since the last call; wait at most so long for the first."""
        found: list[Done] = []
        try:
            found.append(self._done.get(block=seconds > 0, timeout=seconds or None))
            while True:
                found.append(self._done.get_nowait())
        except queue.Empty:
            pass
        for done in found:
            done.assigned.running = False
        return found

    def stop(self) -> None:
        """Start no more deliveries, and let the threads end after those that run."""
        self._stopping.set()
        for _ in self._threads:
            self._inbox.put(None)

    def _serve(self) -> None:
        """Take partitions until told to end."""
        while (assigned := self._inbox.get()) is not None:
            self._done.put(self._work(assigned))

    def _work(self, assigned: Assigned) -> Done:
        """Process a partition's deliveries in order; the first deferred one ends it."""
        ahead = self._ahead()
        try:
            while assigned.alive and assigned.waiting and not self._stopping.is_set():
                ahead.look(assigned.waiting)
                delivery = assigned.waiting[0]
                outcome = self._process(assigned, delivery)
                if outcome.verdict is Verdict.DEFERRED:
                    return Done(assigned, deferred=outcome)
                assigned.waiting.popleft()
                assigned.prefix.settle(offset_of(delivery))
        except BaseException as error:
            return Done(assigned, error=error)
        return Done(assigned)


def offset_of(delivery: Delivery) -> int:
    """Return the offset of a delivery; the broker always says it."""
    return delivery.message.origin.offset or 0
