"""Clients of aiokafka's shape for the Kafka of the simulation, on event loops in virtual time.

They are aiokafka's own classes, with its own subscription state; coordinator, fetcher and connection are ours. The
coordinator is a task: it awaits the listener, joins, and is assigned partitions at their committed offsets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.consumer.fetcher import OffsetResetStrategy
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaTimeoutError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)

from tests.simulation.kafka_broker import (
    DEAD,
    FETCH,
    HEARTBEAT,
    LATENCY,
    PATIENCE,
    PLACES,
    SESSION,
    TOPIC,
    Broker,
    Member,
    Record,
)
from tests.simulation.threads import Process, loop_of

SETTINGS: Final[dict[str, Any]] = {
    "group_id": "billing", "enable_auto_commit": False,
    "session_timeout_ms": int(SESSION * 1000), "rebalance_timeout_ms": int(PATIENCE * 1000),
}  # fmt: skip


class Client(AIOKafkaConsumer, Member):  # type: ignore[misc]
    """An ``AIOKafkaConsumer`` of the group, as if it were started.

    Args:
        broker: its broker.
        process: whose it is.
        most: records of a partition that come at a time.
    """

    def __init__(self, broker: Broker, process: Process, most: int) -> None:
        super().__init__(TOPIC, **SETTINGS | {"auto_offset_reset": broker.reset})
        self._closed = True  # nobody warns that it was not stopped
        self.enrol(broker, process, most)
        self.held = set()
        self._offered = -1
        self._offer: set[Any] = set()
        self._errors: dict[Any, Exception] = {}
        self._coordinator = self
        strategy = OffsetResetStrategy.from_str(broker.reset)
        self._fetcher = SimpleNamespace(
            seek_to=self._seek_to, _default_reset_strategy=strategy
        )
        self._client = SimpleNamespace(get_random_node=lambda: 0, send=self._answer)
        self._coordinating = loop_of(process).create_task(self._coordinate())

    # What the broker calls

    @property  # type: ignore[override]
    def offered(self) -> int:
        """The generation that the broker has shared out last."""
        return self._offered

    @offered.setter
    def offered(self, generation: int) -> None:
        """Take a share, of which the coordinator hears."""
        self._offered, self._offer = generation, set(self.share)

    # What mqauth calls

    async def getmany(
        self, *places: Any, timeout_ms: int = 0, max_records: Any = None
    ) -> Any:
        """Return records, after at most so long; during a rebalance its end is waited for."""
        loop = loop_of(self.process)
        until = loop.time() + timeout_ms / 1000
        while True:
            if self._subscription.reassignment_in_progress:
                await self._subscription.wait_for_assignment()
            found = self._take(places)
            if found or loop.time() >= until:
                return found
            await loop.until(lambda: self._has_some(places), until - loop.time())

    async def commit(self, offsets: Any = None) -> None:
        """Commit, where we are a member; what passes is tried again for ever."""
        for place in offsets:
            if place not in self.assignment():
                raise IllegalStateError(f"Partition {place} is not assigned")
        while not await self._commit_once(offsets):  # noqa: ASYNC110 - as aiokafka does
            await asyncio.sleep(0.1)

    async def fetch_committed_offsets(self, places: Any) -> Any:
        """Return the group's commits; what passes is tried again for ever."""
        while True:
            how = self.broker.out.get("commits")
            await self._travel()
            if how == "refused":
                raise TopicAuthorizationFailedError
            if how != "fails":
                found = self.broker.commits(map(_place, places))
                await self._travel()
                return {TopicPartition(*place): commit for place, commit in found.items()}
            await asyncio.sleep(0.1)

    def partitions_for_topic(self, _topic: str) -> set[int]:
        """Return the numbers of the topic's partitions."""
        return {place.partition for place in PLACES}

    async def beginning_offsets(self, places: Any) -> dict[Any, int]:
        """Return where partitions begin."""
        await self._travel()
        return {place: self.broker.first[_place(place)] for place in places}

    async def end_offsets(self, places: Any) -> dict[Any, int]:
        """Return where partitions end."""
        await self._travel()
        return {place: len(self.broker.logs[_place(place)]) for place in places}

    async def stop(self) -> None:
        """Leave the group; aiokafka tells no listener of it."""
        self._coordinating.cancel()
        await self._travel()
        self.broker.evict(self)

    # Rebalances

    async def _coordinate(self) -> None:
        """Take part in each rebalance; a heartbeat tells of it."""
        while True:
            loop = loop_of(self.process)
            await loop.until(self._is_behind)
            if self.held:
                await asyncio.sleep(self._threads.draw.uniform(0, HEARTBEAT))
            await self._rebalance()

    def _is_behind(self) -> bool:
        return (
            not self.member
            or self.broker.rebalancing
            or self.generation != self.broker.generation
        )

    async def _rebalance(self) -> None:
        """Give up all partitions, join until it succeeds, and take a share."""
        self._left_alone()
        self._subscription.begin_reassignment()
        await self._tell("on_partitions_revoked", set(self.assignment()))
        self.held, self.held_since = set(), {}
        before = self._offered
        while self._offered == before:
            await self._travel()
            self._left_alone()
            self.broker.join(self)
            await loop_of(self.process).until(
                lambda: self._offered != before or not self.member
            )
        await self._travel()
        self._begin(self._offer)
        await asyncio.sleep(self._threads.draw.choice((0.0, 0.0, 0.01)))
        await self._tell("on_partitions_assigned", set(self.assignment()))

    def _left_alone(self) -> None:
        """Forget the generation where we are no member any more."""
        if not self.member:
            self.generation = -1

    def _begin(self, share: set[Any]) -> None:
        now = self._threads.agenda.now
        self.generation = self._offered
        places = {TopicPartition(*place) for place in share}
        self._subscription.assign_from_subscribed(places)
        self._errors = {}
        self.held, self.held_since = set(share), dict.fromkeys(share, now)
        for place in sorted(places):
            self._ready_later(place, FETCH)
        self.broker.note(
            self.process.name, f"is assigned {sorted(place.partition for place in share)}"
        )

    async def _tell(self, method: str, places: set[Any]) -> None:
        """Call the listener; aiokafka logs what it raises."""
        listener = self._subscription.listener
        if listener is not None:
            try:
                await getattr(listener, method)(places)
            except Exception as error:
                self.broker.note(
                    self.process.name, f"{method} raised {type(error).__name__}"
                )

    # Records and commits

    async def _commit_once(self, offsets: Any) -> bool:
        """Commit; return whether it needs no second try."""
        how, generation = self.broker.out.get("commits"), self.generation
        await self._travel()
        if how == "refused":
            raise TopicAuthorizationFailedError
        if how != "fails":
            if not self.member or generation != self.broker.generation:
                self.generation = -1
                raise CommitFailedError
            self._commit_all(
                (_place(place), *commit[:2]) for place, commit in offsets.items()
            )
        if how in ("fails", "answer lost"):
            await asyncio.sleep(1.0)
            return False
        await self._travel()
        return True

    def _seek_to(self, place: Any, offset: int) -> None:
        self._subscription.seek(place, offset)
        self._errors.pop(place, None)
        # What was fetched is dropped, and comes again with the next request.
        self._ready_later(place, LATENCY)

    def _left(self, place: Any) -> int:
        """Return how many records of a partition can be read now; 1 where there is an error to raise."""
        broker, at = self.broker, _place(place)
        if (
            self._ready_at[place] > self._threads.agenda.now
            or place not in self.assignment()
        ):
            return 0
        state, error = self._state(place), None
        if place not in self._errors and not state.has_valid_position:
            if broker.out.get("commits") in ("fails", "refused"):
                return 0
            if at in broker.committed:
                state.reset_to(broker.committed[at])
            else:
                error = NoOffsetForPartitionError(place)
        elif place not in self._errors and not broker.is_in_range(at, state.position):
            error = OffsetOutOfRangeError({place: state.position})
        if error is not None:
            if self._fetcher._default_reset_strategy == OffsetResetStrategy.NONE:
                self._errors[place] = error
            else:
                state.await_reset(self._fetcher._default_reset_strategy)
                state.reset_to(broker.without_offset(at))
        return 1 if place in self._errors else len(broker.logs[at]) - state.position

    def _state(self, place: Any) -> Any:
        return self._subscription.subscription.assignment.state_value(place)

    def _wanted(self, places: Any) -> list[Any]:
        return sorted(self.assignment() & set(places))

    def _has_some(self, places: Any) -> bool:
        return self._subscription.reassignment_in_progress or any(
            map(self._left, self._wanted(places))
        )

    def _take(self, places: Any) -> dict[Any, list[ConsumerRecord[Any, Any]]]:
        """Take what has been fetched; an error comes behind the records of other partitions."""
        found: dict[Any, list[ConsumerRecord[Any, Any]]] = {}
        for place in self._wanted(places):
            count = min(self._left(place), self._threads.draw.randint(1, self._most))
            if place in self._errors:
                if found:
                    break
                self._ready_later(place, FETCH)
                raise self._errors.pop(place)
            if count > 0:
                state = self._state(place)
                begin = state.position
                state.consumed_to(begin + count)
                records = self.broker.logs[_place(place)][begin : begin + count]
                found[place] = [_record(record) for record in records]
        return found

    async def _answer(self, _node: int, _request: Any) -> Any:
        await self._travel()
        return SimpleNamespace(cluster_id="cluster")

    async def _travel(self) -> None:
        """Wait for a request to reach the broker."""
        loop_of(self.process)
        await asyncio.sleep(self._threads.draw.uniform(*LATENCY))


class LetterClient(AIOKafkaProducer):
    """As much of an ``AIOKafkaProducer`` as dead letters use.

    Args:
        broker: where letters go.
        process: whose it is.
    """

    def __init__(self, broker: Broker, process: Process) -> None:
        super().__init__(acks="all")
        self._closed = True  # nobody warns that it was not stopped
        self._broker = broker
        self._process = process
        self.client = SimpleNamespace(fetch_all_metadata=self._all_metadata)

    async def _all_metadata(self) -> Any:
        """Return which topics there are; the answer is waited for."""
        loop, threads = loop_of(self._process), self._broker.threads
        await asyncio.sleep(threads.draw.uniform(*LATENCY))
        await loop.until(lambda: self._broker.out.get("letters") != "refused")
        return SimpleNamespace(topics=lambda: {TOPIC, DEAD})

    async def send(
        self, topic: Any, value: Any = None, key: Any = None, **record: Any
    ) -> Awaitable[None]:
        """Append a letter, or lose it."""
        loop, fate = (
            loop_of(self._process),
            self._broker.bury(topic, value, key, record["headers"]),
        )
        if fate is None:
            raise KafkaTimeoutError("no metadata")
        sent = loop.create_future()
        ended: Callable[..., None] = sent.set_result
        if not fate.confirmed:
            ended = lambda _: sent.set_exception(KafkaTimeoutError("no answer"))  # noqa: E731
        loop.call_later(fate.heard_after, lambda: None if sent.done() else ended(None))
        return sent


def _place(partition: Any) -> Any:
    return PLACES[partition.partition]


def _record(record: Record) -> ConsumerRecord[Any, Any]:
    return ConsumerRecord(
        record.topic, record.partition, record.offset, record.timestamp, 1, record.key, record.value, None,
        -1, -1, tuple(record.headers),
    )  # fmt: skip
