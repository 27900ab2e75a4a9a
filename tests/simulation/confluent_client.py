"""Clients of confluent-kafka's shape for the Kafka of the simulation.

They are that client's own classes, never connected: each call that would go to librdkafka is answered here, as
librdkafka 2.16 does it. It joins and sends heartbeats by itself; its callbacks run inside ``consume``, between the
records of one call or before them. What is read before a callback may be returned, or thrown away.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, Final, Self

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.aio import AIOConsumer

from tests.simulation.kafka_broker import (
    DEAD,
    FETCH,
    HEARTBEAT,
    LATENCY,
    PLACES,
    TOPIC,
    Broker,
    Member,
    Record,
    nothing,
)
from tests.simulation.threads import Killed, Process, Task

RESUMED: Final = (0.1, 0.35)
"""Seconds after a pause has ended until the next record, since what was fetched ahead is thrown away."""


def refusal(code: int) -> KafkaException:
    """Return what the client raises."""
    return KafkaException(KafkaError(code))


class Client(Consumer, Member):
    """A ``confluent_kafka.Consumer`` of the group.

    Args:
        broker: its broker.
        process: whose it is.
        most: records of a partition that come at a time.
    """

    def __init__(self, broker: Broker, process: Process, most: int) -> None:
        # Not ``super().__init__``: that would begin librdkafka's threads.
        self.enrol(broker, process, most)
        self.settings = {"group.id": "billing", "auto.offset.reset": broker.reset}
        self.held = set()
        self._offered = -1
        self._offer: set[Any] | None = None
        self._joined = self._closed = False
        self._hears_at: float | None = None
        self._fetched: dict[Any, int | None] = {}
        self._bounds: dict[Any, tuple[int, int]] = {}
        self._positions: dict[Any, int] = {}
        self._paused: set[Any] = set()
        self._starts: dict[Any, int] | None = None
        self._user: Task | None = None
        self._depth = 0

    # What the broker calls

    @property  # type: ignore[override]
    def offered(self) -> int:
        """The generation that the broker has shared out last."""
        return self._offered

    @offered.setter
    def offered(self, generation: int) -> None:
        """Take a share; the callback is called by the next ``consume``."""
        self._offered = self.generation = generation
        self._offer = set(self.share)

    # What mqauth calls

    def store_offsets(self, message: Any = None, offsets: Any = None) -> None:
        """Store nothing, as where ``enable.auto.offset.store`` is off."""

    def subscribe(
        self, topics: Any, on_assign: Any, on_revoke: Any, on_lost: Any
    ) -> None:  # type: ignore[override]
        """Join the group with the next ``consume``."""
        assert topics == [TOPIC]
        self._on_assign, self._on_revoke, self._on_lost = on_assign, on_revoke, on_lost

    def cluster_id(self, timeout: float = -1) -> str:
        """Return the id of the cluster."""
        return "cluster"

    def consumer_group_metadata(self) -> bytes:
        """Return group and generation as librdkafka encodes them."""
        return b"CGMDv2:" + struct.pack("=i", self.generation) + b"billing\0"

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[Message]:
        """Return records, after at most so long; callbacks are called from here."""
        with self._one_at_a_time():
            threads = self._threads
            until = threads.agenda.now + timeout
            threads.sleep(threads.draw.uniform(0.0001, 0.002))
            taken: list[tuple[Any, Record]] = []
            while len(taken) < num_messages:
                called = self._call_back(taken)
                taken += self._read(num_messages - len(taken))
                if called or self._has_some():
                    continue
                if not threads.wait(self._has_work, max(until, threads.agenda.now)):
                    break
            for place, record in taken:
                self._positions[place] = max(
                    self._positions.get(place, -1), record.offset + 1
                )
            return [_message(record) for _, record in taken]

    def commit(self, *, offsets: Any, asynchronous: bool) -> Any:  # type: ignore[override]
        """Commit, where the generation is the group's: the broker does not look at whose partitions they are."""
        assert not asynchronous
        with self._one_at_a_time():
            how, generation = self.broker.out.get("commits"), self.generation
            self._travel()
            if how == "refused":
                raise refusal(KafkaError.TOPIC_AUTHORIZATION_FAILED)
            if how == "fails":
                return self._fail(offsets, KafkaError.REQUEST_TIMED_OUT)
            if not self.member:
                return self._fail(offsets, KafkaError.UNKNOWN_MEMBER_ID)
            if generation != self.broker.generation:
                return self._fail(offsets, KafkaError.ILLEGAL_GENERATION)
            # It writes a NUL behind metadata.
            self._commit_all(
                (_place(each), each.offset, f"{each.metadata}\0") for each in offsets
            )
            self._travel()
            return (
                self._fail(offsets, KafkaError._TIMED_OUT)
                if how == "answer lost"
                else offsets
            )

    def committed(self, partitions: Any, timeout: float = -1) -> Any:
        """Return the group's commits; a partition without one has no valid offset."""
        with self._one_at_a_time():
            how = self.broker.out.get("commits")
            self._travel()
            if how == "refused":
                raise refusal(KafkaError.TOPIC_AUTHORIZATION_FAILED)
            if how == "fails":
                self._threads.sleep(timeout)
                raise refusal(KafkaError._TIMED_OUT)
            found = self.broker.commits(map(_place, partitions))
            self._travel()
            told = {
                place: (commit.offset, commit.metadata.rstrip("\0"))
                for place, commit in found.items()
            }
            return [
                TopicPartition(
                    each.topic,
                    each.partition,
                    *told.get(_place(each), (OFFSET_INVALID, "")),
                )
                for each in partitions
            ]

    def list_topics(self, topic: str = "", timeout: float = -1) -> Any:
        """Return the partitions of a topic."""
        with self._one_at_a_time():
            self._travel()
            numbers = {place.partition: None for place in PLACES}
            return SimpleNamespace(
                topics={topic: SimpleNamespace(error=None, partitions=numbers)}
            )

    def offsets_for_times(self, partitions: Any, timeout: float = -1) -> Any:
        """Return where partitions begin or end, as is asked of each."""
        with self._one_at_a_time():
            self._travel()
            assert {each.offset for each in partitions} <= {OFFSET_BEGINNING, OFFSET_END}
            return [
                TopicPartition(
                    each.topic, each.partition,
                    self.broker.bounds([_place(each)], end=each.offset == OFFSET_END)[_place(each)],
                )
                for each in partitions
            ]  # fmt: skip

    def get_watermark_offsets(
        self, partition: Any, timeout: float = -1, cached: bool = False
    ) -> Any:
        """Return the bounds that the last fetch of a partition has told."""
        assert cached
        return self._bounds.get(_place(partition), (OFFSET_INVALID, OFFSET_INVALID))

    def pause(self, partitions: Any) -> None:
        """Read no more of these."""
        with self._one_at_a_time():
            self._paused |= {_place(each) for each in partitions}

    def resume(self, partitions: Any) -> None:
        """Read of these again, once they have been fetched anew."""
        with self._one_at_a_time():
            for place in {_place(each) for each in partitions} & self._paused:
                self._paused.discard(place)
                self._ready_later(place, RESUMED)

    def seek(self, partition: Any) -> None:
        """Read on from somewhere else; refused where a partition has just been assigned."""
        with self._one_at_a_time():
            place = _place(partition)
            if place not in self.held or self._ready_at[place] > self._threads.agenda.now:
                raise refusal(KafkaError._STATE)
            self._fetched[place] = partition.offset
            self._positions.pop(place, None)

    def assign(self, partitions: Any) -> None:
        """Take partitions from where it is said, inside ``on_assign``."""
        self._starts = {_place(each): each.offset for each in partitions}
        self._begin(self._starts)

    def position(self, partitions: Any) -> Any:
        """Return what is read next, where a record was read before."""
        return [
            TopicPartition(
                each.topic,
                each.partition,
                self._positions.get(_place(each), OFFSET_INVALID),
            )
            for each in partitions
        ]

    def close(self) -> None:
        """Give up what is held, and leave the group."""
        if self._closed:
            return
        self._closed = True
        if self.held:
            self._give_up(self._on_revoke)
        self._travel()
        self.broker.evict(self)

    # Rebalances

    def _call_back(self, taken: list[tuple[Any, Record]]) -> bool:
        """Serve what is known of a rebalance; return whether a callback was called."""
        threads = self._threads
        if not self._has_heard() or (
            not taken and self._has_some() and threads.draw.random() < 0.5
        ):
            return False
        if self._offer is not None:
            self._take(self._offer)
            return True
        if self.held:
            self._give_up(self._on_revoke if self.member else self._on_lost)
            if threads.draw.random() < 0.5:
                taken.clear()
        self._join()
        return False

    def _has_heard(self) -> bool:
        """Tell whether there is something to do for a rebalance; a heartbeat tells, some time after it began."""
        if self._offer is not None:
            return True
        due = not self.member or (self.broker.rebalancing and not self._joined)
        if not due:
            self._hears_at = None
            return False
        if self._hears_at is None:
            delay = HEARTBEAT if self.held else 0.01
            self._hears_at = self._threads.agenda.now + self._threads.draw.uniform(
                0, delay
            )
            self._threads.agenda.at(self._hears_at, nothing)
        return self._threads.agenda.now >= self._hears_at

    def _join(self) -> None:
        self._hears_at = None
        if not self.member:
            self.generation = -1
        self._travel()
        self._joined = True
        self.broker.join(self)

    def _give_up(self, callback: Callable[[Any, Any], None]) -> None:
        """Have all partitions revoked, or lost; librdkafka drops them where the callback fails, too."""
        try:
            callback(
                self,
                [
                    TopicPartition(place.topic, place.partition)
                    for place in sorted(self.held)
                ],
            )
        finally:
            self.held, self.held_since = set(), {}
            self._fetched = {}

    def _take(self, share: set[Any]) -> None:
        """Have partitions assigned; they begin where the callback says, else behind what is committed."""
        self._offer, self._starts, self._joined = None, None, False
        self.broker.note(
            self.process.name, f"is told of {sorted(place.partition for place in share)}"
        )
        try:
            self._on_assign(
                self,
                [TopicPartition(place.topic, place.partition) for place in sorted(share)],
            )
        finally:
            if self._starts is None:
                self._begin(dict.fromkeys(share, OFFSET_INVALID))

    def _begin(self, starts: dict[Any, int]) -> None:
        now = self._threads.agenda.now
        self.held = set(starts)
        self.held_since = {place: self.held_since.get(place, now) for place in starts}
        self._fetched = {place: at if at >= 0 else None for place, at in starts.items()}
        self._positions = {}
        for place in sorted(starts):
            self._ready_later(place, FETCH)

    # Records

    def _has_work(self) -> bool:
        return self._has_some() or self._has_heard()

    def _has_some(self) -> bool:
        return any(self._left(place) for place in self.held)

    def _left(self, place: Any) -> int:
        """Return how many records of a partition can be read now."""
        if place in self._paused or self._ready_at[place] > self._threads.agenda.now:
            return 0
        broker, at = self.broker, self._fetched[place]
        # Told no offset, it asks for the group's. It tells nobody where it goes from one that is out of range.
        at = broker.committed.get(place, -1) if at is None else at
        at = at if broker.is_in_range(place, at) else broker.without_offset(place)
        self._fetched[place], self._bounds[place] = (
            at,
            (broker.first[place], len(broker.logs[place])),
        )
        return len(broker.logs[place]) - at

    def _read(self, most: int) -> list[tuple[Any, Record]]:
        """Take what has been fetched of one partition after the other."""
        found: list[tuple[Any, Record]] = []
        for place in sorted(self.held):
            count = min(
                self._left(place),
                most - len(found),
                self._threads.draw.randint(1, self._most),
            )
            if count > 0:
                begin = self._fetched[place] or 0
                self._fetched[place] = begin + count
                found += [
                    (place, record)
                    for record in self.broker.logs[place][begin : begin + count]
                ]
        return found

    def _fail(self, offsets: Iterable[Any], code: int) -> list[SimpleNamespace]:
        """Fail a commit: as a whole, or each partition of it."""
        threads = self._threads
        if code == KafkaError.REQUEST_TIMED_OUT:
            threads.sleep(1.0)
        if threads.draw.random() < 0.5:
            raise refusal(code)
        return [
            SimpleNamespace(
                topic=each.topic, partition=each.partition, error=KafkaError(code)
            )
            for each in offsets
        ]

    def _travel(self) -> None:
        """Wait for a request to reach the broker."""
        self._threads.sleep(self._threads.draw.uniform(*LATENCY))

    def _one_at_a_time(self) -> Self:
        return self

    def __enter__(self) -> Self:
        if not self.process.alive:
            raise Killed
        task = self._threads.current
        assert self._user in (None, task), "two threads are at the client at once"
        self._user = task
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._user = None


class AIOClient(AIOConsumer):
    """A ``confluent_kafka.aio.AIOConsumer`` around a client.

    Args:
        client: the client.
    """

    def __init__(self, client: Client) -> None:
        # Not ``super().__init__``: that would make a client of its own.
        self._consumer = client


class LetterClient(Producer):
    """The part of a ``confluent_kafka.Producer`` that dead letters use.

    Args:
        broker: where letters go.
        process: whose it is.
    """

    def __init__(self, broker: Broker, process: Process) -> None:
        # Not ``super().__init__``: that would begin librdkafka's threads.
        self._broker = broker
        self._process = process
        self._reports: list[tuple[float, Callable[[], None]]] = []

    def list_topics(self, topic: str = "", timeout: float = -1) -> Any:
        """Return the topic of the letters."""
        threads = self._broker.threads
        threads.sleep(threads.draw.uniform(*LATENCY))
        if self._broker.out.get("letters") == "refused":
            threads.sleep(timeout)
            raise refusal(KafkaError._TIMED_OUT)
        return SimpleNamespace(topics={DEAD: None})

    def produce(
        self,
        topic: Any,
        value: Any = None,
        key: Any = None,
        *,
        on_delivery: Any,
        headers: Any,
    ) -> None:  # type: ignore[override]
        """Append a letter, or lose it; its report is served by ``poll``."""
        if not self._process.alive:
            raise Killed
        threads, fate = (
            self._broker.threads,
            self._broker.bury(topic, value, key, headers),
        )
        if fate is None:
            raise threads.draw.choice(
                (BufferError("Local: Queue full"), refusal(KafkaError._UNKNOWN_TOPIC))
            )
        error = None if fate.confirmed else KafkaError(KafkaError._MSG_TIMED_OUT)
        due = threads.agenda.now + fate.heard_after
        self._reports.append((due, lambda: on_delivery(error, None)))

    def poll(self, timeout: float = -1) -> int:
        """Serve the reports that have come, after at most so long."""
        threads = self._broker.threads
        until = threads.agenda.now + timeout
        due = min((when for when, _ in self._reports), default=until)
        threads.wait(self._has_report, min(until, due))
        served = [report for when, report in self._reports if when <= threads.agenda.now]
        self._reports = [each for each in self._reports if each[0] > threads.agenda.now]
        for report in served:
            report()
        return len(served)

    def _has_report(self) -> bool:
        return any(when <= self._broker.threads.agenda.now for when, _ in self._reports)


def _place(partition: Any) -> Any:
    return PLACES[partition.partition]


def _message(record: Record) -> Message:
    return Message(
        topic=record.topic, partition=record.partition, offset=record.offset, key=record.key, value=record.value,
        headers=record.headers, timestamp=(1, record.timestamp),
    )  # fmt: skip
