"""What is known of the partitions of a log that are ours, and what follows from it: the rules for log brokers.

A commit is a settled, contiguous prefix of an assignment that is ours. Of one partition one handler runs, and it
is marked running when it is *chosen*. What is put off stands still with its partition, and reading again is the
only way back. What is taken away is neither gone on with nor committed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from mqauth.clock import Clock
from mqauth.delivery.backoff import Backoff
from mqauth.delivery.facts import Health, Place, Stall, Wanted
from mqauth.delivery.part import Part, offset_of
from mqauth.errors import ConfigurationError
from mqauth.judging.pipeline import Delivery, Outcome, Step, Verdict
from mqauth.wire.message import Message

COMMIT_RETRY: Final = 1.0
"""Seconds before a commit that failed is made again; during a rebalance none can succeed."""
Due = Mapping[Part, int]
_DEFERRED: Final = Verdict.DEFERRED
_LOG: Final = logging.getLogger("mqauth.delivery")


class Book:
    """Keeps a ``Part`` for each partition of which records came, until it is taken away.

    Args:
        clock: the clock.
        backoff: how long a deferred partition waits.
        interval: longest time between commits while records are settled, seconds.
        session: seconds of silence after which the broker may have given our partitions to others.
        width: how many partitions can be worked on at once.
        lock: guards it where several threads use it; may be entered again by the thread that holds it.

    Raises:
        ConfigurationError: ``interval`` is not above 0.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
        interval: float = 5.0,
        session: float = math.inf,
        width: int = 1,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        if interval <= 0:
            raise ConfigurationError("commit_interval is above 0 seconds")
        self._clock = clock
        self._backoff = backoff
        self._interval = interval
        self._session = session
        self._width = width
        self._lock = nullcontext() if lock is None else lock
        self._parts: dict[Any, Part] = {}
        self._running: list[Part] = []
        self._paused: Set[Any] = frozenset()
        self._held_back = self._stopping = self._ended = False
        self._committed_at = self._held_until = clock.monotonic()
        self._beats: tuple[float, float] | None = None
        self._doubted: float | None = None

    @property
    def running(self) -> int:
        """How many partitions are worked on, those that were taken away meanwhile included."""
        return len(self._running)

    def part(self, place: Place) -> Part:
        """Return the partition at a place, new where there is none."""
        with self._lock:
            return self._parts.setdefault(place, Part(place))

    # What the client says of the assignment

    def revoking(self, places: Collection[Any], held: Collection[Any]) -> None:
        """Note that partitions were revoked: dropped, or suspended where the client still holds them.

        An eager rebalance revokes everything and hands most of it back with its position kept; under the
        cooperative protocol (KIP-429) only what is really lost is revoked.
        """
        with self._lock:
            self._forget(set(places) - set(held))
            for place in set(places) & self._parts.keys():
                self._parts[place].suspended = True

    def assigned(self, held: Collection[Any]) -> None:
        """Note the end of a rebalance: what is held is gone on with, what did not come back is dropped."""
        with self._lock:
            self._forget({place for place, part in self._parts.items() if part.suspended} - set(held))
            for part in self._parts.values():
                part.suspended = False
            self._doubted = None

    def lost(self, places: Collection[Any]) -> None:
        """Note that partitions are somebody else's already."""
        with self._lock:
            self._forget(set(places))

    def hold_back(self, holding: bool) -> None:
        """Start nothing more while a rebalance is due, so that what runs can end and be committed before it."""
        self._held_back = holding

    def stop(self) -> None:
        """Start nothing more, for ever."""
        self._stopping = True

    # What is received, and what became of it

    def beat(self) -> None:
        """Note that this process runs: to be told just before and just after each poll.

        Where it stood still for longer than the session the broker may have given our partitions to others, and
        they may have handled what we are about to receive: nothing is begun until a commit has shown that we are
        still a member. A record that waited in our buffers meanwhile would be condemned for its time.
        """
        now = (self._clock.monotonic(), self._clock.now())
        with self._lock:
            before, self._beats = self._beats or now, now
            if max(now[0] - before[0], now[1] - before[1]) > self._session:
                self._doubted = now[0]

    def receive(self, place: Place, messages: Iterable[Message]) -> None:
        """Note records of a partition, in the order of its log."""
        now = self._clock.now()
        with self._lock:
            part = self.part(place)
            for message in messages:
                if part.last is not None and offset_of(message) <= part.last:
                    part = self._went_back(part, offset_of(message))
                part.receive(message, now)

    def choose(self) -> Part | None:
        """Return a partition that has something to do and may, marked as running; ``None`` where there is none."""
        now = self._clock.monotonic()
        with self._lock:
            if self._held_back or self._stopping or self._doubted is not None:
                return None
            for part in self._parts.values():
                if part.running or part.suspended or (part.stall is not None and now < part.due):
                    continue
                if part.waiting:
                    part.running = True
                    self._running.append(part)
                    return part
                part.stall = None
        return None

    def first(self, part: Part) -> Delivery | None:
        """Return the delivery of a chosen partition whose turn it is, ``None`` where its time is over."""
        with self._lock:
            if self._held_back or self._stopping or not part.ours or not part.waiting:
                return None
            return part.waiting[0]

    def attempted(self, part: Part, outcome: Outcome) -> bool:
        """Note what became of the first delivery of a chosen partition; tell whether the next may follow."""
        with self._lock:
            if outcome.verdict is not _DEFERRED:
                part.settle()
                return True
            self.stall(part, offset_of(part.waiting[0].message), outcome)
            part.put_back()
            return False

    def left(self, part: Part) -> None:
        """Note that a chosen partition is worked on no longer."""
        with self._lock:
            part.running = False
            self._running.remove(part)
            self._ended = True

    def skipped(self, part: Part, beyond: int) -> None:
        """Note that a range of which nothing can be read is on record; the log goes on behind it."""
        with self._lock:
            part.skip(beyond)

    def stall(self, part: Part, offset: int, outcome: Outcome) -> None:
        """Let a partition wait for the world at an offset."""
        with self._lock:
            topic, number = part.place.topic, part.place.partition
            since = self._clock.now() if part.stall is None else part.stall.since
            if part.stall is None or part.stall.cause is not outcome.cause:
                _LOG.warning("%s-%d stalls at %d: %s", topic, number, offset, outcome.cause)
            part.attempt += 1
            part.due = self._clock.monotonic() + self._backoff.wait(part.attempt)
            part.stall = Stall(
                topic=topic,
                partition=number,
                offset=offset,
                cause=outcome.cause,
                detail=outcome.detail,
                since=since,
            )

    def keys_changed(self) -> None:
        """Let what waits be tried again at once."""
        with self._lock:
            for part in self._parts.values():
                part.due = 0.0

    # What is to be done

    def wanted(self, held: Set[Any], paused: Set[Any]) -> Wanted:
        """Return what is to be paused, resumed and read from elsewhere; what others paused stays so.

        While everything that can be worked on is, all is paused: a fetch for partitions that are idle would stand
        at the broker, and keep the client from fetching for those that are worked on.

        Args:
            held: what the client holds now.
            paused: what is paused there.
        """
        with self._lock:
            full = 0 < self._width <= len(self._running)
            parts = self._parts.values()
            wished = held & (held if full else {part.place for part in parts if part.busy})
            pause, resume = wished - paused, (paused & self._paused) - wished
            self._paused = pause | (wished & self._paused)
            seek = {part.place: part.seek for part in parts if part.seek is not None and part.place in held}
            for part in parts:
                part.seek = None
            return Wanted(pause=pause, resume=resume, seek=seek)

    def patience(self, longest: float) -> float:
        """Return the seconds for which a poll may wait, at most ``longest``."""
        now = self._clock.monotonic()
        with self._lock:
            if self._running:
                return 0.0
            moments = [part.due for part in self._parts.values() if part.stall is not None and part.ours]
            moments += [] if self._doubted is None else [self._held_until]
            return max(0.0, min([longest, *(moment - now for moment in moments)]))

    def due(self, *, last: bool = False) -> Due:
        """Return the offsets to commit now: after each batch, and at intervals while one is long.

        Args:
            last: there is no later time.
        """
        now = self._clock.monotonic()
        with self._lock:
            timely = self._ended or not self._running or self._doubted is not None
            if not last and (now < self._held_until or not (timely or now - self._committed_at >= self._interval)):
                return {}
            return self.prefixes()

    def prefixes(self) -> Due:
        """Return the offsets that may be committed and are not yet; in doubt also those that show who we are."""
        found: dict[Part, int] = {}
        with self._lock:
            for part in self._parts.values():
                offset = part.settled
                if self._doubted is not None:
                    offset = part.first_open if offset is None else offset
                elif offset == part.committed:
                    continue
                if part.ours and offset is not None:
                    found[part] = offset
        return found

    def committing(self) -> float:
        """Note that a commit begins; return the moment, for ``committed``."""
        with self._lock:
            self._ended, self._committed_at = False, self._clock.monotonic()
            return self._committed_at

    def committed(self, offsets: Due, began: float) -> None:
        """Note what the broker has taken: by that we were a member when the commit began."""
        with self._lock:
            for part, offset in offsets.items():
                part.committed, part.unsent = offset, None
                while part.letters and part.letters[0][0] < offset:
                    part.letters.popleft()
            if self._doubted is not None and began >= self._doubted:
                self._doubted = None

    def refused(self) -> None:
        """Note that a commit failed for now."""
        with self._lock:
            self._held_until = self._clock.monotonic() + COMMIT_RETRY

    def in_hand(self) -> list[Delivery]:
        """Return the deliveries whose handlers may run now."""
        with self._lock:
            return [part.waiting[0] for part in self._running if part.waiting]

    def release(self) -> list[Delivery]:
        """Return what was claimed and will not be handled here: put off, or judged ahead of its turn."""
        with self._lock:
            idle = [part for part in self._parts.values() if not part.running]
            return [each for part in idle for each in part.waiting if _is_claimed(each)]

    def hand_back(self, held: Set[Any], paused: Set[Any]) -> Wanted:
        """Return what leaves the client as it was: nothing paused by us, each place at its first open record."""
        with self._lock:
            opened = {part.place: part.first_open for part in self._parts.values() if part.place in held}
            seek = {place: offset for place, offset in opened.items() if offset is not None}
            return Wanted(pause=frozenset(), resume=paused & self._paused, seek=seek)

    def health(self, consuming: bool) -> Health:
        """Return whether it runs, and which partitions stall since when and why."""
        with self._lock:
            found = [part.stall or part.unsent for part in self._parts.values()]
            stalls = sorted((stall for stall in found if stall is not None), key=lambda stall: stall.since)
            return Health(consuming=consuming, in_flight=len(self._running), stalls=tuple(stalls))

    def _went_back(self, part: Part, offset: int) -> Part:
        """Return a new part for a partition whose log goes on at an offset that was read before.

        Its letters from before that offset are kept: their records are not read again.
        """
        kept = [letter for letter in part.letters if letter[0] < offset]
        self._drop({part.place})
        renewed = self.part(part.place)
        renewed.letters.extend(kept)
        return renewed

    def _forget(self, places: Set[Any]) -> None:
        """Drop partitions that were taken away, of which the client keeps no pause either."""
        self._drop(places)
        self._paused -= places

    def _drop(self, places: Set[Any]) -> None:
        """Forget partitions; what runs of them is not committed."""
        for place in places & self._parts.keys():
            self._parts.pop(place).alive = False


def _is_claimed(delivery: Delivery) -> bool:
    """Tell whether the store may hold a claim of a delivery whose handler did not end; its answer may be lost."""
    return delivery.step is Step.HANDLE or (delivery.step is Step.JUDGE and delivery.claim is not None)
