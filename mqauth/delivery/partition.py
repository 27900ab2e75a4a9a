"""One partition while it is assigned to us: the records received, and how far it may be committed.

How the log engine works
========================
A client polls records of the partitions that the broker has assigned to it. It tells the ``Assignment`` what
came, and asks it which calls to make: pause, resume, seek, commit. Workers ask it for a partition to work on.
Nothing here makes a call, waits, or starts a thread.

**Start.** A partition that was assigned is *begun* once the group's offset of it is committed
(``mqauth.delivery.start``). Before that it is paused, and what is received of it is read again later.

**Settled prefix.** A worker chooses a partition, which marks it as running, and carries its records to their end
in order, one at a time. A record is settled when its handler has returned, or when its audit record and its dead
letter are durable. So the settled records of a partition are a prefix of the received ones, and the offset
behind the last of them can be committed. Commits are made after each visit of a partition, and at intervals
during a long one. A failed commit is made again after a second. Twice a day everything is committed again: offsets
expire at the broker.

**Deferred records.** Where something is out of reach (the replay store, the audit sink, keys), the first record
stays and its partition *stalls*: it is paused at the client and tried again after a back-off. Records behind it
are forgotten and read again later, by a seek; only their times of receipt are kept, since a message is judged by
the time when it first came. Other partitions go on.

**Pauses.** A partition is paused while it is worked on, is stalled, or has records waiting. Where all workers are
busy, all partitions are paused, since a fetch for idle ones would stand at the broker and keep the client from
fetching for the busy ones. A partition that the user paused stays paused.

**Early claims.** Records of one poll are claimed in the replay store in one round trip (``EarlyClaims``). A claim
remembers topic, partition and offset, so that a consumer that reads the same record later may take it over.

**Revocation.** Before a rebalance nothing new is begun, and what runs may end and is committed. An eager rebalance
revokes everything and gives most of it back: partitions are *suspended* until it is known which. What was lost is
dropped: no further step of its deliveries is taken, and nothing of it is committed. So is what was revoked in
another generation than the one before: a member in between may have had it.

**Doubt.** A process that stood still for longer than the group's session may have lost its partitions without
being told. Nothing is begun until a commit, which the broker refuses to a former member, has succeeded.

Example. A poll brings offsets 10, 11 and 13 of ``orders-0`` (12 was compacted away); one round trip claims all
three. 10 is handled: 11 may be committed. For 11 the audit sink is out of reach: the partition stalls at 11, the
client is told to pause it and to seek to 13, and the record 13 is forgotten. The commit says 11. After the
back-off 11 is tried again where it stopped; it is audited, dead-lettered, and settled. The partition is resumed,
a poll brings 13, and 14 is committed. Had the partition been lost while it stalled, the next owner would read
from 11.

``Finished`` knows the records that this process has finished and not committed yet, by place and content. A
consumer that is put out of its group while a handler runs cannot commit what that handler did. Where the partition
comes back to this process, the record is read again: it is settled without its handler. Otherwise a handler that
always takes longer than the group's session would run for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from typing import Any, Final, NamedTuple, Protocol, Self

from mqauth.delivery.health import Stall
from mqauth.delivery.start import Start
from mqauth.errors import StaleDelivery
from mqauth.judging.pipeline import Delivery, Outcome, Step
from mqauth.letters.dead_letter import DeadLetter
from mqauth.logs import emit
from mqauth.replay.rules import ClaimRequest
from mqauth.wire.message import Message


class TopicPartition(Protocol):
    """The name of a partition, as a client writes it: hashable, equal by topic and number."""

    @property
    def topic(self) -> str:
        """The topic's name."""

    @property
    def partition(self) -> int:
        """The partition's number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCalls:
    """The calls to make on a client before its next poll.

    Args:
        pause: partitions to pause.
        resume: partitions to resume; only those that the engine has paused.
        seek: offsets to read from next, by partition.
    """

    pause: Set[Any]
    resume: Set[Any]
    seek: Mapping[Any, int]


class Receipt(NamedTuple):
    """When the records up to an offset were first received, UTC seconds."""

    upto: int
    received: float


@dataclass(slots=True, eq=False)
class Partition:
    """One assigned partition.

    Attributes:
        topic_partition: its name.
        waiting: deliveries that are received and not settled, in order.
        letters: dead letters, each with its record's offset, that wait for the transaction that commits them.
        done: the claims of records that were handled and are yet to be confirmed.
        last: the highest offset received.
        next: the offset to commit: one past the last settled record.
        beyond: the offset after a range that was skipped; it counts once everything before it is settled.
        committed: the offset that the broker has.
        metadata: of its commits (``mqauth.delivery.start``).
        seek: the offset to read from next, where that is not where the client stands; kept while the client does
            not hold the partition, in the middle of a rebalance.
        receipts: when the records that will be read again were first received.
        alive: whether it is still assigned; once false, nothing of it is committed.
        suspended: whether an eager rebalance revoked it, and it is not known yet whether it comes back.
        running: whether a worker has it.
        stall: why it is deferred, ``None`` where it is not.
        unsent: why its letters are not committed yet.
        attempt: how many deferrals it has had in a row.
        retry_at: monotonic seconds at which a deferred partition is tried again.
        fence: ``refuse_stale``.
    """

    topic_partition: TopicPartition
    waiting: deque[Delivery] = field(default_factory=deque)
    letters: deque[tuple[int, DeadLetter]] = field(default_factory=deque)
    done: list[ClaimRequest] = field(default_factory=list)
    last: int | None = None
    next: int | None = None
    beyond: int | None = None
    committed: int | None = None
    metadata: str = ""
    seek: int | None = None
    receipts: tuple[Receipt, ...] = ()
    alive: bool = True
    suspended: bool = False
    running: bool = False
    stall: Stall | None = None
    unsent: Stall | None = None
    attempt: int = 0
    retry_at: float = 0.0
    fence: Callable[[Delivery], None] = field(init=False)

    def __post_init__(self) -> None:
        # Bound once: looking a method up for each delivery would cost more.
        self.fence = self.refuse_stale

    @classmethod
    def begun(cls, place: TopicPartition, start: Start, early: int | None) -> Self:
        """Return a partition of which nothing was received yet.

        Args:
            place: its name.
            start: where it begins.
            early: the offset of the first record that was received of it before it was begun.
        """
        offset, committed, seek = start
        return cls(
            place,
            next=committed.offset,
            committed=committed.offset,
            metadata=committed.metadata,
            last=offset - 1 if early is None else min(early, offset) - 1,
            seek=offset if seek else early,
        )

    @property
    def ours(self) -> bool:
        """Whether its records may be begun and committed now."""
        return self.alive and not self.suspended

    @property
    def busy(self) -> bool:
        """Whether it is to be paused at the client: no more of its records are wanted now."""
        return (
            self.running
            or self.stall is not None
            or bool(self.waiting)
            or bool(self.letters)
        )

    @property
    def is_handled(self) -> bool:
        """Whether the handler of its first waiting record has returned; nothing but the end of a claim is left."""
        return bool(self.waiting) and self.waiting[0].step is Step.CONFIRM

    @property
    def settled(self) -> int | None:
        """The offset that may be committed; never past a record that is not settled."""
        return (
            self.next
            if self.waiting or self.beyond is None
            else max(self.beyond, self.next or 0)
        )

    @property
    def expected(self) -> int | None:
        """The offset behind the last record received; ``None`` where the client is to read from another one."""
        return None if self.last is None or self.seek is not None else self.last + 1

    @property
    def first_open(self) -> int | None:
        """The lowest offset that is still needed: not settled, to be read again, or with a letter to commit."""
        offsets = [self.letters[0][0]] if self.letters else []
        offsets += [offset_of(self.waiting[0].message)] if self.waiting else []
        offsets += [] if self.seek is None else [self.seek]
        return min(offsets, default=None)

    def receive(self, messages: Sequence[Message], now: float) -> Sequence[Message]:
        """Add records that were received at ``now``, UTC seconds; one that is read again keeps its first time.

        Returns:
            The records from the first on that goes back in the log; they are not added.
        """
        if not self.waiting:
            self.next, self.beyond = self.settled, None
        last, fence, add = (
            -1 if self.last is None else self.last,
            self.fence,
            self.waiting.append,
        )
        for place, message in enumerate(messages):
            offset = message.origin.offset or 0
            if offset <= last:
                return messages[place:]
            self.last = last = offset
            # The records are many, and the receipts are none but after records were read again.
            known = (
                next((each for each in self.receipts if offset <= each.upto), None)
                if self.receipts
                else None
            )
            received = known.received if known else now
            # Hashed here, where the record is in the processor's caches; after a handler it is not.
            add(
                Delivery(
                    message=message,
                    received=received,
                    fence=fence,
                    content=_content(message),
                )
            )
        return ()

    def settle(self) -> None:
        """Note that the first waiting record is settled, so that nothing is out of reach any more."""
        self.next = (self.waiting.popleft().message.origin.offset or 0) + 1
        if self.attempt:
            self.recovered()

    def put_back(self) -> None:
        """Keep the first waiting record, and forget those behind it: they are read again later.

        They cost no memory while the first one waits, and a rebalance meanwhile needs nothing to be undone.
        """
        head, *tail = self.waiting
        if tail:
            last = offset_of(tail[-1].message)
            # One entry for each run of equal times.
            runs = groupby(tail, key=lambda delivery: delivery.received)
            receipts = [
                Receipt(max(offset_of(each.message) for each in run), time)
                for time, run in runs
            ]
            # Records behind these were put back before, and were not read again yet.
            self.receipts = (
                *receipts,
                *(known for known in self.receipts if known.upto > last),
            )
            self.waiting = deque((head,))
            self.last, self.beyond = offset_of(head.message), None
            self.seek = offset_of(tail[0].message)

    def skip(self, beyond: int) -> None:
        """Go on at offset ``beyond``, behind a range that cannot be read, or is gone."""
        if not self.waiting:
            self.recovered()
        self.last, self.beyond, self.seek = beyond - 1, beyond, beyond

    def defer(self, offset: int, outcome: Outcome, at: float) -> None:
        """Note that its record at an offset is deferred, at UTC seconds."""
        self.attempt += 1
        self.stall = Stall(
            topic=self.topic_partition.topic,
            partition=self.topic_partition.partition,
            offset=offset,
            cause=outcome.cause,
            detail=outcome.detail,
            since=at if self.stall is None else self.stall.since,
        )

    def recovered(self) -> None:
        """Note that nothing is out of reach any more."""
        self.stall, self.attempt = None, 0

    def refuse_stale(self, _delivery: Delivery) -> None:
        """Refuse the next step of a delivery whose partition was taken away: somebody else may handle it.

        Raises:
            StaleDelivery: the partition was taken away, perhaps for good.
        """
        if not self.alive or self.suspended:
            raise StaleDelivery("the partition of the delivery was taken away")


def offset_of(message: Message) -> int:
    """Return the offset of a record; the broker always gives one."""
    return message.origin.offset or 0


MOST: Final = 10_000
"""Most records of all partitions; of those past it handlers run again."""


class Finished:
    """Bounded memory of finished records; the partition that waits longest for its commit is forgotten first."""

    def __init__(self) -> None:
        self._places: dict[Any, dict[int, int]] = {}
        self._size = 0

    def add(self, partition: Partition, current: Partition) -> None:
        """Remember the first waiting record of a partition, which need not run again here.

        Not where a user's seek has put the partition ``current`` in its place, and the record may be wanted again.
        """
        place, delivery = partition.topic_partition, partition.waiting[0]
        offset, letters = delivery.message.origin.offset or 0, partition.letters
        # A letter that waits for its transaction is dropped with its partition.
        if partition is not current or (letters and letters[-1][0] == offset):
            return
        if self._size >= MOST and (oldest := next(iter(self._places))) != place:
            self.forget(oldest)
        if self._size < MOST:
            records = self._places.setdefault(place, {})
            self._size -= len(records)
            records[offset] = delivery.content
            self._size += len(records)

    def settle(self, partition: Partition, messages: Sequence[Message]) -> int:
        """Settle the first of the records that a partition receives, as far as they were finished here.

        Returns:
            How many they are. Each has the content that is remembered: a topic may have been made anew.
        """
        place, records = (
            partition.topic_partition,
            self._places.get(partition.topic_partition),
        )
        went_back = offset_of(messages[0]) <= (
            -1 if partition.last is None else partition.last
        )
        if records is None or partition.waiting or partition.running or went_back:
            return 0
        known = list(
            takewhile(
                lambda each: records.get(offset_of(each)) == _content(each), messages
            )
        )
        if known:
            partition.last = offset_of(known[-1])
            partition.next, partition.beyond = partition.last + 1, None
            emit(
                "client.handled_before",
                "%s-%d: %d records before offset %d come again, and were handled here: "
                "do handlers take longer than the session of the group?",
                place.topic,
                place.partition,
                len(known),
                partition.next,
                partition=place.partition,
                offset=partition.next,
            )
        return len(known)

    def forget(self, place: Any, upto: int | None = None) -> None:
        """Forget the records of a partition, or those below an offset that is committed."""
        if (records := self._places.pop(place, None)) is None:
            return
        self._size -= len(records)
        done = (
            [] if upto is None else list(takewhile(lambda offset: offset < upto, records))
        )
        for offset in done:
            del records[offset]
        if upto is not None and records:
            self._places[place] = records
            self._size += len(records)


def _content(message: Message) -> int:
    # The token is among the headers, and speaks for the body.
    origin = message.origin
    return hash(
        (
            origin.topic_id,
            origin.timestamp_ms,
            message.key,
            message.headers,
            len(message.body or b""),
        )
    )
