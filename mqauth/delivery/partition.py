"""One partition while it is assigned to us: what was received and is not settled, and how far it may be committed.

One handler of a partition runs at a time and its records are taken in order, so what is settled is always a prefix
of what was received. Kafka's offsets have gaps (compaction, transaction markers): *contiguous* means by order of
receipt.

How long what waits for the world waits before it is tried again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from mqauth.clock import SYSTEM_RANDOMNESS, Randomness
from mqauth.delivery.health import Stall
from mqauth.errors import ConfigurationError, StaleDelivery
from mqauth.judging.pipeline import Delivery
from mqauth.letters.dead_letter import DeadLetter
from mqauth.wire.message import Message


class TopicPartition(Protocol):
    """A partition of a log, as its client names it: hashable, equal by topic and number."""

    @property
    def topic(self) -> str:
        """The topic's name."""
        ...

    @property
    def partition(self) -> int:
        """The partition's number."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCalls:
    """What a client is to be asked for before its next poll.

    Args:
        pause: places to pause.
        resume: places to resume; only what the engine had paused.
        seek: offsets to read from, by place.
    """

    pause: Set[Any]
    resume: Set[Any]
    seek: Mapping[Any, int]


Fence = Callable[[Delivery], None]


class Receipt(NamedTuple):
    """When records up to an offset were first received, UTC seconds."""

    upto: int
    received: float


@dataclass(slots=True, eq=False)
class Partition:
    """One assigned partition.

    Attributes:
        topic_partition: the partition.
        waiting: what was received and is not settled, oldest first.
        letters: dead letters by offset that wait for the transaction they are committed in.
        last: the highest offset received.
        next: the offset to commit, one past the last settled record.
        beyond: where the log goes on behind a range that was skipped, once all before it is settled.
        committed: the offset the broker has.
        seek: where it is to be read from next, if not where it stands.
        receipts: when the records that will be read again were first received.
        alive: false once it was taken away: nothing of it is committed any more.
        suspended: it is not known whether it comes back from an eager rebalance.
        running: a handler of it runs, or is about to.
        stall: why it waits for the world.
        unsent: why its letters are not committed yet.
        attempt: how often in a row it was put off.
        retry_at: monotonic seconds at which it may be tried again.
        fence: ``refuse_stale``.
    """

    topic_partition: TopicPartition
    waiting: deque[Delivery] = field(default_factory=deque)
    letters: deque[tuple[int, DeadLetter]] = field(default_factory=deque)
    last: int | None = None
    next: int | None = None
    beyond: int | None = None
    committed: int | None = None
    seek: int | None = None
    receipts: tuple[Receipt, ...] = ()
    alive: bool = True
    suspended: bool = False
    running: bool = False
    stall: Stall | None = None
    unsent: Stall | None = None
    attempt: int = 0
    retry_at: float = 0.0
    fence: Fence = field(init=False)

    def __post_init__(self) -> None:
        self.fence = self.refuse_stale  # bound once, not once a delivery

    @property
    def ours(self) -> bool:
        """Whether something of it may be begun or committed now."""
        return self.alive and not self.suspended

    @property
    def busy(self) -> bool:
        """Whether no more records of it are wanted now."""
        return self.running or self.stall is not None or bool(self.waiting) or bool(self.letters)

    @property
    def settled(self) -> int | None:
        """The offset that may be committed; never past a record that is not settled."""
        return self.next if self.waiting or self.beyond is None else max(self.beyond, self.next or 0)

    @property
    def first_open(self) -> int | None:
        """The lowest offset whose record is not settled or not read again, or whose letter is not committed."""
        places = [self.letters[0][0]] if self.letters else []
        places += [offset_of(self.waiting[0].message)] if self.waiting else []
        places += [] if self.seek is None else [self.seek]
        return min(places, default=None)

    def receive(self, message: Message, now: float) -> None:
        """Note a record that was received, at ``now``, UTC seconds, unless it was read before and put back."""
        if not self.waiting:
            self.next, self.beyond = self.settled, None
        self.last = offset_of(message)
        received = self._received_at(self.last, now) if self.receipts else now
        self.waiting.append(Delivery(message=message, received=received, fence=self.fence))

    def settle(self) -> None:
        """Note that the first record that waits is settled, and that the world is back."""
        self.next = offset_of(self.waiting.popleft().message) + 1
        if self.attempt:
            self.recovered()

    def put_back(self) -> None:
        """Keep the first record that waits, and let those behind it be read again."""
        head, *tail = self.waiting
        if tail:
            last = offset_of(tail[-1].message)
            behind = tuple(known for known in self.receipts if known.upto > last)  # not read again yet
            self.receipts = _receipts(tail) + behind
            self.waiting = deque((head,))
            self.last, self.beyond = offset_of(head.message), None
            self.seek = offset_of(tail[0].message)

    def skip(self, beyond: int) -> None:
        """Go on behind a range of which nothing can be read."""
        self.recovered()
        self.last, self.beyond, self.seek = beyond - 1, beyond, beyond

    def recovered(self) -> None:
        """Note that the world is back."""
        self.stall, self.attempt = None, 0

    def refuse_stale(self, _delivery: Delivery) -> None:
        """Let no step of a delivery be taken once its partition was taken away.

        Raises:
            StaleDelivery: it was.
        """
        if not self.alive:
            raise StaleDelivery("the partition of the delivery was taken away")

    def _received_at(self, offset: int, now: float) -> float:
        """Return when a record was first received."""
        return next((known.received for known in self.receipts if offset <= known.upto), now)


def offset_of(message: Message) -> int:
    """Return the offset of a record; the broker always says it."""
    return message.origin.offset or 0


def _receipts(deliveries: Iterable[Delivery]) -> tuple[Receipt, ...]:
    """Return the times of receipt of records in order, one entry for each run of equal times."""
    found: list[Receipt] = []
    for delivery in deliveries:
        if found and found[-1].received == delivery.received:
            found.pop()
        found.append(Receipt(offset_of(delivery.message), delivery.received))
    return tuple(found)


_MOST_DOUBLINGS: Final = 64
_BYTES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long a deferred partition waits: exponential with equal jitter, for ever.

    Args:
        first: longest first wait, seconds; later ones double.
        longest: no wait is longer, seconds.

    Raises:
        ConfigurationError: a wait is not above 0, or the first is above the longest.
    """

    first: float = 0.5
    longest: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.first <= self.longest:
            raise ConfigurationError("waits grow from first, above 0, to longest")

    def wait(self, attempt: int, randomness: Randomness = SYSTEM_RANDOMNESS) -> float:
        """Return the seconds to wait before a retry: between half of its step and the whole.

        Args:
            attempt: which retry it is, counted from 1.
            randomness: gives the jitter.
        """
        step = min(self.first * 2.0 ** min(attempt - 1, _MOST_DOUBLINGS), self.longest)
        jitter = int.from_bytes(randomness(_BYTES), "big") / (1 << 8 * _BYTES)
        return step / 2 * (1 + jitter)
