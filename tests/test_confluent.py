"""``mqauth.brokers.confluent``: what it takes and refuses, on confluent-kafka's own classes without a broker."""

from __future__ import annotations

import asyncio
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import aiokafka
import confluent_kafka
import pytest
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    OFFSET_INVALID,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.aio import AIOConsumer

from mqauth import (
    ConfigurationError,
    MalformedMessage,
    MemoryReplayStore,
    Message,
    Origin,
    Pipeline,
    RetryLater,
    Verdict,
    flow,
)
from mqauth.brokers import confluent
from mqauth.brokers.confluent import producer as producing
from mqauth.brokers.confluent.client import COMES_AGAIN, check_consumer, membership_of
from mqauth.brokers.confluent.consumer import AIOPoller
from mqauth.brokers.confluent.poller import KEPT, Poller
from mqauth.brokers.confluent.positions import Place, left_out, reset_of
from mqauth.brokers.confluent.producer import Replies
from mqauth.brokers.log.offsets import beginning
from mqauth.brokers.log.records import OffsetsRefusedError
from mqauth.clock import SYSTEM_CLOCK
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.start import Committed
from mqauth.testing import FakeClock, Forge
from tests.conftest import KAFKA
from tests.log_leaves import IDEMPOTENT, QUIET, Sink, forge, guard
from tests.log_leaves import ConfluentClient as Client
from tests.log_leaves import confluent_record as record
from tests.log_leaves import kafka_error as failing

__all__ = ["forge", "guard"]

SAFE: dict[str, Any] = {"group.id": "billing", "enable.auto.offset.store": False, **QUIET}
PLACE = TopicPartition("orders", 0)
WHERE = Place("orders", 0)
METADATA = "mqauth partitions=2"


@pytest.fixture
def client() -> Iterator[Client]:
    """A producer's client."""
    return Client()


# What is taken


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "enable.auto.offset.store"),
        ({"enable.auto.commit": False}, "enable.auto.offset.store"),
    ],
    ids=["as it comes", "without automatic commits"],
)
def test_stored_offsets_refused(
    settings: dict[str, Any], said: str, guard: Pipeline
) -> None:
    """A consumer that stores offsets by itself is refused; librdkafka tells it of itself."""
    config = {"group.id": "g", **QUIET, **settings}
    client = confluent_kafka.Consumer(config)
    with pytest.raises(ConfigurationError, match=said):
        confluent.Consumer(
            client, guard, print, config=config, topics=["orders"], dead_letters=Sink()
        )


@pytest.mark.parametrize("config", [None, {}, {"group.id": "other"}], ids=str)
def test_settings_of_another_refused(config: Any, guard: Pipeline) -> None:
    """Settings that are not the consumer's own are refused: what they say of it would be wrong."""
    client = confluent_kafka.Consumer(SAFE)
    with pytest.raises(ConfigurationError, match="config must be the mapping that the"):
        confluent.Consumer(
            client, guard, print, config=config, topics=["orders"], dead_letters=Sink()
        )


@pytest.mark.parametrize(
    ("config", "reset"),
    [
        ({}, "latest"), ({"auto.offset.reset": "largest"}, "latest"), ({"auto.offset.reset": "end"}, "latest"),
        ({"auto.offset.reset": "smallest"}, "earliest"), ({"auto.offset.reset": "beginning"}, "earliest"),
        ({"auto_offset_reset": "earliest"}, "earliest"), ({"auto.offset.reset": "error"}, "none"),
        ({"default.topic.config": {"auto.offset.reset": "earliest"}}, "earliest"),
    ],
    ids=str,
)  # fmt: skip
def test_reset(config: dict[str, Any], reset: str) -> None:
    """Where a consumer begins without an offset is known by its settings, in each of librdkafka's spellings."""
    assert (
        reset_of(check_consumer(confluent_kafka.Consumer(SAFE), SAFE | config)) == reset
    )


def test_other_clients_refused(guard: Pipeline, forge: Forge) -> None:
    """A client of another library, and one that deserializes or serializes by itself, is refused by name."""
    deserializing = confluent_kafka.DeserializingConsumer(SAFE)
    serializing = confluent_kafka.SerializingProducer(QUIET)
    for wrong in (deserializing, serializing, object()):
        name = type(wrong).__name__
        with pytest.raises(
            ConfigurationError, match=f"confluent_kafka.Consumer is needed, not .*{name}"
        ):
            confluent.Consumer(
                wrong, guard, print, config=SAFE, topics=["orders"], dead_letters=Sink()
            )  # type: ignore[arg-type]
        with pytest.raises(
            ConfigurationError, match=f"confluent_kafka.Producer is needed, not .*{name}"
        ):
            confluent.Producer(wrong, forge.signer(), config={})  # type: ignore[arg-type]
        with pytest.raises(
            ConfigurationError, match=f"confluent_kafka.Producer is needed, not .*{name}"
        ):
            confluent.DeadLetters(wrong, "dead", config={})  # type: ignore[arg-type]


def test_a_producer_may_be_closed_twice(forge: Forge) -> None:
    """A block that closes its producer may end after that; a flush finds nothing left."""
    with confluent.Producer(
        confluent_kafka.Producer(QUIET), forge.signer(), config=QUIET
    ) as producer:
        producer.close()
    assert producer.flush() == 0


def test_membership() -> None:
    """A client tells its group and generation in librdkafka's own encoding; another one is refused."""
    assert membership_of(confluent_kafka.Consumer(SAFE)) == ("billing", -1)

    class Other:
        def consumer_group_metadata(self) -> bytes:
            return b"CGMDv9:whatever"

    with pytest.raises(ConfigurationError, match="CGMDv9"):
        membership_of(Other())


def test_codes() -> None:
    """What comes again has no code of a refusal."""
    final = (
        "TOPIC_AUTHORIZATION_FAILED",
        "GROUP_AUTHORIZATION_FAILED",
        "_FATAL",
        "_FENCED",
        "FENCED_INSTANCE_ID",
    )
    assert COMES_AGAIN.isdisjoint(getattr(KafkaError, name) for name in final)
    assert {KafkaError.ILLEGAL_GENERATION, KafkaError.REBALANCE_IN_PROGRESS} < COMES_AGAIN


# Records


class Broken(confluent_kafka.Message):
    """A record whose headers cannot be read, and which counts how often they are asked for."""

    asked = 0

    def headers(self) -> Any:
        """Fail as the client does at a name that is not UTF-8."""
        self.asked += 1
        raise SystemError("returned a result with an exception set")


def test_unreadable_headers() -> None:
    """Headers that the client cannot read are asked for once, and thrown away: a second look ends the process."""
    native = Broken(
        topic="orders",
        partition=0,
        offset=1,
        value=b"x",
        headers=[("a", b"1")],
        timestamp=(1, 1),
    )
    message = confluent.from_native(native, scope="billing")
    assert message.malformed == "a header is not text and bytes"
    assert (message.body, message.headers, native.asked) == (b"x", (), 1)
    assert confluent_kafka.Message.headers(native) == []


def test_other_records_refused(guard: Pipeline) -> None:
    """A record of another client is refused, and so is an error in place of a record."""
    other: Any = aiokafka.ConsumerRecord
    for wrong in (other, object(), None):
        with pytest.raises(
            ConfigurationError, match=r"a confluent_kafka\.Message is needed"
        ):
            confluent.from_native(wrong, scope="g")
    end = record(error=KafkaError(KafkaError._PARTITION_EOF))
    with pytest.raises(ConfigurationError, match="_PARTITION_EOF"):
        confluent.judge(guard, end, scope="g")


# The producer


@pytest.mark.parametrize("name", ["a\0b", "\ud800"], ids=ascii)
def test_deadly_names(name: str, client: Client, forge: Forge) -> None:
    """A header's name that the client cuts, or that ends the process, is refused before it is given to it."""
    producer = confluent.Producer(client, forge.signer(), config=IDEMPOTENT)
    with pytest.raises(MalformedMessage):
        producer.produce("orders", b"x", headers=[(name, b"1")])
    assert client.sent == []


def test_waits_for_room(client: Client, forge: Forge) -> None:
    """Where too many are in flight, or the client's queue is full, reports are served until there is room."""
    producer = confluent.Producer(
        client, forge.signer(), config=IDEMPOTENT, max_in_flight=2, batch=1
    )
    for _ in range(3):
        producer.produce("orders", b"x")
    assert (len(client.sent), len(client)) == (3, 1)
    client.outcomes = [BufferError("Local: Queue full"), BufferError("Local: Queue full")]
    producer.produce("orders", b"y")
    assert client.sent[-1]["value"] == b"y"


@pytest.mark.parametrize("batch", [1, 2])
def test_no_room(
    batch: int, client: Client, forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any room for too long a record is refused, and not sent later."""
    monkeypatch.setattr(producing, "PATIENCE", 0.01)
    producer = confluent.Producer(
        client, forge.signer(), config=IDEMPOTENT, max_in_flight=2, batch=batch
    )
    client.deaf = True
    producer.produce("orders", b"x")
    producer.produce("orders", b"x")
    producer.flush(0)
    with pytest.raises(BufferError, match="2 records are in flight"):
        producer.produce("orders", b"y")
    assert [sent["value"] for sent in client.sent] == [b"x", b"x"]


def test_report_that_produces(client: Client, forge: Forge) -> None:
    """A report may produce; where there is no room it is refused at once: to poll inside a report is deadly."""
    producer = confluent.Producer(
        client, forge.signer(), config=IDEMPOTENT, max_in_flight=2, batch=1
    )
    depth, refused = [0], []
    poll = client.poll

    def guarded(timeout: float = -1) -> int:
        depth[0] += 1
        assert depth[0] == 1, "confluent-kafka would have ended the process"
        try:
            return poll(timeout)
        finally:
            depth[0] -= 1

    client.poll = guarded  # type: ignore[method-assign]

    def again(_error: Any, _message: Any) -> None:
        for _ in range(3):
            try:
                producer.produce("orders", b"again")
            except BufferError as error:
                refused.append(error)

    producer.produce("orders", b"x", on_delivery=again)
    assert producer.poll(0) == 1
    assert [sent["value"] for sent in client.sent] == [b"x", b"again", b"again"]
    assert len(refused) == 1
    producer.produce("orders", b"z", on_delivery=again)
    assert depth == [0]


def test_report_while_room_is_made(client: Client, forge: Forge) -> None:
    """While a batch waits for room, a report that produces is refused: it would wait for that batch."""
    producer = confluent.Producer(
        client, forge.signer(), config=IDEMPOTENT, batch=2, linger=10
    )
    refused: list[BufferError] = []

    def again(_error: Any, _message: Any) -> None:
        with pytest.raises(BufferError) as caught:
            producer.produce("orders", b"again")
        refused.append(caught.value)

    producer.produce("orders", b"x", on_delivery=again)  # alone, at once
    producer.produce("orders", b"y")
    client.outcomes = [BufferError("Local: Queue full")]
    producer.produce("orders", b"z")
    assert [sent["value"] for sent in client.sent] == [b"x", b"y", b"z"]
    assert len(refused) == 1


# Dead letters, audit, answers


def test_membership_for_transactions(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """During a rebalance, which has no generation, a member has no membership to commit by."""
    monkeypatch.setattr(desk.client, "memberid", lambda: "me")
    assert desk.poller.membership() == desk.client.consumer_group_metadata()
    desk.client.generation = -1
    assert desk.poller.membership() is None


def test_committed_offsets(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Committed offsets are the broker's, with their metadata, of partitions that have one; an error is raised."""
    answers: list[Any] = [
        TopicPartition("orders", 0, 7, METADATA),
        TopicPartition("orders", 1, -1001),
    ]
    monkeypatch.setattr(desk.client, "committed", lambda *_, **__: answers)
    assert desk.poller.committed([WHERE]) == {WHERE: (7, METADATA)}
    answers.append(SimpleNamespace(offset=-1001, error=KafkaError(KafkaError._TIMED_OUT)))
    with pytest.raises(KafkaException):
        desk.poller.committed([WHERE])


def test_assigned_while_it_is_closed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a client is closed while it is assigned partitions, nobody says that the broker refuses."""
    codes = [
        KafkaError._DESTROY,
        KafkaError._TIMED_OUT,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
    ]

    def committed(*_: Any, **__: Any) -> Any:
        raise failing(codes.pop(0))

    monkeypatch.setattr(desk.client, "committed", committed)
    for _ in range(2):
        assert flow.run(beginning(desk.poller, {WHERE}, {}, lambda: True)) == {}
    with pytest.raises(OffsetsRefusedError):
        flow.run(beginning(desk.poller, {WHERE}, {}, lambda: True))


def test_answers_without_a_report(client: Client, forge: Forge) -> None:
    """An answer without a report puts its request off; after a failure for good all are, and the consumer ends."""
    replies = Replies(confluent.Producer(client, forge.signer(), config=IDEMPOTENT))
    ask: Any = SimpleNamespace(properties={"reply-to": "answers", "correlation-id": "7"})
    client.deaf = True
    with pytest.raises(RetryLater):
        replies(ask, b"yes").get(0)
    client.deaf = False
    replies.check()
    client.outcomes = [failing(KafkaError._FATAL)]
    with pytest.raises(RetryLater):
        replies(ask, b"yes")
    with pytest.raises(confluent.ProducerFatalError):
        replies.check()
    ask.properties = {}
    with pytest.raises(ConfigurationError):
        replies(ask, b"yes")


# The consumer's calls


class Partition(confluent_kafka.Consumer):
    """A ``confluent_kafka.Consumer`` that does as a test says, with one partition."""

    def __init__(self) -> None:
        super().__init__(SAFE)
        self.batches: list[Any] = []
        self.answers: list[Any] = []
        self.asked: list[Any] = []
        self.generation, self.offset = 1, 3
        self.starting = False
        self.commits: dict[int, tuple[int, str]] = {0: (1, METADATA), 1: (1, METADATA)}
        self.bounds = 0, 100

    def subscribe(
        self, topics: Any, on_assign: Any, on_revoke: Any, on_lost: Any
    ) -> None:  # type: ignore[override]
        self.on_assign, self.on_revoke, self.on_lost = on_assign, on_revoke, on_lost

    def cluster_id(self, timeout: float = -1) -> str:
        return "cluster"

    def consumer_group_metadata(self) -> bytes:
        return b"CGMDv2:" + struct.pack("=i", self.generation) + b"billing\0"

    def consume(self, num_messages: int = 1, timeout: float = -1) -> Any:
        found = self.batches.pop(0) if self.batches else []
        return found() if callable(found) else found

    def commit(self, *, offsets: Any, asynchronous: bool) -> Any:  # type: ignore[override]
        self.asked.append(("commit", [(each.partition, each.offset) for each in offsets]))
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        self.commits |= {each.partition: (each.offset, each.metadata) for each in offsets}
        return answer or offsets

    def seek(self, partition: Any) -> None:
        if self.starting:
            raise failing(KafkaError._STATE)
        self.asked.append(("seek", partition.partition, partition.offset))

    def pause(self, partitions: Any) -> None:
        self.asked.append(("pause", [each.partition for each in partitions]))

    def resume(self, partitions: Any) -> None:
        self.asked += (
            [("resume", [each.partition for each in partitions])] if partitions else []
        )

    def assign(self, partitions: Any) -> None:
        self.asked.append(
            ("assign", sorted((each.partition, each.offset) for each in partitions))
        )

    def position(self, partitions: Any) -> Any:
        return [
            TopicPartition("orders", each.partition, self.offset) for each in partitions
        ]

    def committed(self, partitions: Any, timeout: float = -1) -> Any:
        return [
            TopicPartition(
                "orders", each.partition, *self.commits.get(each.partition, (-1001,))
            )
            for each in partitions
        ]

    def list_topics(self, topic: str = "", timeout: float = -1) -> Any:
        found = SimpleNamespace(error=self.unlisted, partitions={0: None, 1: None})
        return SimpleNamespace(topics={topic: found})

    unlisted: KafkaError | None = None

    def offsets_for_times(self, partitions: Any, timeout: float = -1) -> Any:
        self.asked.append(("bounds", [each.offset for each in partitions]))
        ends = {OFFSET_BEGINNING: self.bounds[0], OFFSET_END: self.bounds[1]}
        return [
            TopicPartition("orders", each.partition, ends[each.offset])
            for each in partitions
        ]

    def get_watermark_offsets(
        self, partition: Any, timeout: float = -1, cached: bool = False
    ) -> Any:
        assert cached
        return self.bounds


class Desk:
    """A poller on a partition that is assigned, and what it knows."""

    def __init__(self, client: Partition | None = None, **config: Any) -> None:
        self.client = client or Partition()
        self.clock = FakeClock()
        self.assignment = Assignment(self.clock)
        self.settled = 0
        self.poller = Poller(self.client, self.assignment, config, replies=None)
        self.poller.listen(["orders"], self._settle)
        self.client.on_assign(self.client, [PLACE])

    def _settle(self) -> None:
        self.settled += 1

    def receive(self, *offsets: int) -> None:
        """Have records read."""
        self.client.batches.append(
            [record(partition=0, offset=offset) for offset in offsets]
        )
        self.poller.poll(joins=False)

    def known(self) -> list[int | None]:
        """Return the offsets that wait."""
        partition = self.assignment.partition(WHERE)
        return (
            []
            if partition is None
            else [each.message.origin.offset for each in partition.waiting]
        )

    def rebalance(self, generation: int = 2) -> None:
        """Lose the partition, and get it back."""
        self.client.on_revoke(self.client, [PLACE])
        self.come_back(generation)

    def come_back(self, generation: int = 2) -> None:
        """Get the partition back in another generation."""
        self.client.generation = generation
        self.client.on_assign(self.client, [PLACE])
        self.poller.poll(joins=False)

    def revoking(self, offset: int) -> Callable[[], list[Any]]:
        """Return a call that reads a record, and has its partition revoked."""

        def call() -> list[Any]:
            self.client.on_revoke(self.client, [PLACE])
            return [record(partition=0, offset=offset)]

        return call


@pytest.fixture
def desk() -> Desk:
    """A desk."""
    return Desk()


@pytest.mark.parametrize(
    "code", [KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError.INVALID_MSG]
)
def test_poison(code: int, desk: Desk) -> None:
    """What cannot be parsed ends the run by name; nothing read beside it is begun."""
    desk.client.batches = [
        [record(partition=0, offset=1), record(error=KafkaError(code), offset=2)]
    ]
    with pytest.raises(
        confluent.PoisonRecordError, match="orders-0: the batch at offset 2"
    ):
        desk.poller.poll(joins=False)
    assert desk.known() == []


def test_error_records(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """The end of a partition is nothing, what comes again is logged, and a refusal for good is raised."""
    codes = (
        KafkaError._PARTITION_EOF,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
    )
    end, away, refused = (record(error=KafkaError(code)) for code in codes)
    desk.client.batches = [[end, record(partition=0, offset=1), away]]
    desk.poller.poll(joins=False)
    assert desk.known() == [1]
    assert [each.getMessage() for each in caplog.records] == [
        "consume failed with _ALL_BROKERS_DOWN; trying again"
    ]
    desk.client.batches = [[refused]]
    with pytest.raises(KafkaException):
        desk.poller.poll(joins=False)


def test_waits_for_the_first_alone(desk: Desk) -> None:
    """Where nothing is there one record is waited for, and the rest is taken without waiting."""
    desk.client.batches = [
        [],
        [record(partition=0, offset=1)],
        [record(partition=0, offset=2)],
    ]
    desk.poller.poll(joins=False)
    assert desk.known() == [1, 2]


def test_unknown_cluster(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is read before the cluster's id is known: a place without it would be another one afterwards."""
    fresh = Desk()

    def unknown(timeout: float = -1) -> str:
        raise failing(KafkaError._TIMED_OUT)

    monkeypatch.setattr(fresh.client, "cluster_id", unknown)
    fresh.receive(1)
    assert (fresh.known(), len(fresh.client.batches)) == ([], 1)
    monkeypatch.undo()
    fresh.poller.poll(joins=False)
    assert fresh.known() == [1]


def settle(desk: Desk) -> None:
    """Settle all that waits."""
    partition = desk.assignment.partition(WHERE)
    while partition.waiting:
        partition.settle()


def test_commit(desk: Desk) -> None:
    """What is settled is committed once; a partition that failed by itself is committed again, others too."""
    desk.receive(1, 2)
    settle(desk)
    desk.client.answers = [
        [SimpleNamespace(error=KafkaError(KafkaError.REBALANCE_IN_PROGRESS))]
    ]
    desk.poller.commit(last=True)
    desk.poller.commit(last=True)
    desk.poller.commit(last=True)
    assert desk.client.asked == [("commit", [(0, 3)])] * 2


def test_last_commit_in_a_rebalance(desk: Desk) -> None:
    """A last commit that a rebalance refuses is made again once that is served, and loses no record."""
    desk.receive(1)
    settle(desk)
    desk.client.answers = [
        failing(KafkaError.ILLEGAL_GENERATION),
        failing(KafkaError.REBALANCE_IN_PROGRESS),
    ]
    desk.client.batches = [
        [record(partition=0, offset=2)],
        [record(partition=0, offset=3)],
    ]
    desk.poller.commit(last=True)
    desk.poller.close()
    assert desk.client.asked == [("commit", [(0, 2)])] * 3 + [("seek", 0, 2)]
    desk.client.answers = [failing(KafkaError._TIMED_OUT)]
    desk.client.batches = [[record(partition=0, offset=2)]]
    desk.poller.commit(last=True)
    assert len(desk.client.batches) == 1


@pytest.mark.parametrize(
    "others", [[], [TopicPartition("orders", 1)]], ids=["all", "one of two"]
)
def test_revoked_waits(others: list[TopicPartition], desk: Desk) -> None:
    """A revocation settles first, and what is read by the call that tells it is not begun."""
    desk.client.on_assign(desk.client, others)
    desk.client.batches = [desk.revoking(1)]
    desk.poller.poll(joins=False)
    assert (desk.settled, desk.known()) == (1, [])


def test_revoked_commits_at_once(desk: Desk) -> None:
    """A revocation commits also what a commit a moment ago could not: its next owner would handle it again."""
    desk.receive(1)
    settle(desk)
    desk.client.answers = [failing(KafkaError.REQUEST_TIMED_OUT)]
    desk.poller.commit(last=True)
    desk.poller.commit()
    assert len(desk.client.asked) == 1
    desk.client.on_revoke(desk.client, [PLACE])
    assert desk.client.asked == [("commit", [(0, 2)])] * 2


@pytest.mark.parametrize(
    ("generation", "start"),
    [(2, [("seek", 0, 3)]), (3, [])],
    ids=["ours throughout", "another's meanwhile"],
)
def test_eager_rebalance(generation: int, start: list[Any], desk: Desk) -> None:
    """What comes back from an eager rebalance is gone on with where it stood, unless another could have had it."""
    desk.receive(1, 2)
    desk.client.on_revoke(desk.client, [PLACE])
    assert desk.assignment.choose() is None
    desk.client.generation = generation
    desk.client.on_assign(desk.client, [PLACE])
    # Read from the committed offset, before the client was told where to read.
    desk.receive(1)
    desk.poller.poll(joins=False)
    assert [each for each in desk.client.asked if each[0] == "seek"] == start
    assert desk.known() == ([1, 2] if start else [1])


def test_paused_with_the_assignment(desk: Desk) -> None:
    """A partition whose records wait here is sought to what is behind them, and paused again."""
    desk.receive(1, 2)
    desk.poller.poll(joins=False)
    desk.rebalance()
    desk.receive(3)
    assert desk.known() == [1, 2]
    assert desk.client.asked == [
        ("pause", [0]),
        ("resume", [0]),
        ("seek", 0, 3),
        ("pause", [0]),
    ]
    desk.client.on_revoke(desk.client, [PLACE])
    assert desk.client.asked[4:] == [("resume", [0])]


class Watched(Desk):
    """A desk whose partition has a running handler, while another thread polls."""

    def __init__(self) -> None:
        super().__init__()
        self.receive(1)
        self.partition = self.assignment.choose()
        assert self.partition is not None
        self.client.asked.clear()

    def end(self) -> None:
        """Have the handler end."""
        self.partition.settle()
        self.assignment.visit_ended(self.partition)


@pytest.fixture
def watched() -> Watched:
    """A desk with a running handler."""
    return Watched()


def test_read_while_a_handler_runs(watched: Watched) -> None:
    """What is read while a handler runs waits for it, in order; the client is not paused for so short a time."""
    watched.receive(2)
    watched.receive(3)
    assert watched.known() == [1]
    watched.end()
    watched.receive(4)
    assert (watched.known(), watched.client.asked) == ([2, 3, 4], [])


def test_a_long_handler_pauses_the_client(watched: Watched) -> None:
    """Once twenty records wait for a handler the client is paused, and resumed when it has ended; none is lost."""
    for offset in range(2, 2 + KEPT):
        assert watched.client.asked == []
        watched.receive(offset)
    assert watched.client.asked == [("pause", [0])]
    watched.end()
    watched.poller.poll(joins=False)
    assert watched.known() == list(range(2, 2 + KEPT))
    assert watched.client.asked[1:] == [("resume", [0])]


def test_only_one_record_is_read_while_all_is_paused(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While handlers run in all partitions a call takes one record; it still serves rebalances."""
    asked = []
    monkeypatch.setattr(
        watched.client,
        "consume",
        lambda most, seconds: asked.append((most, seconds)) or [],
    )
    watched.poller.poll(joins=False)
    watched.end()
    watched.poller.poll(joins=False)
    assert asked == [(1, 0), (500, 0), (1, 0.2)]


def test_read_ahead_and_revoked(watched: Watched) -> None:
    """Records that wait for a handler are read again after a rebalance that gave their partition back."""
    watched.receive(2)
    watched.client.offset = 3
    watched.rebalance()
    assert ("seek", 0, 2) in watched.client.asked
    watched.end()
    watched.receive(2)
    assert watched.known() == [2]


def test_read_ahead_and_stopped(watched: Watched) -> None:
    """Records that wait for a handler at a stop are the next that whoever goes on with the client reads."""
    watched.receive(2)
    watched.end()
    watched.poller.commit(last=True)
    watched.poller.close()
    assert watched.client.asked == [("commit", [(0, 2)]), ("seek", 0, 2)]


def test_read_ahead_and_deferred(watched: Watched) -> None:
    """Records that wait for a handler whose record is deferred are dropped, and read again behind it."""
    assert watched.partition is not None
    watched.receive(2)
    watched.partition.put_back()
    watched.partition.seek = 2
    watched.assignment.visit_ended(watched.partition)
    watched.poller.poll(joins=False)
    assert ("seek", 0, 2) in watched.client.asked
    watched.partition.settle()
    watched.receive(2, 3)
    assert watched.known() == [2, 3]


def test_rebalances_in_a_row(desk: Desk) -> None:
    """A position that the client does not tell, since nothing was read after it was set, is kept all the same."""
    desk.receive(1, 2)
    for generation in (2, 3):
        desk.client.offset = OFFSET_INVALID
        desk.rebalance(generation)
    assert [each for each in desk.client.asked if each[0] == "seek"] == [
        ("seek", 0, 3)
    ] * 2
    assert desk.known() == [1, 2]


def test_seek_before_a_rebalance(desk: Desk) -> None:
    """So is one that a seek has set."""
    desk.receive(1, 2, 3)
    partition = desk.assignment.choose()
    partition.put_back()
    desk.assignment.visit_ended(partition)
    desk.poller.poll(joins=False)
    assert desk.client.asked == [("seek", 0, 2), ("pause", [0])]
    desk.client.offset, desk.client.generation = OFFSET_INVALID, 1
    desk.rebalance()
    assert [each for each in desk.client.asked if each[0] == "seek"] == [
        ("seek", 0, 2)
    ] * 2


def test_read_by_the_revoking_call(desk: Desk) -> None:
    """A record that was read by the call which revoked its partition is read again when it comes back."""
    desk.client.batches = [desk.revoking(2)]
    desk.poller.poll(joins=False)
    desk.come_back()
    assert desk.client.asked == [("seek", 0, 1)]


def test_cooperative(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the cooperative protocol what stays is gone on with, and what moves is forgotten at once."""
    other = TopicPartition("orders", 1)
    desk.client.on_assign(desk.client, [other])
    desk.receive(1)
    desk.client.on_revoke(desk.client, [other])
    desk.client.on_assign(desk.client, [])
    assert desk.known() == [1]
    desk.client.on_revoke(desk.client, [PLACE])
    desk.client.generation = 2
    desk.client.on_assign(desk.client, [])
    assert desk.known() == []


def test_lost(desk: Desk) -> None:
    """What was lost is dropped without waiting for anything."""
    desk.receive(1)
    desk.client.on_lost(desk.client, [PLACE])
    assert (desk.settled, desk.known()) == (0, [])


def test_late_seek(desk: Desk) -> None:
    """A seek that the client does not take yet is asked for again; what is read before it is not noted."""
    desk.receive(1, 2)
    partition = desk.assignment.choose()
    partition.put_back()
    desk.assignment.visit_ended(partition)
    desk.client.starting = True
    desk.receive(3)
    assert desk.known() == [1]
    desk.client.starting = False
    desk.receive(2)
    assert ("seek", 0, 2) in desk.client.asked
    assert desk.known() == [1]
    settle(desk)
    desk.poller.poll(joins=False)
    assert desk.known() == [2]


def test_closed_listens_no_more(desk: Desk) -> None:
    """After the end, what the client calls back settles nothing more, and asks nothing of the client."""
    desk.poller.close()
    desk.client.offset = None  # type: ignore[assignment]  # what is asked now raises
    desk.client.on_revoke(desk.client, [PLACE])
    desk.client.on_lost(desk.client, [PLACE])
    desk.client.on_assign(desk.client, [PLACE])
    assert (desk.settled, desk.client.asked) == (0, [])


# Where partitions begin, and what is out of range


def fresh(**config: Any) -> Desk:
    """Return a desk of a group without offsets, its partition not yet assigned."""
    client = Partition()
    client.commits = {}
    client.generation = -1
    return Desk(client, **config)


def asked(desk: Desk, name: str) -> list[Any]:
    """Return what a client was asked by one name."""
    return [rest for each, *rest in desk.client.asked if each == name]


@pytest.mark.parametrize(("reset", "offset"), [("latest", 100), ("earliest", 0)])
def test_a_group_that_begins(reset: str, offset: int) -> None:
    """The start is committed as a partition is assigned: a moment later it is another one."""
    desk = fresh(**{"auto.offset.reset": reset})
    assert asked(desk, "commit") == [[[(0, offset)]]]
    assert (desk.client.commits, desk.known()) == ({0: (offset, METADATA)}, [])
    desk.client.bounds = 0, 110
    desk.receive(offset)
    assert asked(desk, "seek") == [[0, offset]]
    assert desk.known() == [offset]


def test_topic_unknown() -> None:
    """While the client does not know a topic whose partitions it holds, they wait."""
    client = Partition()
    client.commits, client.unlisted = {}, KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
    desk = Desk(client)
    assert (asked(desk, "commit"), desk.assignment.partition(WHERE)) == ([], None)


@pytest.mark.parametrize(
    ("given", "start"),
    [(7, 7), (OFFSET_BEGINNING, 0), (OFFSET_END, 100), (OFFSET_INVALID, 100)],
    ids=str,
)
@pytest.mark.parametrize("commits", [{}, {0: (50, METADATA)}], ids=["new", "known"])
def test_assigned_by_hand(
    given: int, start: int, commits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was assigned by hand begins where its owner said it; what is committed of it stays what it is."""
    client = Partition()
    client.commits = dict(commits)
    monkeypatch.setattr(client, "memberid", lambda: "")
    monkeypatch.setattr(
        client, "assignment", lambda: [TopicPartition("orders", 0, given)]
    )
    desk = Desk.__new__(Desk)
    desk.client, desk.assignment = client, Assignment(SYSTEM_CLOCK)
    desk.poller = Poller(client, desk.assignment, {}, replies=None)
    desk.poller.listen([], lambda: None)
    desk.poller.poll(joins=False)
    partition = desk.assignment.partition(WHERE)
    assert partition is not None
    known = bool(commits) and given == OFFSET_INVALID
    assert (partition.expected, partition.committed) == (
        50 if known else start,
        50 if commits else start,
    )


@pytest.mark.parametrize(
    ("bounds", "expected", "offset", "first"),
    [
        ((0, 10), 5, 5, None), ((6, 10), 5, 10, 6), ((6, 10), 5, None, 6), ((0, 10), 5, 8, None),
        ((0, 10), 5, 2, None), ((0, 4), 5, 2, 0), ((0, 4), 5, None, None), (None, 5, 8, None),
        ((-1001, -1001), 5, None, None),
    ],
)  # fmt: skip
def test_left_out(
    bounds: Any, expected: int, offset: int | None, first: int | None
) -> None:
    """A gap is one of the log; but below what is left, or beyond the end of a log that was cut off, it is not."""
    client = SimpleNamespace(get_watermark_offsets=lambda _place, cached: bounds)
    assert left_out(client, WHERE, expected, offset) == first


def test_out_of_range_at_rest(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that has gone to the end of a partition that brings nothing more is told to go back."""
    desk.receive(1)
    settle(desk)
    desk.client.bounds = 6, 10
    desk.poller.poll(joins=False)
    assert desk.poller.outside == set()
    monkeypatch.setattr(desk.poller, "_looked", -(10.0**9))
    desk.poller.poll(joins=False)
    desk.poller.poll(joins=False)
    assert asked(desk, "seek") == [[0, 6]]


def test_what_is_left_is_not_told(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the broker does not tell what is left nothing of the partition is taken; a refusal ends the run."""
    desk.client.bounds = 6, 10
    answers: list[Any] = [
        failing(KafkaError._TIMED_OUT),
        failing(KafkaError.TOPIC_AUTHORIZATION_FAILED),
    ]

    def fail(*_: Any, **__: Any) -> Any:
        raise answers.pop(0)

    monkeypatch.setattr(desk.client, "offsets_for_times", fail)
    desk.receive(9)
    assert (desk.known(), desk.poller.outside) == ([], {WHERE})
    with pytest.raises(KafkaException):
        desk.receive(10)


def test_out_of_range_without_reset() -> None:
    """Whoever sets ``error`` gets one, also where librdkafka tells it as a record."""
    desk = Desk(**{"auto.offset.reset": "error"})
    error = record(
        partition=0, error=KafkaError(KafkaError._AUTO_OFFSET_RESET), topic="orders"
    )
    desk.client.batches = [[error]]
    with pytest.raises(
        ConfigurationError, match="out of range, and auto_offset_reset is none"
    ):
        desk.poller.poll(joins=False)


# ``confluent.AIOConsumer``: what it takes and refuses, and its thread, on clients of our own making.


def wrapper(client: Any, letters: Any = None, **settings: Any) -> confluent.AIOConsumer:
    """Return a consumer around a client."""
    forge = Forge()
    guard = Pipeline(
        verifier=forge.verifier(), policy=forge.policy(KAFKA), replay=MemoryReplayStore(), audit=Sink(),
    )  # fmt: skip
    letters = letters or Sink()
    wanted = {"config": SAFE, "topics": ["orders"], "dead_letters": letters} | settings
    return confluent.AIOConsumer(client, guard, print, **wanted)


async def test_the_client_holds_a_consumer() -> None:
    """The client's ``Consumer`` is where it is looked for, and its settings are checked."""
    async with AIOConsumer(dict(SAFE)) as client:
        assert isinstance(client._consumer, confluent_kafka.Consumer)
        wrapper(client)
    async with AIOConsumer({"group.id": "billing", "log_level": 0}) as client:
        with pytest.raises(ConfigurationError, match="offset"):
            wrapper(client)


async def test_another_client_is_refused() -> None:
    """A synchronous client is refused by name."""
    client = confluent_kafka.Consumer(SAFE)
    with pytest.raises(
        ConfigurationError, match="an AIOConsumer is needed, not Consumer"
    ):
        wrapper(client)
    client.close()


@pytest.fixture
def poller() -> AIOPoller:
    """A poller that has its partition."""
    client = Partition()
    found = AIOPoller(client, Assignment(SYSTEM_CLOCK), SAFE, replies=None)
    found.listen(["orders"], lambda: None)
    client.on_assign(client, [confluent_kafka.TopicPartition("orders", 0)])
    return found


async def test_calls_are_made_on_one_thread(
    poller: AIOPoller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All calls that may wait are made on one thread, which is not the event loop's."""
    threads: list[int] = []

    def called(*_: Any) -> dict[Any, Any]:
        threads.append(threading.get_ident())
        return {}

    for name in ("fetch", "send_commit", "committed", "places", "position", "bounds"):
        monkeypatch.setattr(Poller, name, called)
    poller.given = {WHERE: 7}
    await poller.fetch(0.2, joins=False)
    for work, *arguments in (
        (poller.send_commit, {WHERE: Committed(1, "")}), (poller.committed, [WHERE]), (poller.places, "orders"),
        (poller.position, WHERE), (poller.bounds, [WHERE], False),
    ):  # fmt: skip
        await poller.here(work, *arguments)
    assert len(threads) == 6
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads
    poller.close()


async def test_a_fetch_beside_handlers_waits_for_one_to_end(
    poller: AIOPoller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While handlers run the next fetch begins once one has ended."""
    fetched = threading.Event()

    def called(*_: Any) -> dict[Any, Any]:
        fetched.set()
        return {}

    monkeypatch.setattr(Poller, "fetch", called)
    monkeypatch.setattr("mqauth.brokers.confluent.consumer.BESIDE", 60)
    running = asyncio.create_task(poller.fetch(0.0, joins=False))
    await asyncio.sleep(0)
    assert not fetched.is_set()
    poller.wake()
    await running
    assert fetched.is_set()
    poller.close()


async def test_what_is_read_after_a_stop_is_sought_back(
    poller: AIOPoller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fetch that is cancelled ends once the call has ended, and ``close`` goes back to what it read."""
    begun, may_end = threading.Event(), threading.Event()
    message = Message(
        destination=KAFKA, body=b"", origin=Origin(topic="orders", partition=0, offset=7)
    )

    def called(*_: Any) -> dict[Any, Any]:
        begun.set()
        may_end.wait(30)
        return {WHERE: [message]}

    monkeypatch.setattr(Poller, "fetch", called)
    running = asyncio.create_task(poller.fetch(0.2, joins=False))
    await asyncio.to_thread(begun.wait, 30)
    running.cancel()
    await asyncio.sleep(0)
    assert not running.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    poller.close()
    await poller.closed()
    assert ("seek", 0, 7) in poller._client.asked


async def test_nothing_is_called_after_the_end(poller: AIOPoller) -> None:
    """A call after ``close`` is refused: it would never be made."""
    poller.close()
    with pytest.raises(RuntimeError, match="no call can be made any more"):
        await poller.here(poller.send_commit, {WHERE: 1})


async def test_a_transaction_keeps_no_event_loop_waiting(
    poller: AIOPoller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait for a transaction and a look at committed offsets are made on threads, in a callback at once."""
    threads: list[int] = []
    monkeypatch.setattr(
        Poller, "committed", lambda *_: threads.append(threading.get_ident())
    )
    over = threading.Event()
    waiting = asyncio.ensure_future(poller.wait(over, 30))
    await asyncio.sleep(0)
    over.set()
    await waiting
    await poller.here(poller.committed, WHERE)
    assert threads != [threading.get_ident()]
    assert await asyncio.to_thread(poller.here, poller.committed, WHERE) is None
    assert await asyncio.to_thread(poller.wait, over, 30)
    poller.close()
    await poller.closed()


async def test_an_error_is_not_judged(guard: Pipeline) -> None:
    """A record that is an error of the client is refused, and a plain sink of letters is called on a thread."""
    threads = list[int]()

    class Letters(Sink):
        def publish(self, letter: Any, /) -> None:
            threads.append(threading.get_ident())

    failed = confluent_kafka.Message(
        topic="orders", partition=0, error=confluent_kafka.KafkaError(-191)
    )
    with pytest.raises(ConfigurationError, match="look at error"):
        await confluent.ajudge(guard, failed, scope="billing")
    unsigned = confluent_kafka.Message(
        topic="orders", partition=0, offset=1, value=b"", timestamp=(1, 1)
    )
    judgement = await confluent.ajudge(guard, unsigned, scope="billing")
    assert (await judgement.dead_letter(Letters())).verdict is Verdict.REJECTED
    assert threads
    assert threads != [threading.get_ident()]


STUCK = """
    import asyncio, threading
    from confluent_kafka import Consumer
    from mqauth.brokers.confluent.consumer import AIOPoller
    from mqauth.brokers.confluent.poller import Poller
    from mqauth.clock import SYSTEM_CLOCK
    from mqauth.delivery.assignment import Assignment

    def stuck(*_):
        begun.set()
        threading.Event().wait()

    async def main():
        Poller.send_commit = stuck
        poller = AIOPoller(Consumer({"group.id": "billing"}), Assignment(SYSTEM_CLOCK), {}, replies=None)
        committing = asyncio.ensure_future(poller.here(poller.send_commit, {}))
        await asyncio.to_thread(begun.wait)
        # The first one waits for the call.
        for _ in range(2):
            committing.cancel()
            await asyncio.sleep(0)
        await asyncio.wait((committing,))

    begun = threading.Event()
    asyncio.run(main())
    print("ended")
"""


def test_a_call_that_never_returns_holds_no_process() -> None:
    """An interpreter ends although a commit of the client never returns, as where others closed the client."""
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STUCK)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert found.stdout == "ended\n"


async def test_a_rebalance_does_not_wait_for_a_loop_that_stands_still() -> None:
    """A revocation goes on after the grace time where the event loop does not answer: its call has an end."""
    async with AIOConsumer(dict(SAFE)) as client:
        wrapped = wrapper(client, grace=0)
        served = threading.Thread(target=wrapped.calls._settle, daemon=True)
        served.start()
        # It blocks the event loop on purpose.
        served.join(30)
        assert not served.is_alive()
