"""The partitions of a log assigned to this consumer, as ``mqauth.delivery.partition`` tells it."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any, Final

from mqauth.clock import Backoff, Clock
from mqauth.delivery.health import NO_SETTINGS, Counts, LogHealth, Settings
from mqauth.delivery.partition import (
    ClientCalls,
    Finished,
    Partition,
    TopicPartition,
    offset_of,
)
from mqauth.delivery.start import Start
from mqauth.errors import require
from mqauth.judging.pipeline import Delivery, Outcome, Step, Verdict
from mqauth.wire.message import Message

COMMIT_PACE = 0.1
"""Seconds between two commits after visits, since clients read nothing meanwhile."""
COMMIT_RETRY = 1.0
"""Seconds after a commit that failed."""
RENEWAL: Final = 12 * 3600.0
"""Seconds after which all offsets are committed again: they expire (``offsets.retention.minutes``)."""
Due = Mapping[Partition, int]
_DEFERRED: Final = Verdict.DEFERRED


class Assignment:
    """The assigned partitions: each from its first record until it is taken away.

    Args:
        clock: tells the time.
        backoff: how long a deferred partition waits.
        interval: longest time between commits while records are settled, seconds.
        session: seconds of silence after which the broker may have given our partitions to others.
        width: how many partitions can be worked on at once.

    Attributes:
        counts: what became of the deliveries.
        early: the first offset that was received of each partition before it was begun.
        epoch: counts facts of rebalances.

    Raises:
        ConfigurationError: ``interval`` or a wait is not above 0, or the first wait is above the longest.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
        interval: float = 5.0,
        session: float = math.inf,
        width: int = 1,
    ) -> None:
        require(interval > 0, f"commit_interval must be above 0 seconds, not {interval}")
        require(
            0 < backoff.first <= backoff.longest,
            "backoff: 0 < first <= longest, in seconds",
        )
        self._clock = clock
        self.backoff = backoff
        self._interval = interval
        self._session = session
        self._width = width
        # In an event loop it is for health(), which other threads may call.
        self._lock = threading.RLock()
        self._partitions: dict[Any, Partition] = {}
        self.early: dict[Any, int] = {}
        self.epoch = 0
        self.counts = Counts()
        self._running: list[Partition] = []
        self._paused: Set[Any] = frozenset()
        self._held_back = self._stopping = self._ended = False
        self._revoked: Set[Any] = frozenset()
        self._generation: int | None = None
        self._committed_at = self._held_until = self._renewed_at = self._begins_at = (
            clock.monotonic()
        )
        self._beats: tuple[float, float] | None = None
        self._doubted: float | None = None
        self._finished = Finished()
        self._uncommitted: float | None = None
        self._asked: float | None = None

    @property
    def running(self) -> int:
        """How many partitions are being worked on, with those that were taken away meanwhile."""
        return len(self._running)

    def partition(self, topic_partition: TopicPartition) -> Partition | None:
        """Return a partition that was begun."""
        return self._partitions.get(topic_partition)

    def unbegun(self, held: Set[Any]) -> Set[Any]:
        """Return the partitions that are to be begun now, of those that the client holds."""
        with self._lock:
            if self._revoked or self._clock.monotonic() < self._begins_at:
                return frozenset()
            # A handler may still run for what was taken away: once it has ended it need not run again.
            return (
                held
                - self._partitions.keys()
                - {each.topic_partition for each in self._running}
            )

    def begin(self, starts: Mapping[Any, Start], among: Collection[Any]) -> None:
        """Begin partitions whose start is committed; those ``among`` that are missing are tried in a second."""
        with self._lock:
            for place, start in starts.items():
                self._partitions[place] = Partition.begun(
                    place, start, self.early.pop(place, None)
                )
            if len(starts) < len(among):
                self._begins_at = self._clock.monotonic() + COMMIT_RETRY

    def revoked(
        self,
        partitions: Collection[Any],
        held: Collection[Any],
        generation: int | None = None,
    ) -> None:
        """Suspend revoked partitions that the client still holds, and drop the others.

        ``generation`` is the group's until now, where it is told; negative where we are no member.
        """
        with self._lock:
            self.epoch += 1
            self._revoked, self._generation = set(partitions) & set(held), generation
            self._forget(set(partitions) - set(held))
            for name in self._partitions.keys() & self._revoked:
                self._partitions[name].suspended = True

    def assigned(
        self,
        held: Collection[Any],
        generation: int | None = None,
        *,
        at_commits: bool = False,
    ) -> Set[Any]:
        """End a rebalance: go on with what the client holds, and drop what did not come back.

        Another member may have had what was revoked in another generation than the one before this: that is
        begun anew, and returned. ``at_commits``: the client reads from the committed offsets now.
        """
        with self._lock:
            self.epoch += 1
            before = self._generation
            in_a_row = before is None or 0 <= before == (generation or 0) - 1
            others = frozenset[Any]() if in_a_row else self._revoked
            suspended = {
                name for name, each in self._partitions.items() if each.suspended
            }
            self._forget(others | ((suspended | self.early.keys()) - set(held)))
            for partition in self._partitions.values():
                if partition.suspended and at_commits:
                    partition.seek = (
                        partition.expected if partition.seek is None else partition.seek
                    )
                partition.suspended = False
            self._revoked, self._generation, self._doubted = frozenset(), None, None
            return others

    def lost(self, places: Collection[Any]) -> None:
        """Drop partitions that somebody else has already."""
        with self._lock:
            self.epoch += 1
            self._forget(set(places))

    def hold_back(self, holding: bool) -> None:
        """Begin nothing while ``holding``: a rebalance is due, and what runs is to end and be committed first."""
        self._held_back = holding

    def stop(self) -> None:
        """Begin nothing any more."""
        self._stopping = True

    def heartbeat(self) -> None:
        """Note that this process runs, just before and just after each poll."""
        now = (self._clock.monotonic(), self._clock.now())
        with self._lock:
            before, self._beats = self._beats or now, now
            # After a longer pause others may have handled what we are about to receive. A machine that slept may
            # have stopped its monotonic clock, but not the time of day.
            if max(now[0] - before[0], now[1] - before[1]) > self._session:
                self._doubted = now[0]

    def receive(self, place: TopicPartition, messages: Sequence[Message]) -> None:
        """Add records of a partition, in the order of its log; of one that was not begun they are read again."""
        now = self._clock.now()
        with self._lock:
            partition = self._partitions.get(place)
            if partition is None:
                self.early.setdefault(place, offset_of(messages[0]))
            # Of a position that is about to be left.
            if partition is None or partition.seek is not None:
                return
            if count := self._finished.settle(partition, messages):
                # The next handler may take as long: nothing is begun until this is committed.
                self.counts.duplicate += count
                self._doubted = self._clock.monotonic()
                messages = messages[count:]
            while back := partition.receive(messages, now):
                # A user's seek: it is read again from there. Letters of records before that offset are kept.
                kept = (
                    letter
                    for letter in partition.letters
                    if letter[0] < offset_of(back[0])
                )
                self._finished.forget(place)
                partition.alive = False
                partition = Partition(
                    place, letters=deque(kept), metadata=partition.metadata
                )
                self._partitions[place], messages = partition, back

    def choose(self) -> Partition | None:
        """Return a partition with records to work on, which is marked as running at once; else ``None``."""
        now = self._clock.monotonic()
        with self._lock:
            if self._held_back or self._stopping or self._doubted is not None:
                return None
            for each in self._partitions.values():
                if (
                    each.running
                    or each.suspended
                    or (each.stall is not None and now < each.retry_at)
                ):
                    continue
                # Work is also to tell the store what was handled, where it could not be told.
                if each.waiting or each.done:
                    each.running = True
                    self._running.append(each)
                    return each
                each.stall = None
        return None

    def next_delivery(self, partition: Partition) -> Delivery | None:
        """Return the next delivery of a chosen partition, ``None`` where its worker is to leave it."""
        # Without the lock: only this worker takes a delivery away. Whoever takes the partition away waits for this
        # worker, or its fence refuses.
        if (
            self._beats is not None
            and self._clock.monotonic() - self._beats[0] > self._session
        ):
            # A handler that blocks an event loop has kept everybody from polling.
            self.heartbeat()
        if self._held_back or self._stopping or self._doubted is not None:
            return None
        return partition.waiting[0] if partition.ours and partition.waiting else None

    def attempted(self, partition: Partition, outcome: Outcome) -> bool:
        """Note the outcome of a chosen partition's first delivery; return whether the next one may follow."""
        with self._lock:
            self.counts.add(outcome)
            if outcome.verdict is _DEFERRED:
                self.stall(partition, offset_of(partition.waiting[0].message), outcome)
                partition.put_back()
                return False
            self._finished.add(
                partition, self._partitions.get(partition.topic_partition, partition)
            )
            partition.settle()
            return True

    def visit_ended(self, partition: Partition) -> None:
        """Note that a worker has left a partition: also once a handler has returned for what was taken away."""
        with self._lock:
            if partition.is_handled and not partition.alive:
                self._finished.add(
                    partition, self._partitions.get(partition.topic_partition, partition)
                )
            partition.running = False
            self._running.remove(partition)
            self._ended = True

    def skipped(self, partition: Partition, beyond: int) -> None:
        """Go on at offset ``beyond``, behind a range that cannot be read and was audited, or is gone."""
        with self._lock:
            partition.skip(beyond)

    def stall(self, partition: Partition, offset: int, outcome: Outcome) -> None:
        """Defer a partition at an offset."""
        with self._lock:
            partition.defer(offset, outcome, self._clock.now())
            partition.retry_at = self._clock.monotonic() + self.backoff.wait(
                partition.attempt
            )

    def keys_changed(self) -> None:
        """Try deferred partitions again at once: the keys that they wait for may be there now."""
        with self._lock:
            for partition in self._partitions.values():
                partition.retry_at = 0.0

    def client_calls(self, held: Set[Any], paused: Set[Any]) -> ClientCalls:
        """Return what to pause, resume and seek before the next poll, of what is held, and paused there."""
        with self._lock:
            partitions = self._partitions.values()
            unbegun = held - self._partitions.keys()
            busy = {each.topic_partition for each in partitions if each.busy}
            wished = held & (
                held if 0 < self._width <= len(self._running) else busy | unbegun
            )
            pause, resume = wished - paused, (paused & self._paused) - wished
            self._paused = pause | (wished & self._paused)
            wanted = {
                each.topic_partition: each.seek
                for each in partitions
                if each.topic_partition in held
            }
            wanted |= {place: self.early.get(place) for place in unbegun}
            seek = {
                place: offset for place, offset in wanted.items() if offset is not None
            }
            for place in held & self._partitions.keys():
                self._partitions[place].seek = None
            return ClientCalls(pause=pause, resume=resume, seek=seek)

    def poll_timeout(self, longest: float, *, beside_handlers: bool = False) -> float:
        """Return the seconds that a poll may wait; ``beside_handlers`` where the end of one ends it."""
        now = self._clock.monotonic()
        with self._lock:
            if self._running and not beside_handlers:
                return 0.0
            stalled = (
                each
                for each in self._partitions.values()
                if each.stall is not None and each.ours
            )
            # The attempt that runs now is none to be waited for.
            moments = [each.retry_at for each in stalled if not each.running]
            # A member without a partition has nothing to commit that would end its doubt.
            moments += (
                []
                if self._doubted is None or not self.settled_offsets()
                else [self._held_until]
            )
            return max(0.0, min([longest, *(moment - now for moment in moments)]))

    def due_commits(self, *, last: bool = False) -> Due:
        """Return the offsets to commit now: after visits, at intervals in a long one, and before a rebalance."""
        now = self._clock.monotonic()
        with self._lock:
            pause = (
                self._interval
                if self._running and not self._ended
                else min(COMMIT_PACE, self._interval)
            )
            early = (
                not self._held_back
                and self._doubted is None
                and now - self._committed_at < pause
            )
            if not last and (early or now < self._held_until):
                return {}
            due = self.settled_offsets()
            self._uncommitted = self._uncommitted if due else None
            return due

    def settled_offsets(self) -> Due:
        """Return the offsets that may be committed and are not yet; in doubt, and twice a day, all of them.

        A commit shows whether we are a member.
        """
        due = dict[Partition, int]()
        with self._lock:
            again = self._clock.monotonic() - self._renewed_at >= RENEWAL
            for partition in self._partitions.values():
                offset = partition.settled
                if self._doubted is not None:
                    offset = partition.first_open if offset is None else offset
                elif offset == partition.committed and not again:
                    continue
                if partition.ours and offset is not None:
                    due[partition] = offset
        return due

    def commit_began(self) -> float:
        """Note that a commit begins; return the moment, which ``committed`` needs."""
        with self._lock:
            self._ended, self._committed_at = False, self._clock.monotonic()
            self._uncommitted = (
                self._committed_at if self._uncommitted is None else self._uncommitted
            )
            return self._committed_at

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Note that the client is asked to commit, until it has returned from that."""
        self._asked = self._clock.monotonic()
        try:
            yield
        finally:
            self._asked = None

    @property
    def unanswered(self) -> float:
        """Seconds for which the client has not returned from a commit."""
        return 0.0 if (asked := self._asked) is None else self._clock.monotonic() - asked

    def committed(self, offsets: Due, began: float) -> None:
        """Note offsets that the broker has taken: it knew us as a member when the commit began."""
        with self._lock:
            for partition, offset in offsets.items():
                partition.committed, partition.unsent = offset, None
                self._finished.forget(partition.topic_partition, offset)
                while partition.letters and partition.letters[0][0] < offset:
                    partition.letters.popleft()
            self._uncommitted = None
            if self._doubted is not None and began >= self._doubted:
                self._doubted = None
            if began - self._renewed_at >= RENEWAL:
                self._renewed_at = began

    def commit_failed(self) -> None:
        """Note that a commit failed, and is to be made again."""
        with self._lock:
            self._held_until = self._clock.monotonic() + COMMIT_RETRY

    def running_deliveries(self) -> list[Delivery]:
        """Return the deliveries whose handlers may be running now."""
        with self._lock:
            return [
                partition.waiting[0] for partition in self._running if partition.waiting
            ]

    def unhandled_claims(self) -> list[Delivery]:
        """Return the deliveries that were claimed and will not be handled here: deferred, or claimed early."""
        with self._lock:
            idle = [
                x
                for each in self._partitions.values()
                if not each.running
                for x in each.waiting
            ]
            # The store may hold a claim although its answer was lost.
            return [
                x
                for x in idle
                if x.step is Step.HANDLE or (x.step is Step.JUDGE and x.claim is not None)
            ]

    def final_calls(self, held: Set[Any], paused: Set[Any]) -> ClientCalls:
        """Return the calls that leave the client as it was; a handler that runs on gets no further attempt."""
        with self._lock:
            opened = self.early | {
                each.topic_partition: each.first_open
                for each in self._partitions.values()
            }
            for partition in self._partitions.values():
                partition.alive = False
            seek = {
                place: offset
                for place, offset in opened.items()
                if offset is not None and place in held
            }
            return ClientCalls(pause=frozenset(), resume=paused & self._paused, seek=seek)

    def health(self, consuming: bool, settings: Settings = NO_SETTINGS) -> LogHealth:
        """Return how the consumer is doing: whether it runs, and what is not enforced, is told."""
        now = self._clock.monotonic()
        with self._lock:
            since = 0.0 if self._uncommitted is None else now - self._uncommitted
            return LogHealth.of(
                [each.stall or each.unsent for each in self._partitions.values()],
                consuming=consuming,
                in_flight=len(self._running),
                at=self._clock.now(),
                silent=now - (self._beats or (now,))[0],
                counts=self.counts,
                uncommitted=max(self.unanswered, since),
                **settings,
            )

    def _forget(self, places: Set[Any]) -> None:
        """Drop partitions that were taken away; the client forgets their pauses too."""
        for place in places:
            self.early.pop(place, None)
            if (
                partition := self._partitions.get(place)
            ) is not None and partition.is_handled:
                self._finished.add(partition, partition)
        for place in places & self._partitions.keys():
            self._partitions.pop(place).alive = False
        self._paused -= places
