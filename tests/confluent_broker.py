"""Clients like confluent-kafka's for the log broker in memory, and its stage.

They are confluent-kafka's own classes, with the calls that would go to a broker in our hands: what is asked of the
client's settings is answered by librdkafka itself. The rebalances are eager: all is revoked, then all is assigned.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.aio import AIOConsumer

from mqauth.brokers import confluent
from mqauth.brokers.event_loop import on_thread
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.testing.loop_thread import ThreadedConsumer
from tests.log_broker import Broker, MemoryLogStage, Record, RunningMember, Wire
from tests.log_broker import TopicPartition as Place

QUIET = {"log_level": 0}
SETTINGS: dict[str, Any] = {
    "group.id": "billing", "enable.auto.offset.store": False, "auto.offset.reset": "earliest", **QUIET,
}  # fmt: skip
Callback = Callable[[Any, list[TopicPartition]], None]


def refusal(code: int) -> KafkaException:
    """Return what the client raises."""
    return KafkaException(KafkaError(code))


class FakeConsumer(Wire, Consumer):
    """A ``confluent_kafka.Consumer`` of the broker's group."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(SETTINGS)
        self.connect(broker)
        self.held: set[Any] = set()
        self.positions: dict[Any, int] = {}
        self.stopped: set[Any] = set()
        self.generation = -1
        self._joined = -1
        self._starts: dict[Any, int] | None = None
        self.asked, self.answers = threading.Event(), threading.Event()
        self.answers.set()

    def subscribe(self, topics: Any, on_assign: Any, on_revoke: Any, on_lost: Any) -> None:  # type: ignore[override]
        """Join the group."""
        assert topics == [self.broker.topic]
        self._calls: tuple[Callback, Callback, Callback] = on_assign, on_revoke, on_lost
        self._join_anew()

    def cluster_id(self, timeout: float = -1) -> str:
        """Return the id of the cluster."""
        return "cluster"

    def consumer_group_metadata(self) -> bytes:
        """Return group and generation as librdkafka encodes them."""
        return b"CGMDv2:" + struct.pack("=i", self.generation) + b"billing\0"

    def consume(self, num_messages: int = 1, timeout: float = -1) -> Any:
        """Return records, after at most so long; callbacks are called from here."""
        for wait in (timeout, 0.0):
            self.reach()
            self._rebalance()
            with self.broker.changed:
                found = self._take(num_messages)
                if found or not wait:
                    return found
                self.broker.changed.wait(wait)
        return []

    def commit(self, *, offsets: Any, asynchronous: bool) -> Any:  # type: ignore[override]
        """Commit, where every partition is still ours."""
        assert not asynchronous
        self.asked.set()
        self.answers.wait()
        self.commit_offsets(
            {_place(each): (each.offset, each.metadata) for each in offsets},
            refusal(KafkaError.ILLEGAL_GENERATION),
        )
        return offsets

    def committed(self, partitions: Any, timeout: float = -1) -> Any:
        """Return the group's commits."""
        self.reach()
        found = self.broker.commits([_place(each) for each in partitions])
        return [
            TopicPartition(place.topic, place.partition, commit.offset, commit.metadata)
            for place, commit in found.items()
        ]

    def list_topics(self, topic: str = "", timeout: float = -1) -> Any:
        """Return the partitions of the topic."""
        numbers = {place.partition: None for place in self.broker.places}
        return SimpleNamespace(topics={topic: SimpleNamespace(error=None, partitions=numbers)})

    def offsets_for_times(self, partitions: Any, timeout: float = -1) -> Any:
        """Return where partitions begin."""
        return [TopicPartition(each.topic, each.partition, 0) for each in partitions]

    def get_watermark_offsets(self, partition: Any, timeout: float = -1, cached: bool = False) -> Any:
        """Return bounds: nothing was ever removed."""
        return 0, len(self.broker.log[_place(partition)])

    def pause(self, partitions: Any) -> None:
        """Pause."""
        self.stopped |= {_place(each) for each in partitions}

    def resume(self, partitions: Any) -> None:
        """Resume."""
        self.stopped -= {_place(each) for each in partitions}

    def seek(self, partition: Any) -> None:
        """Read on from somewhere else."""
        if _place(partition) not in self.held:
            raise refusal(KafkaError._STATE)
        self.positions[_place(partition)] = partition.offset

    def assign(self, partitions: Any) -> None:
        """Take partitions from where it is said, inside ``on_assign``."""
        self._starts = {_place(each): each.offset for each in partitions}
        self._begin(self._starts.keys())

    def position(self, partitions: Any) -> Any:
        """Return what is read next."""
        return [TopicPartition(each.topic, each.partition, self.positions[_place(each)]) for each in partitions]

    def fetch(self) -> dict[Any, list[Record]]:
        """Return what is next of each partition that is not paused."""
        return self.next_records(self.held - self.stopped, self.positions)

    def _take(self, most: int) -> list[Message]:
        """Take what is next; what was on its way to us when we were evicted comes first."""
        found, self.sent = self.sent or self.fetch(), {}
        taken = [record for records in found.values() for record in records][:most]
        for record in taken:
            self.positions[_place(record)] = record.offset + 1
        return [
            Message(
                topic=record.topic, partition=record.partition, offset=record.offset, key=record.key,
                value=record.value, headers=record.headers, timestamp=(1, record.timestamp),
            )
            for record in taken
        ]  # fmt: skip

    def _rebalance(self) -> None:
        """Take part in a rebalance where one is due; the callbacks are called without the broker's lock."""
        on_assign, on_revoke, on_lost = self._calls
        broker: Any = self.broker
        with broker.changed:
            broker.evict_silent()
            if self.sent:
                return
            evicted, behind = self not in broker.members, self._joined != broker.generation
        if evicted:
            self._give_up(on_lost)
            self._join_anew()
        elif behind and self.held:
            self._give_up(on_revoke)
        if not self.held:
            self._try_to_join(on_assign)

    def _join_anew(self) -> None:
        with self.broker.changed:
            self.broker.members.append(self)  # type: ignore[arg-type]
            self.broker.share_out()

    def _give_up(self, callback: Callback) -> None:
        """Have all partitions revoked, or lost."""
        if self.held:
            callback(self, [TopicPartition(each.topic, each.partition) for each in self.held])
        with self.broker.changed:
            for place in self.held:
                if self.broker.owner.get(place) is self:
                    del self.broker.owner[place]
            self.held, self.stopped = set(), set()
            self.broker.changed.notify_all()

    def _try_to_join(self, on_assign: Callback) -> None:
        """Take what is ours, once everybody else has given it up."""
        broker: Any = self.broker
        with broker.changed:
            target = broker.target(self) if self in broker.members else set()
            theirs = any(broker.owner.get(place, self) is not self for place in target)
            if self._joined == broker.generation or theirs:
                return
            broker.owner |= dict.fromkeys(target, self)
            self.generation = self._joined = broker.generation
        self._starts = None
        on_assign(self, [TopicPartition(each.topic, each.partition) for each in target])
        if self._starts is None:
            self._begin(target)

    def _begin(self, places: Any) -> None:
        """Begin to read: where it was said, else behind what is committed."""
        with self.broker.changed:
            starts = self._starts or {}
            for place in places:
                said = starts.get(place, -1)
                self.positions[place] = said if said >= 0 else self.broker.committed.get(place, 0)
            self.held = set(places)


class FakeProducer(Producer):
    """As much of a ``confluent_kafka.Producer`` as dead letters use."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(QUIET)
        self.broker = broker
        self._reports: list[Callable[[], None]] = []

    def produce(self, topic: Any, value: Any = None, key: Any = None, *, on_delivery: Any, headers: Any) -> None:  # type: ignore[override]
        """Append a letter, or lose it."""
        with self.broker.changed:
            self.broker.sent += 1
            error = KafkaError(KafkaError._MSG_TIMED_OUT) if self.broker.refuses_letters else None
            if error is None:
                self.broker.dead.append(Record(topic, 0, len(self.broker.dead), value, key, headers))
            self._reports.append(lambda: on_delivery(error, None))

    def list_topics(self, topic: str = "", timeout: float = -1) -> Any:
        """Return the topic of the letters."""
        return SimpleNamespace(topics={"orders.dead": None})

    def poll(self, timeout: float = -1) -> int:
        """Serve the reports."""
        reports, self._reports = self._reports, []
        for report in reports:
            report()
        return len(reports)


class ConfluentMemoryStage(MemoryLogStage):
    """The stage of the broker in memory, with clients like confluent-kafka's."""

    def second(self, guard: Pipeline, handler: Handler, *, workers: int = 1) -> Any:
        client, letters = FakeConsumer(self.broker), FakeProducer(self.broker)
        consumer = confluent.Consumer(
            client, guard, handler, config=SETTINGS, topics=[self.broker.topic], workers=workers,
            dead_letters=confluent.DeadLetters(letters, "orders.dead", timeout=1, config={}),
            backoff=confluent.Backoff(first=0.3, longest=1),
        )  # fmt: skip
        return RunningMember(consumer, client)  # type: ignore[arg-type]


class FakeAIOConsumer(AIOConsumer):
    """A ``confluent_kafka.aio.AIOConsumer`` around a client of ours."""

    def __init__(self, client: Any) -> None:
        self._consumer = client


class AIOConfluentMemoryStage(MemoryLogStage):
    """The stage of the broker in memory, with clients like confluent-kafka's for an event loop."""

    def second(self, guard: Pipeline, handler: Handler, *, workers: int = 1) -> Any:
        client, letters = FakeConsumer(self.broker), FakeProducer(self.broker)

        def make() -> confluent.AIOConsumer:
            return confluent.AIOConsumer(
                FakeAIOConsumer(client), guard, on_thread(handler), config=SETTINGS, topics=[self.broker.topic],
                workers=workers,
                dead_letters=confluent.DeadLetters(letters, "orders.dead", timeout=1, config={}),
                backoff=confluent.Backoff(first=0.3, longest=1),
            )  # fmt: skip

        return RunningMember(ThreadedConsumer(make), client)  # type: ignore[arg-type]


def _place(partition: Any) -> Any:
    return Place(partition.topic, partition.partition)
