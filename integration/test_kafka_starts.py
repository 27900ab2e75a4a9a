"""``auto_offset_reset="latest"``, the default of every client of Kafka, loses no record of mqauth's consumers."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import kafka as kafka_python
import pytest
from aiokafka import AIOKafkaProducer
from kafka import OffsetAndMetadata, TopicPartition

from integration.kafka_stages import (
    AIOConfluentLogStage,
    AiokafkaLogStage,
    AiokafkaMember,
    ConfluentLogStage,
)
from integration.services import Kafka
from mqauth.audit.file import AuditFile
from mqauth.brokers import aiokafka, kafka
from mqauth.brokers.event_loop import on_thread
from mqauth.brokers.log.records import dead_letter_headers
from mqauth.errors import Cause, RetryLater, Unavailable
from mqauth.integrations.faststream import VerifiedMessage, protect
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing.attacks import honest_message
from mqauth.testing.loop_thread import LoopThread
from tests.kit.delivery_contract import LogPlay, _end
from tests.kit.stage_kafka_log import KafkaLogStage

_PYTHON: Any = kafka_python
SOON: Final = {"auto_offset_reset": "latest", "metadata_max_age_ms": 500}
"""New partitions are seen within a second, and not within five minutes."""
WRAPPERS: Final[dict[str, Callable[[str], Any]]] = {
    "kafka-python": lambda url: KafkaLogStage(url, **SOON),
    "confluent": lambda url: ConfluentLogStage(url, auto_offset_reset="latest"),
    "confluent-aio": lambda url: AIOConfluentLogStage(url, auto_offset_reset="latest"),
    "aiokafka": lambda url: AiokafkaLogStage(url, **SOON),
}
FASTSTREAM: Final[dict[str, Callable[[str], Any]]] = {
    "faststream-aiokafka": lambda url: FastStreamStage(url, "faststream.kafka"),
    "faststream-confluent": lambda url: FastStreamStage(url, "faststream.confluent"),
}
PROTOCOLS: Final[dict[str, Callable[[str], Any]]] = {
    "confluent-cooperative": lambda url: ConfluentLogStage(
        url,
        auto_offset_reset="latest",
        partition_assignment_strategy="cooperative-sticky",
    ),
    "confluent-kip848": lambda url: NewProtocolStage(
        url, auto_offset_reset="latest", group_protocol="consumer"
    ),
}
EVERYONE: Final = WRAPPERS | FASTSTREAM | PROTOCOLS
READ_COMMITTED: Final = {"isolation_level": "read_committed"}
STABLE: Final[dict[str, Callable[[str], Any]]] = {
    "kafka-python-stable": lambda url: KafkaLogStage(url, **SOON, **READ_COMMITTED),
    "aiokafka-stable": lambda url: AiokafkaLogStage(url, **SOON, **READ_COMMITTED),
    "confluent-stable": lambda url: ConfluentLogStage(
        url, auto_offset_reset="latest", **READ_COMMITTED
    ),
}
"""Clients that read what is committed."""


class TransactionalAiokafkaStage(AiokafkaLogStage):
    """aiokafka, with transactional dead letters."""

    def second(self, guard: Pipeline, handler: Handler, *, workers: int = 1) -> Any:
        """Start one more consumer."""

        def producer() -> Any:
            return AIOKafkaProducer(
                bootstrap_servers=self.servers, transactional_id=self.group
            )

        def make(client: Any, _: Any) -> aiokafka.Consumer:
            letters = aiokafka.TransactionalDeadLetters(producer, self.dead, 10)
            return aiokafka.Consumer(
                client, guard, on_thread(handler), dead_letters=letters, workers=workers
            )

        return AiokafkaMember(self, make)


class NewProtocolStage(ConfluentLogStage):
    """Members of the protocol of KIP-848, whose times the broker alone decides."""

    times: dict[str, Any] = {}  # noqa: RUF012 - never changed


class FastStreamStage(KafkaLogStage):
    """Protected brokers of FastStream.

    Args:
        url: of Kafka.
        package: FastStream's, with the client.
    """

    def __init__(self, url: str, package: str) -> None:
        super().__init__(url)
        self.package = importlib.import_module(package)

    def second(
        self, guard: Pipeline, handler: Handler, *, workers: int = 1
    ) -> FastStreamMember:
        """Start one more broker; its subscriber takes one record at a time."""
        return FastStreamMember(self, guard, handler)


class FastStreamMember:
    """A protected broker with one subscriber, on an event loop of its own."""

    failed = False

    def __init__(self, stage: FastStreamStage, guard: Pipeline, handler: Handler) -> None:
        self._thread = LoopThread()
        self._letters = stage.dead_letter_client()
        self._thread.call(self._start(stage, guard, handler))

    async def _start(
        self, stage: FastStreamStage, guard: Pipeline, handler: Handler
    ) -> None:
        address = ",".join(stage.servers)
        sink = kafka.DeadLetters(self._letters, stage.dead, timeout=10)
        broker = stage.package.KafkaBroker(
            address, graceful_timeout=0.1, metadata_max_age_ms=500
        )
        self._broker = protect(broker, guard=guard, dead_letters=sink)
        # FastStream's default of auto_offset_reset is latest.
        self._subscriber = self._broker.subscriber(
            stage.topic, group_id=stage.group, decoder=lambda record: record.body
        )
        handle = on_thread(handler)

        @self._subscriber
        async def take(_body: bytes, verified: VerifiedMessage) -> None:
            await handle(verified)

        await self._broker.start()

    def held(self) -> set[int]:
        """Return the numbers of its partitions."""
        return self._thread.call(self._held())

    async def _held(self) -> set[int]:
        consumer = self._subscriber.consumer
        if not hasattr(consumer, "consumer"):
            return {each.partition for each in consumer.assignment()}
        # Never beside a poll: that would have no end.
        found = await self._thread.loop.run_in_executor(
            consumer._thread_pool, consumer.consumer.assignment
        )
        return {each.partition for each in found}

    def kill(self) -> None:
        """End it; the tests here kill nobody."""
        self.close()

    def close(self) -> None:
        """Stop in order."""
        self._thread.call(self._broker.stop())
        self._thread.close()
        self._letters.close()


def held(member: Any) -> set[int]:
    """Return the numbers of the partitions that a consumer holds."""
    if isinstance(member, FastStreamMember):
        return member.held()
    consumer = member._consumer
    return {
        place.partition
        for place in getattr(consumer, "_consumer", consumer).calls.held()[0]
    }


class AwayStore(MemoryReplayStore):
    """A replay store that may be out of reach.

    Attributes:
        away: whether it is.
        asked: how often it was asked meanwhile.
    """

    away = False
    asked = 0

    def claim(self, request: Any, /) -> Any:
        """Claim, or fail."""
        if self.away:
            self.asked += 1
            raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "away")
        return super().claim(request)

    def claim_many(self, requests: Any, /) -> Any:
        """Claim all, or fail."""
        return [self.claim(request) for request in requests]


class LatestPlay(LogPlay):
    """A run of consumers that begin at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.store: Any = AwayStore(clock=self.clock)

    def held(self) -> list[int]:
        """Return the numbers of the partitions that the consumers hold."""
        return sorted(number for member in self.members for number in held(member))

    def join(self, handler: Any = None, *, partitions: int = 4, **settings: Any) -> Any:
        """Start a consumer, and wait until all partitions are assigned and begun."""
        member = self.start(handler, **settings)
        self.wait(lambda: self.held() == list(range(partitions)))
        # Where nothing commits a start, none comes.
        with suppress(TimeoutError):
            self.wait(lambda: len(self.commits()) == partitions, 2)
        return member

    def commits(self) -> dict[int, Any]:
        """Return the commits of the group, by partition."""
        found = self.stage.admin.list_group_offsets({self.stage.group: None})[
            self.stage.group
        ]
        return {
            place.partition: commit
            for place, commit in found.items()
            if commit.offset >= 0
        }

    def metadata(self) -> set[str]:
        """Return the metadata of the group's commits; confluent-kafka writes a NUL behind it."""
        return {commit.metadata.rstrip("\0") for commit in self.commits().values()}

    def commit(self, offsets: dict[int, int]) -> None:
        """Commit as a program without mqauth does."""
        with _PYTHON.KafkaConsumer(
            bootstrap_servers=self.stage.servers, group_id=self.stage.group
        ) as client:
            client.commit(
                {
                    TopicPartition(self.stage.topic, number): OffsetAndMetadata(
                        offset, "", -1
                    )
                    for number, offset in offsets.items()
                }
            )

    def remove_records(self, partition: int, *, before: int) -> None:
        """Remove records, as the broker does by itself once they are old."""
        self.stage.admin.delete_records(
            {TopicPartition(self.stage.topic, partition): before}
        )

    def send_to(self, *partitions: int) -> list[bytes]:
        """Send a signed message to each of these partitions, and return their bodies."""
        with _PYTHON.KafkaProducer(bootstrap_servers=self.stage.servers) as producer:
            return self.send_by(producer, *partitions)

    def send_by(self, producer: Any, *partitions: int) -> list[bytes]:
        """Do so by this producer."""
        found = []
        for number in partitions:
            body = b"message %d" % len(self.sent)
            plain = replace(honest_message(self.stage.destination, number), body=body)
            headers = dead_letter_headers(self.forge.signer().sign(plain).headers)
            sent = {
                "value": body,
                "key": plain.key,
                "headers": headers,
                "partition": number,
            }
            producer.send(self.stage.topic, **sent).get(timeout=30)
            self.sent.append(body)
            found.append(body)
        return found

    def all_handled(self, bodies: list[bytes]) -> None:
        """Wait until all these are handled; see that nothing else was, and that nothing was condemned.

        FastStream commits what it has at hand when its partitions are given out anew: that may be handled again.
        """
        self.wait(lambda: set(self.bodies) >= set(bodies))
        again = isinstance(self.stage, FastStreamStage)
        assert sorted(set(self.bodies) if again else self.bodies) == sorted(bodies)
        assert self.reasons() == []


MANY = 20
METADATA = "mqauth partitions=4"


@pytest.fixture
def play(
    request: pytest.FixtureRequest, kafka: Kafka, tmp_path: Path
) -> Iterator[LatestPlay]:
    """Yield a play of one kind of client, on a topic of four partitions."""
    stage = (EVERYONE | STABLE)[request.param](kafka.url)
    with closing(stage), AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
        play = LatestPlay(stage, audit)
        yield play
        _end(play)


def kinds(*tables: Any) -> Any:
    """Return the decorator that plays each kind of these tables."""
    return pytest.mark.parametrize(
        "play", [kind for table in tables for kind in table], indirect=True
    )


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the events of the lines that were logged."""
    return [record.event for record in caplog.records if hasattr(record, "event")]


@kinds(EVERYONE)
def test_an_idle_consumer_restarts(play: LatestPlay) -> None:
    """What comes while an idle consumer restarts is handled."""
    play.stop(play.join())
    bodies = play.send(MANY)
    play.start()
    play.all_handled(bodies)


@kinds(WRAPPERS, FASTSTREAM)
def test_a_stop_while_the_store_is_away(play: LatestPlay) -> None:
    """What could not be judged, since the replay store was away, is handled after an orderly restart."""
    member = play.join()
    play.store.away = True
    bodies = play.send(MANY)
    play.wait(lambda: play.store.asked > 0)
    play.stop(member)
    play.store.away = False
    play.start()
    play.all_handled(bodies)


@kinds(WRAPPERS, PROTOCOLS)
def test_a_second_member_joins(play: LatestPlay) -> None:
    """Of what waits on ``RetryLater`` the second member of a group handles all that it is given."""
    ready, called = threading.Event(), set[int]()

    def later(verified: Any) -> None:
        called.add(verified.origin.partition)
        if not ready.is_set():
            raise RetryLater("not now")
        play.handle(verified)

    play.join(later, workers=4)
    bodies = play.send(2 * MANY)
    play.wait(lambda: len(called) == 4)
    play.start(later)
    play.wait(lambda: all(map(held, play.members)) and len(play.held()) == 4)
    ready.set()
    play.all_handled(bodies)


@kinds(WRAPPERS, FASTSTREAM)
def test_partitions_are_added(play: LatestPlay) -> None:
    """What is sent to new partitions before the consumer has seen them is handled, too."""
    play.join()
    bodies = play.send(MANY // 4)
    play.all_handled(bodies)
    play.stage.admin.create_partitions({play.stage.topic: 7})
    play.all_handled(bodies + play.send_to(*range(7), *range(4, 7)))
    assert play.metadata() == {METADATA}


@kinds(WRAPPERS, FASTSTREAM)
def test_an_old_group(play: LatestPlay, caplog: pytest.LogCaptureFixture) -> None:
    """The first start of a group from before replays no history, and says so; from then on nothing is lost."""
    play.send_to(0, 1, 1, 2, 3, 3)
    play.commit({0: 0, 2: 1})
    with caplog.at_level(logging.CRITICAL, "mqauth"):
        member = play.join()
        play.wait(lambda: play.bodies == play.sent[:1])
        play.stop(member)
    assert events(caplog) == ["client.partitions_unmarked"]
    assert {number: found.offset for number, found in play.commits().items()} == {
        0: 1,
        1: 2,
        2: 1,
        3: 2,
    }
    assert play.metadata() == {METADATA}
    bodies = play.send(MANY)
    play.stage.admin.create_partitions({play.stage.topic: 5})
    bodies += play.send_to(4)
    caplog.clear()
    play.start()
    play.all_handled([*play.sent[:1], *bodies])
    assert "client.partitions_unmarked" not in events(caplog)


@kinds(WRAPPERS)
def test_two_first_members(play: LatestPlay) -> None:
    """A group whose first members start at once begins at the end; what comes after that is handled, once."""
    play.send_to(0, 1, 2, 3)
    play.start()
    play.start()
    play.wait(lambda: len(play.commits()) == 4 and play.held() == [0, 1, 2, 3])
    bodies = play.send(MANY)
    play.all_handled(bodies)
    while play.members:
        play.stop(play.members[0])
    assert play.metadata() == {METADATA}


@kinds(STABLE)
def test_a_transaction_is_open(play: LatestPlay) -> None:
    """A consumer that reads what is committed begins before a transaction that is open, and handles it."""
    with _PYTHON.KafkaProducer(
        bootstrap_servers=play.stage.servers, transactional_id=play.stage.topic
    ) as writer:
        writer.init_transactions()
        writer.begin_transaction()
        bodies = play.send_by(writer, 0, 1, 2, 3)
        play.stop(play.join())
        writer.commit_transaction()
    play.start()
    play.all_handled(bodies)


@kinds(WRAPPERS, FASTSTREAM)
def test_out_of_range(play: LatestPlay, caplog: pytest.LogCaptureFixture) -> None:
    """Where the next records are gone, a consumer goes on at the first one that is left, and says so."""
    play.stop(play.join())
    bodies = play.send_to(*[0] * 10, 1)
    play.remove_records(0, before=6)
    play.start()
    play.all_handled(bodies[6:])
    assert events(caplog).count("client.offset_out_of_range") == 1
    assert set(play.bodies) == set(bodies[6:])


@kinds(WRAPPERS)
def test_out_of_range_while_it_waits(
    play: LatestPlay, caplog: pytest.LogCaptureFixture
) -> None:
    """The same where the records go while their partition waits for something."""
    ready, called = threading.Event(), threading.Event()

    def later(verified: Any) -> None:
        called.set()
        if not ready.is_set():
            raise RetryLater("not now")
        play.handle(verified)

    play.join(later)
    bodies = play.send_to(0)
    play.wait(called.is_set)
    bodies += play.send_to(*[0] * 9)
    play.remove_records(0, before=6)
    ready.set()
    play.all_handled([bodies[0], *bodies[6:]])
    play.wait(lambda: play.commits()[0].offset == 10)
    assert len(play.handled) <= 10


def test_metadata_in_transactions(kafka: Kafka, tmp_path: Path) -> None:
    """Aiokafka's dead letters that are committed with their offsets keep the metadata of the group's commits."""
    with closing(
        TransactionalAiokafkaStage(kafka.url, **SOON, **READ_COMMITTED)
    ) as stage:
        with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
            play = LatestPlay(stage, audit)
            play.join()
            play.send(8, sealed=False)
            play.wait(lambda: len(stage.letters()) == 8)
            play.wait(lambda: sum(found.offset for found in play.commits().values()) == 8)
            _end(play)
        assert play.metadata() == {METADATA}
