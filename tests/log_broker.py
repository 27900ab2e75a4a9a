"""A log broker in memory with one group, spoken to by clients like kafka-python's, and its stage.

Partitions go to their next owner once their last one has agreed, or was silent for a session. A client that is cut
off stands still, and finds afterwards what the broker had sent it before.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mqauth import Message, Signer
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.wire import destination
from tests.kafka_client import PRODUCER, Partitions, Record
from tests.kit.delivery_stage import CommitObserver

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import OffsetAndMetadata, TopicPartition
    from kafka.errors import CommitFailedError, KafkaTimeoutError

    from mqauth.brokers import kafka
    from mqauth.brokers.kafka import repair as kafka_repair
    from mqauth.brokers.log.confirmed import TopicSink
    from mqauth.brokers.log.records import dead_letter_headers

__all__ = ["MemoryLogStage", "TopicSink", "kafka", "kafka_repair"]
SESSION = 0.3
PARTITIONS = 4
MOST = 50


class Gone(Exception):
    """The client's process was killed."""


@dataclass
class Broker:
    """The source's log, the group, and the dead letters."""

    topic: str = "orders"
    changed: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))
    committed: dict[Any, int] = field(default_factory=dict)
    metadata: dict[Any, str] = field(default_factory=dict)
    owner: dict[Any, Client] = field(default_factory=dict)
    members: list[Client] = field(default_factory=list)
    generation: int = 0
    dead: list[Record] = field(default_factory=list)
    sent: int = 0
    refuses_commits: bool = False
    refuses_letters: bool = False
    observers: list[CommitObserver] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.places = [TopicPartition(self.topic, number) for number in range(PARTITIONS)]
        self.log: dict[Any, list[Record]] = {place: [] for place in self.places}
        self.turned = 0

    def commits(self, places: Any) -> dict[Any, OffsetAndMetadata]:
        """Return the group's commits of partitions."""
        with self.changed:
            found = [place for place in places if place in self.committed]
            return {place: OffsetAndMetadata(self.committed[place], self.metadata[place], -1) for place in found}

    def append(self, message: Message) -> None:
        """Append a record."""
        with self.changed:
            place = self.places[sum(message.key or b"") % PARTITIONS]
            headers = dead_letter_headers(message.headers)
            log = self.log[place]
            log.append(Record(self.topic, place.partition, len(log), message.body, message.key, headers))
            self.changed.notify_all()

    def share_out(self) -> None:
        """Begin a rebalance."""
        with self.changed:
            self.generation += 1
            self.changed.notify_all()

    def target(self, client: Client) -> set[Any]:
        """Return what is a member's in this generation."""
        at, count = self.members.index(client), len(self.members)
        return {place for place in self.places if (place.partition + self.turned) % count == at}

    def evict(self, client: Client) -> None:
        """Take a member out of the group; what was on its way to it stays so."""
        with self.changed:
            if client in self.members:
                client.sent = client.fetch()
                self.members.remove(client)
                self.owner = {place: owner for place, owner in self.owner.items() if owner is not client}
                self.share_out()

    def evict_silent(self) -> None:
        """Take out whoever was silent for a session."""
        for member in list(self.members):
            if member.silent_since is not None and time.monotonic() - member.silent_since > SESSION:
                self.evict(member)


class Coordinator:
    """As much of kafka-python's coordinator as is looked at."""

    rejoining = False

    def __init__(self, client: Client) -> None:
        self._client = client

    def need_rejoin(self) -> bool:
        """Tell whether the next poll takes part in a rebalance."""
        return self._client.rejoins()

    def poll(self, timeout_ms: int) -> None:
        """Do nothing: the fake joins in ``poll``."""

    def fetch_committed_offsets(self, places: Any, timeout_ms: int) -> Any:
        """Return the group's commits."""
        self._client.reach()
        return self._client.broker.commits(places)


class Wire:
    """A client's way to the broker in memory: cut, healed, killed.

    Args:
        broker: the broker.
    """

    broker: Broker

    def connect(self, broker: Broker) -> None:
        """Begin as a client that is connected."""
        self.broker = broker
        self.sent: dict[Any, list[Record]] = {}
        self.silent_since: float | None = None
        self.dead = False
        self._connected = threading.Event()
        self._connected.set()

    def reach(self) -> None:
        """Stand still while cut off."""
        self._connected.wait()
        if self.dead:
            raise Gone

    def commit_offsets(self, offsets: dict[Any, tuple[int, str]], refusal: Exception) -> None:
        """Commit offsets with their metadata, where every partition is still ours."""
        self.reach()
        broker: Any = self.broker
        with broker.changed:
            if broker.refuses_commits or any(broker.owner.get(place) is not self for place in offsets):
                raise refusal
            for place, (offset, metadata) in offsets.items():
                for observer in broker.observers:
                    observer(place.partition, offset)
                broker.committed[place], broker.metadata[place] = offset, metadata

    def next_records(self, places: Any, positions: dict[Any, int]) -> dict[Any, list[Record]]:
        """Return what is next of each partition; what was on its way when we were put out comes first."""
        found = {place: self.broker.log[place][positions[place] :][:MOST] for place in places}
        return {place: records for place, records in found.items() if records}

    def cut(self) -> None:
        """Be cut off."""
        self.silent_since = time.monotonic()
        self._connected.clear()

    def heal(self) -> None:
        """Go on."""
        self.silent_since = None
        self._connected.set()

    def kill(self) -> None:
        """Be killed."""
        self.dead = True
        self._connected.set()
        self.close()

    def close(self) -> None:
        """Leave the group."""
        self.broker.evict(self)  # type: ignore[arg-type]


class Client(Wire, Partitions):
    """A ``KafkaConsumer`` of the broker's group."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker.topic, SESSION)
        self.connect(broker)
        self._coordinator = Coordinator(self)
        self.position: dict[Any, int] = {}
        self.generation = -1
        with broker.changed:
            broker.members.append(self)
            broker.share_out()

    @property
    def listener(self) -> Any:
        return self._subscription.rebalance_listener

    def seek(self, place: Any, offset: int) -> None:
        self.position[place] = offset

    def rejoins(self) -> bool:
        """Tell whether the group has another generation."""
        return self in self.broker.members and self.generation != self.broker.generation

    def poll(self, timeout_ms: int) -> dict[Any, list[Record]]:
        """Return records, after at most so long."""
        for wait in (timeout_ms / 1000, 0.0):
            self.reach()
            with self.broker.changed:
                found = self._join_and_fetch()
                if found or not wait:
                    return found
                self.broker.changed.wait(wait)
        return {}

    def commit(self, offsets: dict[Any, Any], timeout_ms: int) -> None:
        """Commit, where every partition is still ours."""
        self.commit_offsets({place: found[:2] for place, found in offsets.items()}, CommitFailedError())

    def partitions_for_topic(self, topic: str) -> set[int]:
        """Return the numbers of the topic's partitions."""
        return set(range(PARTITIONS))

    def beginning_offsets(self, places: Any, timeout_ms: int) -> dict[Any, int]:
        """Return where partitions begin."""
        return dict.fromkeys(places, 0)

    def fetch(self) -> dict[Any, list[Record]]:
        """Return what is next of each partition that is not paused."""
        found = self.next_records(self.held - self._paused, self.position)
        for place, records in found.items():
            self.position[place] += len(records)
        return found

    def _join_and_fetch(self) -> dict[Any, list[Record]]:
        """Take part in a rebalance where one is due, and fetch; what was on its way comes first."""
        broker = self.broker
        broker.evict_silent()
        if self.sent:
            found, self.sent = self.sent, {}
            return found
        if self not in broker.members:
            self.listener.on_partitions_lost(set(self.held))
            self.held, self._paused = set(), set()
            broker.members.append(self)
            broker.share_out()
        if self.generation != broker.generation:
            self._join()
        return self.fetch()

    def _join(self) -> None:
        """Give up what is another's now, and take what is ours and free."""
        broker, target = self.broker, self.broker.target(self)
        free = {place for place in target if broker.owner.get(place, self) is self}
        if free != self.held:
            self.listener.on_partitions_revoked(set(self.held))
            for place in self.held - target:
                del broker.owner[place]
            for place in free - self.held:
                self.position[place] = broker.committed.get(place, 0)
            broker.owner |= dict.fromkeys(free, self)
            self.held = free
            self._paused &= free
            self.listener.on_partitions_assigned(set(free))
            broker.changed.notify_all()
        if free == target:
            self.generation = broker.generation


class Future:
    """The future of a dead letter, which could be awaited as kafka-python's can."""

    is_done = True

    def __await__(self) -> Any:
        yield

    def __init__(self, lost: bool) -> None:
        self._lost = lost

    def get(self, timeout: float) -> None:
        """Raise where it was lost."""
        if self._lost:
            raise KafkaTimeoutError("lost")


class LetterClient:
    """As much of a ``KafkaProducer`` as dead letters use."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.config = PRODUCER

    def send(self, topic: str, *, value: Any, key: Any, headers: Any) -> Future:
        """Append a letter, or lose it."""
        with self.broker.changed:
            self.broker.sent += 1
            if not self.broker.refuses_letters:
                self.broker.dead.append(Record(topic, 0, len(self.broker.dead), value, key, headers))
            return Future(self.broker.refuses_letters)


class RunningMember:
    """A consumer in the background."""

    def __init__(self, consumer: Any, client: Client) -> None:
        self.consumer, self.client = consumer, client
        consumer.__enter__()

    @property
    def failed(self) -> bool:
        return bool(self.consumer.failed)

    def health(self) -> Any:
        return self.consumer.health()

    def close(self) -> None:
        self.consumer.__exit__(None, None, None)
        self.client.close()


class MemoryLogStage:
    """The stage of the broker in memory."""

    name = "kafka"
    patience = 6.0

    def __init__(self) -> None:
        self.broker = Broker()
        self.destination = destination.kafka(self.broker.topic)

    def inject(self, message: Message) -> None:
        self.broker.append(message)

    def produce(self, signer: Signer, message: Message) -> None:
        self.broker.append(signer.sign(message))

    def consume(self, guard: Pipeline, handler: Handler, *, until: Callable[[], bool]) -> None:
        raise NotImplementedError

    def second(self, guard: Pipeline, handler: Handler, *, workers: int = 1) -> Any:
        client, letters = Client(self.broker), LetterClient(self.broker)
        sink = kafka.DeadLetters(letters, "orders.dead", timeout=1)  # type: ignore[arg-type]
        consumer = kafka.Consumer(
            client,  # type: ignore[arg-type]
            guard, handler, dead_letters=sink, workers=workers,
            backoff=kafka.Backoff(first=0.3, longest=1),
        )  # fmt: skip
        return RunningMember(consumer, client)

    def rebalance(self) -> None:
        self.broker.turned += 1
        self.broker.share_out()

    def kill(self, member: Any) -> None:
        member.client.kill()
        member.consumer.stop()

    def cut(self, member: Any) -> None:
        member.client.cut()

    def heal(self, member: Any) -> None:
        member.client.heal()

    def refuse_commits(self, refusing: bool) -> None:
        self.broker.refuses_commits = refusing

    def refuse_letters(self, refusing: bool) -> None:
        self.broker.refuses_letters = refusing

    def attempts(self) -> int:
        return self.broker.sent

    def letters(self) -> list[Message]:
        return [kafka.from_native(record, scope="billing") for record in list(self.broker.dead)]

    def remove_dead_letters(self) -> None:
        raise NotImplementedError

    def restore_dead_letters(self) -> None:
        raise NotImplementedError

    def committed(self) -> dict[int, int]:
        return {place.partition: offset for place, offset in self.broker.committed.items() if offset}

    def ends(self) -> dict[int, int]:
        return {place.partition: len(log) for place, log in self.broker.log.items() if log}

    def watch(self, observer: CommitObserver) -> None:
        self.broker.observers.append(observer)

    def close(self) -> None:
        for member in list(self.broker.members):
            member.kill()
