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
from mqauth.delivery.health import Health, Stall
from mqauth.delivery.partition import Backoff, ClientCalls, Partition, TopicPartition, offset_of
from mqauth.errors import ConfigurationError
from mqauth.judging.pipeline import Delivery, Outcome, Step, Verdict
from mqauth.wire.message import Message

COMMIT_RETRY: Final = 1.0
"""Seconds before a commit that failed is made again; during a rebalance none can succeed."""
Due = Mapping[Partition, int]
_DEFERRED: Final = Verdict.DEFERRED
_LOG: Final = logging.getLogger("mqauth.delivery")


class Assignment:
    """Keeps a ``Partition`` for each partition of which records came, until it is taken away.

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
        self._partitions: dict[Any, Partition] = {}
        self._running: list[Partition] = []
        self._paused: Set[Any] = frozenset()
        self._held_back = self._stopping = self._ended = False
        self._committed_at = self._held_until = clock.monotonic()
        self._beats: tuple[float, float] | None = None
        self._doubted: float | None = None

    @property
    def running(self) -> int:
        """How many partitions are worked on, those that were taken away meanwhile included."""
        return len(self._running)

    def partition(self, place: TopicPartition) -> Partition:
        """Return the partition at a place, new where there is none."""
        with self._lock:
            return self._partitions.setdefault(place, Partition(place))

    # What the client says of the assignment

    def revoked(self, places: Collection[Any], held: Collection[Any]) -> None:
        """Note that partitions were revoked: dropped, or suspended where the client still holds them.

        An eager rebalance revokes everything and hands most of it back with its position kept; under the
        cooperative protocol (KIP-429) only what is really lost is revoked.
        """
        with self._lock:
            self._forget(set(places) - set(held))
            for place in set(places) & self._partitions.keys():
                self._partitions[place].suspended = True

    def assigned(self, held: Collection[Any]) -> None:
        """Note the end of a rebalance: what is held is gone on with, what did not come back is dropped."""
        with self._lock:
            self._forget(
                {place for place, partition in self._partitions.items() if partition.suspended} - set(held)
            )
            for partition in self._partitions.values():
                partition.suspended = False
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

    def heartbeat(self) -> None:
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

    def receive(self, place: TopicPartition, messages: Iterable[Message]) -> None:
        """Note records of a partition, in the order of its log."""
        now = self._clock.now()
        with self._lock:
            partition = self.partition(place)
            for message in messages:
                if partition.last is not None and offset_of(message) <= partition.last:
                    partition = self._went_back(partition, offset_of(message))
                partition.receive(message, now)

    def choose(self) -> Partition | None:
        """Return a partition that has something to do and may, marked as running; ``None`` where there is none."""
        now = self._clock.monotonic()
        with self._lock:
            if self._held_back or self._stopping or self._doubted is not None:
                return None
            for partition in self._partitions.values():
                if (
                    partition.running
                    or partition.suspended
                    or (partition.stall is not None and now < partition.retry_at)
                ):
                    continue
                if partition.waiting:
                    partition.running = True
                    self._running.append(partition)
                    return partition
                partition.stall = None
        return None

    def next_delivery(self, partition: Partition) -> Delivery | None:
        """Return the delivery of a chosen partition whose turn it is, ``None`` where its time is over."""
        with self._lock:
            if self._held_back or self._stopping or not partition.ours or not partition.waiting:
                return None
            return partition.waiting[0]

    def attempted(self, partition: Partition, outcome: Outcome) -> bool:
        """Note what became of the first delivery of a chosen partition; tell whether the next may follow."""
        with self._lock:
            if outcome.verdict is not _DEFERRED:
                partition.settle()
                return True
            self.stall(partition, offset_of(partition.waiting[0].message), outcome)
            partition.put_back()
            return False

    def visit_ended(self, partition: Partition) -> None:
        """Note that a chosen partition is worked on no longer."""
        with self._lock:
            partition.running = False
            self._running.remove(partition)
            self._ended = True

    def skipped(self, partition: Partition, beyond: int) -> None:
        """Note that a range of which nothing can be read is on record; the log goes on behind it."""
        with self._lock:
            partition.skip(beyond)

    def stall(self, partition: Partition, offset: int, outcome: Outcome) -> None:
        """Let a partition wait for the world at an offset."""
        with self._lock:
            topic, number = partition.topic_partition.topic, partition.topic_partition.partition
            since = self._clock.now() if partition.stall is None else partition.stall.since
            if partition.stall is None or partition.stall.cause is not outcome.cause:
                _LOG.warning("%s-%d stalls at %d: %s", topic, number, offset, outcome.cause)
            partition.attempt += 1
            partition.retry_at = self._clock.monotonic() + self._backoff.wait(partition.attempt)
            partition.stall = Stall(
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
            for partition in self._partitions.values():
                partition.retry_at = 0.0

    # What is to be done

    def client_calls(self, held: Set[Any], paused: Set[Any]) -> ClientCalls:
        """Return what is to be paused, resumed and read from elsewhere; what others paused stays so.

        While everything that can be worked on is, all is paused: a fetch for partitions that are idle would stand
        at the broker, and keep the client from fetching for those that are worked on.

        Args:
            held: what the client holds now.
            paused: what is paused there.
        """
        with self._lock:
            full = 0 < self._width <= len(self._running)
            partitions = self._partitions.values()
            wished = held & (
                held if full else {partition.topic_partition for partition in partitions if partition.busy}
            )
            pause, resume = wished - paused, (paused & self._paused) - wished
            self._paused = pause | (wished & self._paused)
            seek = {
                partition.topic_partition: partition.seek
                for partition in partitions
                if partition.seek is not None and partition.topic_partition in held
            }
            for partition in partitions:
                partition.seek = None
            return ClientCalls(pause=pause, resume=resume, seek=seek)

    def poll_timeout(self, longest: float) -> float:
        """Return the seconds for which a poll may wait, at most ``longest``."""
        now = self._clock.monotonic()
        with self._lock:
            if self._running:
                return 0.0
            moments = [
                partition.retry_at
                for partition in self._partitions.values()
                if partition.stall is not None and partition.ours
            ]
            moments += [] if self._doubted is None else [self._held_until]
            return max(0.0, min([longest, *(moment - now for moment in moments)]))

    def due_commits(self, *, last: bool = False) -> Due:
        """Return the offsets to commit now: after each batch, and at intervals while one is long.

        Args:
            last: there is no later time.
        """
        now = self._clock.monotonic()
        with self._lock:
            timely = self._ended or not self._running or self._doubted is not None
            if not last and (now < self._held_until or not (timely or now - self._committed_at >= self._interval)):
                return {}
            return self.settled_offsets()

    def settled_offsets(self) -> Due:
        """Return the offsets that may be committed and are not yet; in doubt also those that show who we are."""
        found: dict[Partition, int] = {}
        with self._lock:
            for partition in self._partitions.values():
                offset = partition.settled
                if self._doubted is not None:
                    offset = partition.first_open if offset is None else offset
                elif offset == partition.committed:
                    continue
                if partition.ours and offset is not None:
                    found[partition] = offset
        return found

    def commit_began(self) -> float:
        """Note that a commit begins; return the moment, for ``committed``."""
        with self._lock:
            self._ended, self._committed_at = False, self._clock.monotonic()
            return self._committed_at

    def committed(self, offsets: Due, began: float) -> None:
        """Note what the broker has taken: by that we were a member when the commit began."""
        with self._lock:
            for partition, offset in offsets.items():
                partition.committed, partition.unsent = offset, None
                while partition.letters and partition.letters[0][0] < offset:
                    partition.letters.popleft()
            if self._doubted is not None and began >= self._doubted:
                self._doubted = None

    def commit_failed(self) -> None:
        """Note that a commit failed for now."""
        with self._lock:
            self._held_until = self._clock.monotonic() + COMMIT_RETRY

    def running_deliveries(self) -> list[Delivery]:
        """Return the deliveries whose handlers may run now."""
        with self._lock:
            return [partition.waiting[0] for partition in self._running if partition.waiting]

    def unhandled_claims(self) -> list[Delivery]:
        """Return what was claimed and will not be handled here: put off, or judged ahead of its turn."""
        with self._lock:
            idle = [partition for partition in self._partitions.values() if not partition.running]
            return [each for partition in idle for each in partition.waiting if _is_claimed(each)]

    def final_calls(self, held: Set[Any], paused: Set[Any]) -> ClientCalls:
        """Return what leaves the client as it was: nothing paused by us, each place at its first open record."""
        with self._lock:
            opened = {
                partition.topic_partition: partition.first_open
                for partition in self._partitions.values()
                if partition.topic_partition in held
            }
            seek = {place: offset for place, offset in opened.items() if offset is not None}
            return ClientCalls(pause=frozenset(), resume=paused & self._paused, seek=seek)

    def health(self, consuming: bool) -> Health:
        """Return whether it runs, and which partitions stall since when and why."""
        with self._lock:
            found = [partition.stall or partition.unsent for partition in self._partitions.values()]
            stalls = sorted((stall for stall in found if stall is not None), key=lambda stall: stall.since)
            return Health(consuming=consuming, in_flight=len(self._running), stalls=tuple(stalls))

    def _went_back(self, partition: Partition, offset: int) -> Partition:
        """Return a new part for a partition whose log goes on at an offset that was read before.

        Its letters from before that offset are kept: their records are not read again.
        """
        kept = [letter for letter in partition.letters if letter[0] < offset]
        self._drop({partition.topic_partition})
        renewed = self.partition(partition.topic_partition)
        renewed.letters.extend(kept)
        return renewed

    def _forget(self, places: Set[Any]) -> None:
        """Drop partitions that were taken away, of which the client keeps no pause either."""
        self._drop(places)
        self._paused -= places

    def _drop(self, places: Set[Any]) -> None:
        """Forget partitions; what runs of them is not committed."""
        for place in places & self._partitions.keys():
            self._partitions.pop(place).alive = False


def _is_claimed(delivery: Delivery) -> bool:
    """Tell whether the store may hold a claim of a delivery whose handler did not end; its answer may be lost."""
    return delivery.step is Step.HANDLE or (delivery.step is Step.JUDGE and delivery.claim is not None)
