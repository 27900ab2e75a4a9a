"""confluent-kafka's leaf in an event loop on a real Kafka: the contract, answers, kills of its process, storms."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.aio import AIOConsumer

from integration.services import Kafka
from integration.stage_confluent import AIOConfluentLogStage, AIOConfluentStage
from integration.test_confluent import ConfluentScene, paused_beyond_the_session, weathered
from integration.test_kafka_kill import killed_and_started_again
from mqauth import AuditFile, MemoryReplayStore, Pipeline, Verified
from mqauth.brokers import confluent
from mqauth.testing.contract import BatchContract, BrokerContract
from mqauth.testing.delivery_contract import LogDeliveryContract
from mqauth.testing.delivery_stage import LogStage
from mqauth.testing.forge import Forge
from mqauth.testing.stage import Stage


class TestAIOConfluent(BrokerContract):
    """Every promise, on topics of its own."""

    @pytest.fixture
    def stage(self, kafka: Kafka) -> Iterator[Stage]:
        """Yield a fresh stage."""
        stage = AIOConfluentStage(kafka.url)
        yield stage
        stage.close()


class TestAIOConfluentInBatches(BatchContract):
    """The same with batch tokens."""

    @pytest.fixture
    def stage(self, kafka: Kafka) -> Iterator[Stage]:
        """Yield a fresh stage."""
        stage = AIOConfluentStage(kafka.url)
        yield stage
        stage.close()


class TestAIOConfluentDeliveries(LogDeliveryContract):
    """What becomes of deliveries, with several consumers of one group."""

    @pytest.fixture(params=["range", "cooperative-sticky"])
    def stage(self, kafka: Kafka, request: pytest.FixtureRequest) -> Iterator[LogStage]:
        """Yield a fresh stage."""
        stage = AIOConfluentLogStage(kafka.url, partition_assignment_strategy=request.param)
        yield stage
        stage.close()


def test_answers_and_reads_on(kafka: Kafka, tmp_path: Path) -> None:
    """An answer is awaited and signed, and after a stop the client reads on at the first record that is open."""
    stage, forge = AIOConfluentStage(kafka.url), Forge(lifetime=600)
    config = stage.clients.producer_settings(enable_idempotence=True)
    replies = confluent.Producer(Producer(config), forge.signer(), config=config)
    for number in range(3):
        replies.produce(stage.topic, b"%d" % number, headers=[("reply-to", stage.dead.encode())])
    assert replies.flush(30) == 0

    async def consume(guard: Pipeline) -> bytes:
        async def handler(verified: Verified) -> None:
            await verified.reply(b"yes to " + (verified.body or b""))
            stopping.append(asyncio.create_task(wrapped.stop()))

        stopping: list[asyncio.Task[None]] = []
        async with AIOConsumer(stage.clients.consumer_settings()) as client:
            letters = stage.clients.letters(stage.dead)
            wrapped = confluent.AIOConsumer(
                client, guard, handler, topics=[stage.topic], dead_letters=letters, replies=replies
            )
            await wrapped.run()
            letters.client.close()
            found = []
            while not found:
                found = await client.consume(1, 1.0)
            return bytes(found[0].value())

    with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
        guard = Pipeline(
            verifier=forge.verifier(), policy=forge.policy(stage.destination), replay=MemoryReplayStore(),
            audit=audit,
        )  # fmt: skip
        read_on = asyncio.run(consume(guard))
    answers = stage.letters()
    stage.close()
    assert [answer.body for answer in answers] == [b"yes to 0"]
    assert read_on == b"1"


class AIOConfluentScene(ConfluentScene):
    """A topic full of messages, and victims in event loops."""

    module = "integration.confluent_aio_victim"


@pytest.fixture
def scene(kafka: Kafka, tmp_path: Path) -> Iterator[AIOConfluentScene]:
    """Yield a set scene."""
    scene = AIOConfluentScene(kafka.url, tmp_path)
    yield scene
    scene.stage.close()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["handler", "letter"])
def test_killed_and_started_again(
    scene: AIOConfluentScene, moment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed twice between handler and commit, or dead letter and commit: sent = handled + dead-lettered."""
    killed_and_started_again(scene, moment, capsys)


@pytest.mark.slow
def test_paused_beyond_the_session(scene: AIOConfluentScene, capsys: pytest.CaptureFixture[str]) -> None:
    """A process that stands still beyond its session, while another goes on, loses and condemns nothing."""
    paused_beyond_the_session(scene, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("assignor", ["range", "cooperative-sticky"])
def test_storm(kafka: Kafka, tmp_path: Path, assignor: str, capsys: pytest.CaptureFixture[str]) -> None:
    """While four members join and leave nothing is lost or condemned, and each key is handled in order."""
    stage = AIOConfluentLogStage(kafka.url, partition_assignment_strategy=assignor)
    weathered(stage, tmp_path, f"{assignor}, in event loops", capsys)
