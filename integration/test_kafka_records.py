"""Records of a real Kafka: every header, batches of a producer, and the place of each."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import kafka as kafka_python
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kafka import TopicPartition

from integration.kafka_batches import BatchContract, Seen
from integration.scale import nightly
from integration.services import Kafka
from mqauth import MemoryReplayStore, Pipeline, Verified
from mqauth.audit.sinks import CallableSink
from mqauth.brokers import kafka as wrapper
from mqauth.flow import Attempts
from mqauth.review.kafka import KafkaRecords
from mqauth.review.letter import Letter, read
from mqauth.testing.forge import Forge
from mqauth.testing.stage_kafka import KafkaStage, wait_until
from mqauth.wire.envelope import is_transport
from mqauth.wire.message import PROTECTED_PROPERTIES, Message

_PYTHON: Any = kafka_python
APPLICATION = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(
    lambda name: name.lower() not in PROTECTED_PROPERTIES and not is_transport(name)
)
UNIQUE = st.lists(APPLICATION, unique_by=str.lower, max_size=4)
HEADERS = UNIQUE.flatmap(
    lambda names: st.lists(st.tuples(st.sampled_from(names), st.binary(max_size=40)), max_size=6)
    if names else st.just([])
)  # fmt: skip
PROPERTIES = st.dictionaries(
    st.sampled_from(PROTECTED_PROPERTIES), st.binary(max_size=20)
)
EVERY = [
    ("a", b""), ("a", b"second"), ("b", b"\xff\x00"), ("a", b""), ("", b"no name"), ("ü€😀", "ü€😀".encode()),
    ("x" * 2000, b"long name"), ("long", b"y" * 100_000),
]  # fmt: skip


class Loopback:
    """One topic on a real broker: what is sent signed is read and verified."""

    def __init__(self, url: str) -> None:
        self.stage = KafkaStage(url)
        self.forge = Forge(lifetime=3600)
        self.verifier = self.forge.verifier()
        self.place = TopicPartition(self.stage.topic, 0)
        self.client = _PYTHON.KafkaProducer(bootstrap_servers=self.stage.servers)
        self.reader = _PYTHON.KafkaConsumer(bootstrap_servers=self.stage.servers)
        self.reader.assign([self.place])

    def close(self) -> None:
        """Delete the topic and disconnect."""
        self.client.close()
        self.reader.close()
        self.stage.close()

    def send(self, value: bytes | None, key: bytes | None, headers: Any) -> Message:
        """Send signed, and return the message as the broker has it."""
        producer = wrapper.Producer(self.client, self.forge.signer())
        future: Any = producer.send(self.stage.topic, value, key, headers)
        return self.read(future.get(timeout=30).offset)

    def read(self, offset: int) -> Message:
        """Return the message at an offset."""
        self.reader.seek(self.place, offset)
        found: list[Any] = []
        while not found:
            found = self.reader.poll(timeout_ms=1000, max_records=1).get(self.place, [])
        return wrapper.from_native(found[0], scope="g")

    def verify(self, message: Message) -> Verified:
        """Verify a message."""
        candidate = self.verifier.open(message)
        return self.verifier.verify(
            message, candidate, self.forge.keys, self.forge.clock.now()
        )


@pytest.fixture(scope="module")
def loopback(kafka: Kafka) -> Iterator[Loopback]:
    """A loopback for all examples."""
    loopback = Loopback(kafka.url)
    yield loopback
    loopback.close()


@settings(
    max_examples=nightly(100, otherwise=40),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@example(
    headers=EVERY, properties={"content-type": b"", "type": b"\xff"}, value=b"", key=b""
)
@example(headers=[], properties={}, value=None, key=b"k")
@example(headers=[], properties={}, value=b"v", key=None)
@given(
    headers=HEADERS,
    properties=PROPERTIES,
    value=st.binary(max_size=50),
    key=st.none() | st.binary(max_size=20),
)
def test_every_header_survives(
    loopback: Loopback,
    headers: Any,
    properties: dict[str, bytes],
    value: bytes | None,
    key: bytes | None,
) -> None:
    """Empty, binary, repeated and odd headers, tombstones and keys verify after a real round trip, as bound."""
    sent = [*properties.items(), *headers]
    message = loopback.send(value, key, sent)
    assert [pair for pair in message.headers if pair[0] != "mqauth-token"] == sent
    verified = loopback.verify(message)
    assert (verified.body, verified.key) == (value, key)
    assert list(verified.headers) == headers


def test_null_header(loopback: Loopback) -> None:
    """A null header, which other clients send, is read as null, told from empty, and bound as such."""
    plain = Message(
        destination=loopback.stage.destination,
        body=b"b",
        key=b"k",
        headers=(("n", None), ("n", b"")),
    )
    sealed = loopback.forge.seal(plain)
    offset = send_raw(loopback, sealed)
    message = loopback.read(offset)
    assert message.headers[:2] == (("n", None), ("n", b""))
    assert loopback.verify(message).headers == (("n", None), ("n", b""))


class WithNull(list[Any]):
    """Headers whose sizes kafka-python does not add up, which fails on a null; it encodes them well."""

    def __bool__(self) -> bool:
        return False


def send_raw(loopback: Loopback, message: Message) -> int:
    """Append a record with null headers, past ``send``, which refuses them."""
    headers = WithNull(message.headers)
    result = loopback.client._accumulator.append(
        loopback.place, None, message.key, message.body, headers
    )
    loopback.client._sender.wakeup()
    return int(result[0].get(timeout=30).offset)


class RealWorld:
    """A topic of two partitions on the broker."""

    def __init__(self, stage: KafkaStage) -> None:
        self.stage = stage
        self.topic = stage.topic
        self._clients: list[Any] = []

    def client(self, **settings: Any) -> Any:
        """Return a new client."""
        self._clients.append(
            _PYTHON.KafkaProducer(bootstrap_servers=self.stage.servers, **settings)
        )
        return self._clients[-1]

    def settle(self) -> None:
        """Nothing is to be done: the broker acknowledges by itself."""

    def log(self) -> list[Seen]:
        """Return what is committed, once the broker has ended every transaction.

        It answers a commit before it writes the markers, and until then a reader of what is committed takes the
        transaction's begin for the end. So a reader of everything asks where the end is.
        """
        places = [TopicPartition(self.topic, partition) for partition in (0, 1)]
        asking = _PYTHON.KafkaConsumer(bootstrap_servers=self.stage.servers)
        reader = _PYTHON.KafkaConsumer(
            bootstrap_servers=self.stage.servers,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        try:
            ends = asking.end_offsets(places)
            return [
                seen for place in places for seen in _read(reader, place, ends[place])
            ]
        finally:
            asking.close()
            reader.close()

    def close(self) -> None:
        """Close every client."""
        for client in self._clients:
            client.close()


def _read(reader: Any, place: Any, end: int) -> Iterator[Seen]:
    """Yield the committed records of a partition before an offset."""
    reader.assign([place])
    while reader.position(place) < end:
        for records in reader.poll(timeout_ms=100).values():
            for record in records:
                yield Seen(record.partition, record.offset, record.key, record.value, tuple(record.headers),
                           record.timestamp)  # fmt: skip


class TestContract(BatchContract):
    """kafka-python on Kafka."""

    @pytest.fixture
    def world(self, kafka: Kafka) -> Iterator[RealWorld]:
        """A topic of two partitions."""
        stage = KafkaStage(kafka.url, partitions=2)
        found = RealWorld(stage)
        yield found
        found.close()
        stage.close()


class Scene:
    """Consumers of one group with one replay store, on topics of one name."""

    def __init__(self, stage: KafkaStage) -> None:
        self.stage = stage
        self.forge = Forge(lifetime=600)
        self.store = MemoryReplayStore()
        self.records: list[dict[str, Any]] = []
        self.copy = self.forge.seal(
            Message(destination=stage.destination, body=b"once", key=b"k")
        )

    def guard(self) -> Pipeline:
        """Return a pipeline that trusts the forge's producer and puts its records into ``records``."""
        return Pipeline(
            verifier=self.forge.verifier(), policy=self.forge.policy(self.stage.destination), replay=self.store,
            audit=CallableSink(lambda record: self.records.append(record.as_dict())), attempts=Attempts(limit=1),
        )  # fmt: skip

    def consume(self, stage: KafkaStage, records: int) -> None:
        """Consume until so many more records have a verdict."""
        wanted = len(self.records) + records
        stage.consume(
            self.guard(), self.handle, until=lambda: len(self.records) >= wanted
        )

    def handle(self, verified: Verified) -> None:
        """Put what is handled on record too."""
        self.records.append({"reason": "handled"})

    @property
    def verdicts(self) -> Counter[str]:
        """How many were handled, and how many rejected for each reason."""
        return Counter(record["reason"] for record in self.records)


@pytest.fixture
def stage(kafka: Kafka) -> Iterator[KafkaStage]:
    """A source of one partition."""
    made = KafkaStage(kafka.url)
    yield made
    made.close()


def test_letter_and_record_name_cluster_and_topic(stage: KafkaStage) -> None:
    """A letter's source and the audit record have both ids as the broker tells them, and the letter is intact."""
    scene = Scene(stage)
    stage.inject(Message(destination=stage.destination, body=b"forged", key=b"k"))
    scene.consume(stage, 1)
    (letter,) = stage.letters()
    reading = read(Letter(message=letter))
    cluster, topic_id = ids(stage)
    assert reading.source == f"{stage.topic}/0/0@{cluster}/{topic_id}"
    assert reading.intact
    broker = scene.records[0]["broker"]
    assert (broker["cluster"], broker["topic"], broker["topic_id"]) == (
        cluster,
        stage.topic,
        topic_id,
    )


def test_topic_made_anew_is_another_place(stage: KafkaStage) -> None:
    """A copy at the offset of its original, in a topic that was deleted and made anew, is ``replayed``."""
    scene = Scene(stage)
    stage.inject(scene.copy)
    scene.consume(stage, 1)
    stage.admin.delete_topics([stage.topic])
    wait_until(lambda: stage.topic not in stage.admin.list_topics())
    stage.create(stage.topic)
    stage.inject(scene.copy)
    scene.consume(stage, 1)
    assert scene.verdicts == {"handled": 1, "replayed": 1}


def test_record_read_again_has_the_ids_of_its_topic(
    stage: KafkaStage, client: Any
) -> None:
    """What is read for a reference letter names cluster and topic: a letter of an old topic does not fit it."""
    stage.inject(Message(destination=stage.destination, body=b"x", key=b"k"))
    client.unsubscribe()
    found = KafkaRecords(client).fetch(stage.topic, 0, 0)
    assert found is not None
    assert (found.origin.cluster, found.origin.topic_id) == ids(stage)


def test_own_loop_is_told_the_log(stage: KafkaStage, client: Any) -> None:
    """``Logs`` gives who keeps the poll loop what ``judge`` needs; both ids are known with the first record."""
    scene = Scene(stage)
    stage.inject(scene.copy)
    polled: list[Any] = []

    def arrived() -> bool:
        polled.extend(
            record
            for records in client.poll(timeout_ms=200).values()
            for record in records
        )
        return bool(polled)

    wait_until(arrived)
    log = wrapper.Logs(client).of(stage.topic)
    assert log == ids(stage)
    judged = wrapper.judge(scene.guard(), polled[0], scope=stage.group, log=log)
    assert judged.verified is not None
    assert judged.verified.origin.coordinates == (
        log.cluster,
        f"{stage.topic}:{log.topic_id}",
        0,
        0,
    )


@pytest.fixture
def client(stage: KafkaStage) -> Iterator[Any]:
    """A client that is subscribed to the source, without a group."""
    made = stage.consumer(group_id=None)
    yield made
    made.close()


def ids(stage: KafkaStage) -> tuple[str, str]:
    """Return the ids of the cluster and of the source as the admin client tells them."""
    (topic,) = stage.admin.describe_topics([stage.topic])
    topic_id = (
        base64.urlsafe_b64encode(UUID(str(topic["topic_id"])).bytes).rstrip(b"=").decode()
    )
    return stage.admin.describe_cluster()["cluster_id"], topic_id
