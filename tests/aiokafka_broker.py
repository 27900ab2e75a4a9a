"""Clients like aiokafka's for the log broker in memory, and their stage.

They are aiokafka's own classes, with its own subscription state; coordinator, fetcher and connection are ours. The
rebalances are eager: the listener is awaited in a task of the coordinator, and positions are forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, KafkaTimeoutError

from mqauth.brokers import aiokafka
from mqauth.brokers.event_loop import on_thread
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.testing.loop_thread import LoopThread
from tests.log_broker import SESSION, Broker, MemoryLogStage, Record, Wire
from tests.log_broker import TopicPartition as Place

TICK = 0.002
"""Seconds after which a client looks at the broker again."""
SETTINGS: dict[str, Any] = {
    "group_id": "billing", "enable_auto_commit": False, "auto_offset_reset": "earliest",
    "session_timeout_ms": int(SESSION * 1000), "rebalance_timeout_ms": 20_000,
}  # fmt: skip


class FakeConsumer(Wire, AIOKafkaConsumer):  # type: ignore[misc]
    """An ``AIOKafkaConsumer`` of the broker's group, as if it were started."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker.topic, **SETTINGS)
        self.connect(broker)
        self._closed = True  # nobody warns that it was not stopped
        self.generation = -1
        self._positions: dict[Any, int] = {}
        self._coordinator = self
        self._fetcher = SimpleNamespace(seek_to=self._seek_to, _default_reset_strategy=None)
        self._client = SimpleNamespace(get_random_node=lambda: 0, send=self._answer)
        self._join_anew()
        self._coordinating = asyncio.get_running_loop().create_task(self._coordinate())

    async def getmany(self, *places: Any, timeout_ms: int = 0, max_records: Any = None) -> Any:
        """Return records, after at most so long; during a rebalance its end is waited for."""
        until = asyncio.get_running_loop().time() + timeout_ms / 1000
        while True:
            await self._reached()
            if self._subscription.reassignment_in_progress:
                await self._subscription.wait_for_assignment()
            found = self._take(places)
            if found or asyncio.get_running_loop().time() >= until:
                return found
            await asyncio.sleep(TICK)

    async def commit(self, offsets: Any = None) -> None:
        """Commit, where every partition is still ours."""
        await self._reached()
        commits = {_place(place): tuple(commit) for place, commit in offsets.items()}
        self.commit_offsets(commits, CommitFailedError())

    async def fetch_committed_offsets(self, places: Any) -> Any:
        """Return the group's commits."""
        await self._reached()
        found = self.broker.commits([_place(place) for place in places])
        return {TopicPartition(*place): commit for place, commit in found.items()}

    def partitions_for_topic(self, topic: str) -> set[int]:
        """Return the numbers of the topic's partitions."""
        return {place.partition for place in self.broker.places}

    async def beginning_offsets(self, places: Any) -> dict[Any, int]:
        """Return where partitions begin."""
        return dict.fromkeys(places, 0)

    def fetch(self) -> dict[Any, list[Record]]:
        """Return what is next of each partition that is not paused."""
        return self.next_records(
            {_place(place) for place in self.assignment() - self.paused()},
            {_place(place): offset for place, offset in self._positions.items()},
        )

    def kill(self) -> None:
        """Be killed."""
        super().kill()
        self._loop.call_soon_threadsafe(self._coordinating.cancel)

    async def _reached(self) -> None:
        if not self._connected.is_set():
            await asyncio.to_thread(self._connected.wait)
        self.reach()

    async def _answer(self, _node: int, _request: Any) -> Any:
        return SimpleNamespace(cluster_id="cluster")

    def _seek_to(self, place: Any, offset: int) -> None:
        self._subscription.seek(place, offset)
        self._positions[place] = offset

    def _take(self, places: Any) -> dict[Any, list[ConsumerRecord[Any, Any]]]:
        """Take what is next; what was on its way to us when we were evicted comes first."""
        with self.broker.changed:
            found, self.sent = self.sent or self.fetch(), {}
        taken = {TopicPartition(*place): records for place, records in found.items()}
        for place, records in taken.items():
            self._positions[place] = records[-1].offset + 1
        return {place: [_record(record) for record in records] for place, records in taken.items()}

    async def _coordinate(self) -> None:
        """Take part in each rebalance."""
        while True:
            await asyncio.sleep(TICK)
            await self._reached()
            with self.broker.changed:
                self.broker.evict_silent()
                evicted = self not in self.broker.members
                behind = self.generation != self.broker.generation
            if not self.sent and (evicted or behind):
                await self._rebalance(evicted)

    async def _rebalance(self, evicted: bool) -> None:
        """Give up all partitions, join, and take what is ours once everybody else has given it up."""
        self.generation = -1 if evicted else self.generation
        listener, held = self._subscription.listener, set(self.assignment())
        self._subscription.begin_reassignment()
        if listener is not None:
            await listener.on_partitions_revoked(held)
        self._give_up()
        if evicted:
            self._join_anew()
        while (target := self._free_target()) is None:
            await asyncio.sleep(TICK)
            await self._reached()
        self._positions = {place: self.broker.committed.get(_place(place), 0) for place in target}
        self._subscription.assign_from_subscribed(target)
        if listener is not None:
            await listener.on_partitions_assigned(target)

    def _join_anew(self) -> None:
        with self.broker.changed:
            self.broker.members.append(self)  # type: ignore[arg-type]
            self.broker.share_out()

    def _give_up(self) -> None:
        broker: Any = self.broker
        with broker.changed:
            broker.owner = {place: owner for place, owner in broker.owner.items() if owner is not self}
            broker.changed.notify_all()

    def _free_target(self) -> set[Any] | None:
        """Own what is ours in the newest generation, and return it; ``None`` while another member has of it."""
        broker: Any = self.broker
        with broker.changed:
            broker.evict_silent()
            if self not in broker.members:
                self._join_anew()
            target = broker.target(self)
            if any(broker.owner.get(place, self) is not self for place in target):
                return None
            broker.owner |= dict.fromkeys(target, self)
            self.generation = broker.generation
        return {TopicPartition(*place) for place in target}


class FakeProducer(AIOKafkaProducer):
    """As much of an ``AIOKafkaProducer`` as dead letters use."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(acks="all")
        self._closed = True  # nobody warns that it was not stopped
        self.broker = broker

    async def send(self, topic: Any, value: Any = None, key: Any = None, **record: Any) -> Any:
        """Append a letter, or lose it."""
        sent = asyncio.get_running_loop().create_future()
        with self.broker.changed:
            self.broker.sent += 1
            if self.broker.refuses_letters:
                sent.set_exception(KafkaTimeoutError())
            else:
                self.broker.dead.append(Record(topic, 0, len(self.broker.dead), value, key, record["headers"]))
                sent.set_result(None)
        return sent


class MemoryMember:
    """A consumer on an event loop of its own."""

    def __init__(self, broker: Broker, make: Callable[[Any, Any], aiokafka.Consumer]) -> None:
        self._thread = LoopThread()
        self._thread.call(self._start(broker, make))

    async def _start(self, broker: Broker, make: Callable[[Any, Any], aiokafka.Consumer]) -> None:
        self.client = FakeConsumer(broker)
        sink = aiokafka.DeadLetters(FakeProducer(broker), "orders.dead", timeout=1)
        self.consumer = await make(self.client, sink).__aenter__()

    @property
    def failed(self) -> bool:
        return self.consumer.failed

    def health(self) -> Any:
        return self.consumer.health()

    def kill(self) -> None:
        self.client.kill()
        asyncio.run_coroutine_threadsafe(self.consumer.stop(), self._thread.loop)

    def close(self) -> None:
        try:
            self._thread.call(self.consumer.__aexit__(None, None, None))
        finally:
            self.client.kill()
            self._thread.close()


class AiokafkaMemoryStage(MemoryLogStage):
    """The stage of the broker in memory, with clients like aiokafka's."""

    def second(self, guard: Pipeline, handler: Handler, *, workers: int = 1) -> Any:
        def make(client: Any, sink: Any) -> aiokafka.Consumer:
            return aiokafka.Consumer(
                client, guard, on_thread(handler), dead_letters=sink, workers=workers,
                backoff=aiokafka.Backoff(first=0.3, longest=1),
            )  # fmt: skip

        return MemoryMember(self.broker, make)

    def kill(self, member: Any) -> None:
        member.kill()


def _place(partition: Any) -> Any:
    return Place(partition.topic, partition.partition)


def _record(record: Record) -> ConsumerRecord[Any, Any]:
    return ConsumerRecord(
        record.topic, record.partition, record.offset, record.timestamp, 1, record.key, record.value, None,
        -1, -1, tuple(record.headers),
    )  # fmt: skip
