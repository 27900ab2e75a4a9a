"""A Kafka of one topic and one group, and clients of kafka-python's shape that speak to it in virtual time.

Rebalances are eager: every member gives up what it has, and gets its share once all have joined or were silent for
a session. A commit of a former generation is fenced. A client that stood still finds what it had fetched before.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from tests.simulation.threads import Killed, Process, Threads

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import OffsetAndMetadata, TopicPartition
    from kafka.errors import (
        CommitFailedError,
        KafkaTimeoutError,
        RebalanceInProgressError,
        RequestTimedOutError,
        TopicAuthorizationFailedError,
    )  # fmt: skip
    from kafka.protocol.consumer.offsets import OffsetResetStrategy

PRODUCER: Final = {
    "acks": "all", "enable_idempotence": False, "max_block_ms": 60_000, "batch_size": 262_144, "linger_ms": 0,
    "key_serializer": None, "value_serializer": None, "allow_auto_create_topics": False,
}  # fmt: skip
"""The settings of kafka-python's ``KafkaProducer`` that are looked at."""
TOPIC: Final = "orders"
DEAD: Final = "orders.dead"
PLACES: Final = tuple(TopicPartition(TOPIC, number) for number in range(3))
SESSION: Final = 10.0
PATIENCE: Final = 60.0
"""Seconds for which a rebalance waits for a member that lives: ``max_poll_interval_ms``."""
EXPIRY: Final = 30.0
"""Seconds after which a producer gives a record up."""
LATENCY: Final = (0.0005, 0.005)
HEARTBEAT: Final = 1.0
"""Seconds after which a member hears of a rebalance, or that it is a member no more."""
FETCH: Final = (0.0005, 0.05)
"""Seconds after an assignment from which a partition is read and sought in."""


@dataclass(slots=True, eq=False)
class Record:
    """What is read of a ``ConsumerRecord``."""

    topic: str
    partition: int
    offset: int
    value: Any
    key: Any
    headers: Any
    timestamp: int = 0
    timestamp_type: int = 0


def source_of(letter: Record) -> tuple[int, int]:
    """Return partition and offset of the record that a letter is about."""
    source = next(
        value for name, value in letter.headers if name == "mqauth-dead-source"
    ).decode()
    _, partition, offset = source.partition("@")[0].rsplit("/", 2)
    return int(partition), int(offset)


class Fate(NamedTuple):
    """What becomes of a letter: after how many seconds its producer hears, and whether that is a confirm."""

    heard_after: float
    confirmed: bool


@dataclass
class Broker:
    """The logs, the group, and the present faults.

    Args:
        threads: the time.
        told: called with a member, a place, an offset and metadata for each commit that is taken.
        note: takes a line of the trace.
        reset: where its clients begin without an offset, ``earliest`` or ``latest``.

    Attributes:
        first: the offset of the earliest record that is left, by partition.
    """

    threads: Threads
    told: Callable[[Any, Any, int, str], None]
    note: Callable[[str, str], None]
    reset: str = "earliest"
    logs: dict[Any, list[Record]] = field(
        default_factory=lambda: {place: [] for place in PLACES}
    )
    first: dict[Any, int] = field(default_factory=lambda: dict.fromkeys(PLACES, 0))
    dead: list[Record] = field(default_factory=list)
    committed: dict[Any, int] = field(default_factory=dict)
    metadata: dict[Any, str] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    joined: list[Member] = field(default_factory=list)
    generation: int = 0
    rebalancing: bool = False
    out: dict[str, str] = field(default_factory=dict)

    def append(self, place: Any, value: Any, key: Any, headers: Any) -> Record:
        """Append a record."""
        log = self.logs[place]
        log.append(Record(TOPIC, place.partition, len(log), value, key, headers))
        return log[-1]

    def remove(self, place: Any) -> None:
        """Remove the older half of what is left of a partition, as retention does."""
        end = len(self.logs[place])
        self.first[place] += (end - self.first[place] + 1) // 2
        self.note("broker", f"{place.partition} begins at {self.first[place]} of {end}")

    def commits(self, places: Iterable[Any]) -> dict[Any, Any]:
        """Return what the group has committed of partitions."""
        found = [place for place in places if place in self.committed]
        return {
            place: OffsetAndMetadata(self.committed[place], self.metadata[place], -1)
            for place in found
        }

    def bounds(self, places: Iterable[Any], *, end: bool) -> dict[Any, int]:
        """Return where partitions begin, or where they end."""
        return {
            place: len(self.logs[place]) if end else self.first[place] for place in places
        }

    def without_offset(self, place: Any) -> int:
        """Return where a client begins that has no offset, or one that is out of range."""
        return len(self.logs[place]) if self.reset == "latest" else self.first[place]

    def is_in_range(self, place: Any, offset: int) -> bool:
        """Tell whether a client can read from an offset."""
        return self.first[place] <= offset <= len(self.logs[place])

    def bury(self, topic: str, value: Any, key: Any, headers: Any) -> Fate | None:
        """Append a letter, or lose it; ``None`` where the producer does not even take it."""
        how, delay = self.out.get("letters"), self.threads.draw.uniform(*LATENCY)
        if how == "refused":
            return None
        record = Record(topic, 0, len(self.dead), value, key, headers)
        if how == "late":
            delay += 40.0
            self.threads.agenda.after(delay, lambda: self.dead.append(record))
        elif how != "lost":
            self.dead.append(record)
        confirmed = how not in ("lost", "confirm lost")
        return Fate(delay if confirmed else EXPIRY, confirmed)

    def rebalance(self) -> None:
        """Begin a rebalance."""
        if not self.rebalancing:
            self.rebalancing, self.joined = True, []
            self.threads.agenda.after(PATIENCE, self._patience_ends)
            self.note("broker", "a rebalance begins")

    def evict(self, client: Member) -> None:
        """Take a member out of the group."""
        if client in self.members:
            self.note("broker", f"{client.process.name} is no member any more")
            self.members.remove(client)
            client.share = set()
            client.member = False
            if client in self.joined:
                self.joined.remove(client)
            self.rebalance()
            self.maybe_share_out()

    def join(self, client: Member) -> None:
        """Let a member join the rebalance that is under way."""
        if client not in self.members:
            self.members.append(client)
            client.member = True
            self.rebalance()
        if client not in self.joined:
            self.joined.append(client)
        self.maybe_share_out()

    def maybe_share_out(self) -> None:
        """End a rebalance that all members have joined."""
        if (
            not self.rebalancing
            or len(self.joined) < len(self.members)
            or not self.members
        ):
            return
        self.rebalancing = False
        self.generation += 1
        turn = self.threads.draw.randrange(len(PLACES))
        for at, member in enumerate(self.members):
            member.share = {
                p for p in PLACES if (p.partition + turn) % len(self.members) == at
            }
            member.offered = self.generation
        self.note(
            "broker",
            f"generation {self.generation} of {[member.process.name for member in self.members]}",
        )

    def _patience_ends(self) -> None:
        """Remove the members that have not joined in time."""
        if self.rebalancing:
            for member in [each for each in self.members if each not in self.joined]:
                self.evict(member)
            self.maybe_share_out()


class Member:
    """What the broker, and whoever looks on, knows of each client of the group, whatever library it is of.

    Attributes:
        share: the partitions that the broker has shared out to it.
        member: the broker counts it among the group.
        held: the partitions that it believes to be its own.
        held_since: since when, by partition.
    """

    held: set[Any]
    offered: int

    def enrol(self, broker: Broker, process: Process, most: int) -> None:
        """Begin, as no member yet.

        Args:
            broker: its broker.
            process: whose it is.
            most: records of a partition that come at a time.
        """
        self.broker, self.process, self._threads, self._most = (
            broker,
            process,
            broker.threads,
            most,
        )
        self.share: set[Any] = set()
        self.member = False
        self.generation = -1
        self.held_since: dict[Any, float] = {}
        self._ready_at: dict[Any, float] = {}

    def _commit_all(self, offsets: Iterable[tuple[Any, int, str]]) -> None:
        for place, offset, metadata in offsets:
            self.broker.told(self, place, offset, metadata)
            self.broker.committed[place], self.broker.metadata[place] = offset, metadata

    def _ready_later(self, place: Any, delay: tuple[float, float]) -> None:
        """Have a partition read from some time on."""
        self._ready_at[place] = self._threads.agenda.now + self._threads.draw.uniform(
            *delay
        )
        self._threads.agenda.at(self._ready_at[place], nothing)


def nothing() -> None:
    """Let time pass to here."""


class Coordinator:
    """The part of kafka-python's coordinator that mqauth uses."""

    rejoin_needed = True

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def rejoining(self) -> bool:
        """Whether a join was begun."""
        return self._client.joining

    def need_rejoin(self) -> bool:
        """Tell whether the next poll takes part in a rebalance."""
        return self._client.must_join()

    def poll(self, timeout_ms: int) -> None:
        """Take part in a rebalance, at most so long."""
        self._client.take_part(timeout_ms / 1000)

    def group_metadata(self) -> Any:
        """Return the generation."""
        return SimpleNamespace(generation_id=self._client.generation)

    def fetch_committed_offsets(self, places: Any, timeout_ms: int) -> Any:
        """Return the group's commits; an answer is waited for so long."""
        return self._client.fetch_committed(places, timeout_ms / 1000)


class Position:
    """What kafka-python knows of one partition; its position is ``None`` until it was fetched or reset."""

    position: Any = None
    reset: Any = None
    paused = False

    def go(self, offset: int) -> None:
        """Read on from an offset."""
        self.position, self.reset = SimpleNamespace(offset=offset), None


class Subscription:
    """The part of kafka-python's subscription state that mqauth uses.

    Args:
        strategy: of its resets.
    """

    rebalance_listener: Any = None

    def __init__(self, strategy: Any) -> None:
        self.assignment: dict[Any, Position] = {}
        self.strategy = strategy

    def request_offset_reset(self, partition: Any, strategy: Any = None) -> None:
        """Have a partition's position asked for anew."""
        state = self.assignment[partition]
        state.position, state.reset = (
            None,
            self.strategy if strategy is None else strategy,
        )


class Client(Member):
    """A ``KafkaConsumer`` of the group.

    Args:
        broker: its broker.
        process: whose it is.
        most: records of a partition in one poll.
    """

    def __init__(self, broker: Broker, process: Process, most: int) -> None:
        self.enrol(broker, process, most)
        self.config = {
            "enable_auto_commit": False, "key_deserializer": None, "value_deserializer": None,
            "group_id": "billing", "auto_offset_reset": broker.reset, "max_poll_interval_ms": int(PATIENCE * 1000),
            "session_timeout_ms": int(SESSION * 1000),
        }  # fmt: skip
        self.held = set()
        self.offered = -1
        self._coordinator = Coordinator(self)
        latest = broker.reset == "latest"
        self._subscription = Subscription(
            OffsetResetStrategy.LATEST if latest else OffsetResetStrategy.EARLIEST
        )
        self.revoked = False
        self.joining = False
        self._using = 0

    def seek(self, place: Any, offset: int) -> None:
        """Continue at an offset."""
        assert place in self.held, "kafka-python refuses to seek in what it does not hold"
        self._states[place].go(offset)

    def subscription(self) -> set[str]:
        """Return the topic."""
        return {TOPIC}

    def assignment(self) -> set[Any]:
        """Return what is held."""
        return set(self.held)

    def paused(self) -> set[Any]:
        """Return what is paused."""
        return {place for place, state in self._states.items() if state.paused}

    def pause(self, *places: Any) -> None:
        """Fetch no more of these."""
        for place in places:
            self._states[place].paused = True

    def resume(self, *places: Any) -> None:
        """Fetch of these again."""
        for place in places:
            self._states[place].paused = False

    def partitions_for_topic(self, _topic: str) -> set[int]:
        """Return the numbers of the topic's partitions."""
        return {place.partition for place in PLACES}

    def beginning_offsets(self, places: Any, timeout_ms: int) -> dict[Any, int]:
        """Return where partitions begin."""
        return self._bounds(places, end=False)

    def end_offsets(self, places: Any, timeout_ms: int) -> dict[Any, int]:
        """Return where partitions end."""
        return self._bounds(places, end=True)

    def fetch_committed(self, places: Any, seconds: float) -> dict[Any, Any]:
        """Return the group's commits; an answer is waited for so long."""
        with self._one_at_a_time():
            how = self.broker.out.get("commits")
            self._travel()
            if how == "refused":
                raise TopicAuthorizationFailedError
            if how == "fails":
                self._threads.sleep(seconds)
                raise KafkaTimeoutError
            found = self.broker.commits(places)
            self._travel()
            return found

    def must_join(self) -> bool:
        """Tell whether a join is due, as far as the client knows."""
        broker = self.broker
        return (
            not self.member
            or self.joining
            or self.generation != broker.generation
            or broker.rebalancing
        )

    def poll(self, timeout_ms: int) -> dict[Any, list[Record]]:
        """Return records, after at most ``timeout_ms``."""
        with self._one_at_a_time():
            self._travel()
            stood_still = self.generation >= 0 and not self.member and self.held
            if (
                stood_still
                and self._threads.draw.random() < 0.5
                and (found := self._fetch())
            ):
                return found
            if self._coordinator.need_rejoin():
                self._take_part(timeout_ms / 1000)
            if self.joining:
                return {}
            until = self._threads.agenda.now + timeout_ms / 1000
            self._find_positions()
            self._threads.wait(
                lambda: self._has_some() or self._coordinator.need_rejoin(), until
            )
            return self._fetch()

    def commit(self, offsets: dict[Any, Any], timeout_ms: int) -> None:
        """Commit, where every partition is still ours."""
        with self._one_at_a_time():
            how = self.broker.out.get("commits")
            self._travel()
            if how == "refused":
                raise TopicAuthorizationFailedError
            if how == "fails":
                self._threads.sleep(min(1.0, timeout_ms / 1000))
                raise RequestTimedOutError
            if (
                self.member and self.offered > self.generation
            ):  # shared out, and we have not heard of it
                raise RebalanceInProgressError
            if (
                not self.member
                or self.generation != self.broker.generation
                or not offsets.keys() <= self.share
            ):
                raise CommitFailedError
            self._commit_all((place, *offset[:2]) for place, offset in offsets.items())
            self._travel()
            if how == "answer lost":
                raise RequestTimedOutError

    def take_part(self, seconds: float) -> None:
        """Take part in a rebalance, at most so long."""
        with self._one_at_a_time():
            self._take_part(seconds)

    def _take_part(self, seconds: float) -> None:
        listener = self._subscription.rebalance_listener
        if not self.joining:
            self.joining = True
            if not self.member and self.held:
                listener.on_partitions_lost(set(self.held))
                self.held, self.held_since = set(), {}
                self._states.clear()
            else:
                self.revoked = True
                listener.on_partitions_revoked(set(self.held))
            self._travel()
        self.broker.join(self)
        until = self._threads.agenda.now + seconds
        done = self._threads.wait(lambda: self._is_shared_out() or not self.member, until)
        if not done or not self.member:
            return
        self._travel()
        if not self._is_shared_out():
            return
        self.generation, self.joining = self.offered, False
        # Positions and pauses outlive the rebalance.
        states = {
            place: self._states.get(place) or Position() for place in sorted(self.share)
        }
        self._subscription.assignment = states
        now = self._threads.agenda.now
        self.held_since = {place: self.held_since.get(place, now) for place in self.share}
        self.held = set(self.share)
        self.revoked = False
        self.broker.note(
            self.process.name,
            f"assigned {sorted(place.partition for place in self.held)}",
        )
        listener.on_partitions_assigned(set(self.held))

    def close(self) -> None:
        """Leave the group."""
        self._travel()
        self.broker.evict(self)

    def _is_shared_out(self) -> bool:
        return (
            not self.broker.rebalancing
            and self.member
            and self.offered == self.broker.generation
        )

    @property
    def _states(self) -> dict[Any, Position]:
        return self._subscription.assignment

    def _bounds(self, places: Any, *, end: bool) -> dict[Any, int]:
        with self._one_at_a_time():
            self._travel()
            found = self.broker.bounds(places, end=end)
            self._travel()
            return found

    def _find_positions(self) -> None:
        """Ask for the offsets of partitions without a position, and for the bounds of those without an offset."""
        broker, states = self.broker, self._states
        if missing := [
            place
            for place, state in states.items()
            if state.position is None and state.reset is None
        ]:
            self._travel()
            if broker.out.get("commits") in ("refused", "fails"):
                return
            found = broker.commits(missing)
            for place in missing:
                if place in found:
                    states[place].go(found[place].offset)
                else:
                    states[place].reset = self._subscription.strategy
        if resets := [state for state in states.values() if state.reset is not None]:
            self._travel()
            for place, state in states.items():
                if state in resets:
                    state.go(
                        broker.bounds(
                            [place], end=state.reset == OffsetResetStrategy.LATEST
                        )[place]
                    )

    def _has_some(self) -> bool:
        return any(map(self._left, self.held - self.paused()))

    def _left(self, place: Any) -> int:
        """Return how many records can be read of a partition; where its offset is out of range, 1."""
        position = self._states[place].position
        if position is None:
            return 0
        in_range = self.broker.is_in_range(place, position.offset)
        return len(self.broker.logs[place]) - position.offset if in_range else 1

    def _fetch(self) -> dict[Any, list[Record]]:
        found = {}
        for place in sorted(self.held - self.paused()):
            position = self._states[place].position
            if position is not None and not self.broker.is_in_range(
                place, position.offset
            ):
                self._subscription.request_offset_reset(place)
            elif position is not None:
                most = self._threads.draw.randint(1, self._most)
                records = self.broker.logs[place][position.offset :][:most]
                if records:
                    found[place] = records
                    self._states[place].go(position.offset + len(records))
        return found

    def _travel(self) -> None:
        """Wait for a request to reach the broker."""
        self._threads.sleep(self._threads.draw.uniform(*LATENCY))

    def _one_at_a_time(self) -> Client:
        return self

    def __enter__(self) -> None:
        if not self.process.alive:
            raise Killed
        assert not self._using, "kafka-python's consumer is used by two threads at once"
        self._using = 1

    def __exit__(self, *_: object) -> None:
        self._using = 0


class Future:
    """The future of a letter, done at a given time.

    Args:
        threads: the time.
        when: virtual seconds.
        lost: it fails then.
    """

    def __init__(self, threads: Threads, when: float, *, lost: bool = False) -> None:
        self._threads = threads
        self._when = when
        self._lost = lost

    @property
    def is_done(self) -> bool:
        """Whether the broker has answered, or the producer has given up."""
        return self._threads.agenda.now >= self._when

    def get(self, timeout: float) -> None:
        """Wait for the answer."""
        until = min(self._threads.agenda.now + timeout, self._when)
        if not self._threads.wait(lambda: self.is_done, until) or self._lost:
            raise KafkaTimeoutError("no answer")


class LetterClient:
    """The part of a ``KafkaProducer`` that dead letters use.

    Args:
        broker: where letters go.
        process: whose it is.
    """

    def __init__(self, broker: Broker, process: Process) -> None:
        self._broker = broker
        self._process = process
        self.config = PRODUCER
        self._metadata = SimpleNamespace(
            _last_successful_refresh_ms=-math.inf, partitions_for_topic={DEAD: {0}}.get
        )

    def partitions_for(self, topic: str) -> set[int]:
        """Return the partitions of a topic; they are waited for where the broker does not answer."""
        threads = self._broker.threads
        threads.sleep(threads.draw.uniform(*LATENCY))
        if self._broker.out.get("letters") == "refused":
            threads.sleep(self.config["max_block_ms"] / 1000)
            raise KafkaTimeoutError("no metadata")
        self._metadata._last_successful_refresh_ms = threads.agenda.now * 1000
        return {0}

    def send(self, topic: str, *, value: Any, key: Any, headers: Any) -> Future:
        """Append a letter, or lose it."""
        if not self._process.alive:
            raise Killed
        fate, threads = (
            self._broker.bury(topic, value, key, headers),
            self._broker.threads,
        )
        if fate is None:
            raise KafkaTimeoutError("no metadata")
        return Future(
            threads, threads.agenda.now + fate.heard_after, lost=not fate.confirmed
        )
