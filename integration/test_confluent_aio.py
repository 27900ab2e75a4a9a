"""confluent-kafka's leaf in an event loop on a real Kafka: the contract, answers, kills of its process, storms."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.aio import AIOConsumer

from integration.services import Kafka
from integration.stage_confluent import AIOConfluentLogStage, WatchedAIOConsumer
from integration.test_confluent import (
    World,
    committed_in_transactions,
    shut_out,
)
from mqauth import AuditFile, MemoryReplayStore, Pipeline, Verdict, Verified
from mqauth.brokers import confluent
from mqauth.brokers.event_loop import on_thread
from mqauth.testing.contract import BatchContract, BrokerContract
from mqauth.testing.forge import Forge
from mqauth.testing.loop_thread import ThreadedConsumer
from mqauth.testing.stage import Stage
from mqauth.testing.stage_confluent import AIOConfluentStage
from mqauth.wire.message import Message
from tests.kit.delivery_contract import LogDeliveryContract
from tests.kit.delivery_stage import LogStage


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
        config = stage.clients.consumer_settings()
        async with AIOConsumer(config) as client:
            letters = stage.clients.letters(stage.dead)
            wrapped = confluent.AIOConsumer(
                client, guard, handler, config=config, topics=[stage.topic], dead_letters=letters, replies=replies
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


def consumer_of(world: World, letters: confluent.TransactionalDeadLetters) -> tuple[Any, Any]:
    """Return a client, and a consumer in an event loop with transactional letters on it."""
    config = world.stage.clients.consumer_settings()
    client = Consumer(config)
    topics, handler = [world.stage.topic], on_thread(world.handle)
    return client, ThreadedConsumer(
        lambda: confluent.AIOConsumer(
            WatchedAIOConsumer(client), world.guard, handler, config=config, topics=topics, dead_letters=letters
        )
    )


@pytest.fixture
def world(kafka: Kafka, tmp_path: Path) -> Iterator[World]:
    """Yield a fresh world."""
    world = World(kafka.url, tmp_path)
    yield world
    world.close()


def test_transaction(world: World) -> None:
    """Letters are committed with their offsets, in their order, one too large for the broker in a smaller form."""
    committed_in_transactions(world, consumer_of)


def test_fenced(world: World) -> None:
    """A second consumer with the same transactional id shuts the first one out, which stops at once."""
    shut_out(world, consumer_of)


def test_own_loop(world: World) -> None:
    """A program with its own loop judges, dead-letters and confirms by awaiting, and commits by itself."""
    world.send(b"0")
    world.stage.inject(Message(destination=world.stage.destination, body=b"forged", key=b"k"))

    async def consume() -> list[Verdict]:
        letters = world.stage.clients.letters(world.stage.dead)
        verdicts: list[Verdict] = []
        async with AIOConsumer(world.stage.clients.consumer_settings()) as client:
            await client.subscribe([world.stage.topic])
            log = confluent.Log(await client.cluster_id(timeout=10))
            while len(verdicts) < 2:
                for record in await client.consume(1, 1.0):
                    judgement = await confluent.ajudge(world.guard, record, scope=world.stage.group, log=log)
                    verdicts.append(judgement.verdict)
                    if judgement.verdict is Verdict.REJECTED:
                        await judgement.dead_letter(letters)
                    else:
                        await judgement.confirm()
                    await client.commit(message=record, asynchronous=False)
        letters.client.close()
        return verdicts

    assert asyncio.run(consume()) == [Verdict.ACCEPTED, Verdict.REJECTED]
    assert [letter.body for letter in world.stage.letters()] == [b"forged"]
    assert world.committed() == 2
