"""Where a record stands, on real brokers: cluster and topic are told by their ids, not by their names."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from integration.services import Kafka
from integration.services import kafka as kafka_service
from mqauth import MemoryReplayStore, Pipeline, Verified
from mqauth.audit.sinks import CallableSink
from mqauth.brokers import kafka as wrapper
from mqauth.flow import Attempts
from mqauth.review.kafka import KafkaRecords
from mqauth.review.letter import Letter, read
from mqauth.testing.forge import Forge
from mqauth.testing.stage_kafka import KafkaStage, wait_until
from mqauth.wire.message import Message


class Scene:
    """Consumers of one group with one replay store, on topics of one name."""

    def __init__(self, stage: KafkaStage) -> None:
        self.stage = stage
        self.forge = Forge(lifetime=600)
        self.store = MemoryReplayStore()
        self.records: list[dict[str, Any]] = []
        self.copy = self.forge.seal(Message(destination=stage.destination, body=b"once", key=b"k"))

    def guard(self) -> Pipeline:
        """Return a pipeline that trusts the forge's producer and puts its records into ``records``."""
        return Pipeline(
            verifier=self.forge.verifier(), policy=self.forge.policy(self.stage.destination), replay=self.store,
            audit=CallableSink(lambda record: self.records.append(record.as_dict())), attempts=Attempts(limit=1),
        )  # fmt: skip

    def consume(self, stage: KafkaStage, records: int) -> None:
        """Consume until so many more records have a verdict."""
        wanted = len(self.records) + records
        stage.consume(self.guard(), self.handle, until=lambda: len(self.records) >= wanted)

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


@pytest.fixture
def elsewhere(stage: KafkaStage, monkeypatch: pytest.MonkeyPatch) -> Iterator[KafkaStage]:
    """Another cluster with topics and a group of the same names."""
    monkeypatch.delenv(kafka_service.VARIABLE, raising=False)
    with Kafka.launch() as second:
        twin = KafkaStage(second.url)
        twin.topic, twin.dead, twin.group = stage.topic, stage.dead, stage.group
        twin.create(twin.topic)
        twin.create(twin.dead)
        yield twin
        twin.close()


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
    assert (broker["cluster"], broker["topic"], broker["topic_id"]) == (cluster, stage.topic, topic_id)


def test_topic_made_anew_is_another_place(stage: KafkaStage) -> None:
    """A copy at the offset of its original, in a topic that was deleted and made anew, is ``replayed``."""
    scene = Scene(stage)
    stage.inject(scene.copy)
    scene.consume(stage, 1)
    make_anew(stage)
    stage.inject(scene.copy)
    scene.consume(stage, 1)
    assert scene.verdicts == {"handled": 1, "replayed": 1}


def test_another_cluster_is_another_place(stage: KafkaStage, elsewhere: KafkaStage) -> None:
    """A copy at the same topic, partition and offset of a second cluster that shares the store is ``replayed``."""
    scene = Scene(stage)
    for each in (stage, elsewhere):
        each.inject(scene.copy)
        scene.consume(each, 1)
    assert scene.verdicts == {"handled": 1, "replayed": 1}


def test_record_read_again_has_the_ids_of_its_topic(stage: KafkaStage, client: Any) -> None:
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
        polled.extend(record for records in client.poll(timeout_ms=200).values() for record in records)
        return bool(polled)

    wait_until(arrived)
    log = wrapper.Logs(client).of(stage.topic)
    assert log == ids(stage)
    judged = wrapper.judge(scene.guard(), polled[0], scope=stage.group, log=log)
    assert judged.verified is not None
    assert judged.verified.origin.coordinates == (log.cluster, f"{stage.topic}:{log.topic_id}", 0, 0)


@pytest.fixture
def client(stage: KafkaStage) -> Iterator[Any]:
    """A client that is subscribed to the source, without a group."""
    made = stage.consumer(group_id=None)
    yield made
    made.close()


def ids(stage: KafkaStage) -> tuple[str, str]:
    """Return the ids of the cluster and of the source as the admin client tells them."""
    (topic,) = stage.admin.describe_topics([stage.topic])
    topic_id = base64.urlsafe_b64encode(UUID(str(topic["topic_id"])).bytes).rstrip(b"=").decode()
    return stage.admin.describe_cluster()["cluster_id"], topic_id


def make_anew(stage: KafkaStage) -> None:
    """Delete the source and make a topic of its name."""
    stage.admin.delete_topics([stage.topic])
    wait_until(lambda: stage.topic not in stage.admin.list_topics())
    stage.create(stage.topic)
