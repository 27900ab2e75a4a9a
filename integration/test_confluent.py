"""confluent-kafka's leaf on a real Kafka, with and without an event loop: contracts, commits, stops, own loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import confluent_kafka
import pytest
from confluent_kafka.aio import AIOConsumer

from integration.client_bench import ClientBench, stage_on
from integration.kafka_stages import AIOConfluentLogStage, ConfluentLogStage
from integration.services import Kafka
from mqauth import AuditFile, Verdict
from mqauth.brokers import confluent
from mqauth.judging.verified import Verified
from mqauth.testing.contract import BatchContract
from mqauth.testing.stage_confluent import AIOConfluentStage, ConfluentStage
from mqauth.testing.stage_kafka import wait_until
from tests.kit.delivery_contract import LogDeliveryContract, LogPlay


class TestConfluentInBatches(BatchContract):
    """The same with batch tokens."""

    stage = stage_on("kafka", ConfluentStage)


class TestConfluentDeliveries(LogDeliveryContract):
    """What becomes of deliveries, with several consumers of one group; here by one assignor, below by the other.

    ``test_storms.py`` has each client with each of them.
    """

    stage = stage_on("kafka", ConfluentLogStage, "range")


class TestAIOConfluentInBatches(BatchContract):
    """The same with batch tokens."""

    stage = stage_on("kafka", AIOConfluentStage)


class TestAIOConfluentDeliveries(LogDeliveryContract):
    """What becomes of deliveries, with several consumers of one group."""

    stage = stage_on("kafka", AIOConfluentLogStage, "cooperative-sticky")


@pytest.fixture
def bench(kafka: Kafka, tmp_path: Path) -> Iterator[ClientBench]:
    """A bench whose clients are confluent-kafka's."""
    bench = ClientBench(kafka, tmp_path, ConfluentStage(kafka.url))
    with bench.ending:
        yield bench


def test_automatic_commits_commit_nothing(bench: ClientBench) -> None:
    """With ``enable.auto.commit`` left on a record whose handler runs is not committed: no offset is stored."""
    settings = bench.stage.clients.consumer_settings(
        enable_auto_commit=True, auto_commit_interval_ms=10
    )
    client = confluent_kafka.Consumer(settings)
    begun, over = threading.Event(), threading.Event()

    def handler(verified: Verified) -> None:
        bench.handle(verified)
        if verified.body == b"1":
            begun.set()
            over.wait(30)
            raise SystemExit

    bench.send(b"0", b"1", b"2")
    letters = bench.stage.clients.letters(bench.stage.dead)
    consumer = confluent.Consumer(
        client, bench.guard(), handler, config=settings, topics=[bench.stage.topic], dead_letters=letters,
        commit_interval=0.05,
    )  # fmt: skip
    consumer.__enter__()
    assert begun.wait(30)
    wait_until(lambda: bench.committed() == 1)
    threading.Event().wait(0.2)  # twenty automatic commits
    assert bench.committed() == 1
    over.set()
    wait_until(lambda: consumer.failed)
    with pytest.raises(SystemExit):
        consumer.__exit__(None, None, None)
    client.close()
    assert bench.committed() == 1


def test_audit_topic(bench: ClientBench) -> None:
    """An audit record on a topic is one that the broker has confirmed."""
    config = bench.stage.clients.producer_settings(enable_idempotence=True)
    client = confluent_kafka.Producer(config)
    sink = confluent.AuditTopic(client, bench.stage.dead, config=config)
    bench.forge_some(b"forged")
    bench.stage.consume(
        bench.guard(audit=sink), bench.handle, until=lambda: len(bench.letters()) == 2
    )
    client.close()
    record, letter = bench.letters()
    assert b'"token_missing"' in (record or b"")
    assert letter == b"forged"


def test_stopped_in_a_rebalance(kafka: Kafka, tmp_path: Path) -> None:
    """A member that stops in a cooperative rebalance serves it to its end and commits: nothing comes again."""
    stage = ConfluentLogStage(
        kafka.url, partition_assignment_strategy="cooperative-sticky"
    )
    with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
        play = LogPlay(stage, audit)
        for _ in range(3):
            play.start()
            bodies = len(play.send(20))
            play.wait(lambda bodies=bodies: len(play.handled) >= bodies)  # type: ignore[misc]
            play.start()
            play.members.pop(0).close()
        play.wait(play.all_committed)
        for member in play.members:
            member.close()
    stage.close()
    assert len(play.handled) == 60


def test_own_loop(bench: ClientBench) -> None:
    """A program with its own loop judges, dead-letters and confirms by awaiting, and commits by itself."""
    bench.send(b"0")
    bench.forge_some(b"forged")

    async def consume() -> list[Verdict]:
        letters = bench.stage.clients.letters(bench.stage.dead)
        guard, verdicts = bench.guard(), list[Verdict]()
        async with AIOConsumer(bench.stage.clients.consumer_settings()) as client:
            await client.subscribe([bench.stage.topic])
            log = confluent.Log(await client.cluster_id(timeout=10))
            while len(verdicts) < 2:
                for record in await client.consume(1, 1.0):
                    judgement = await confluent.ajudge(
                        guard, record, scope=bench.stage.group, log=log
                    )
                    verdicts.append(judgement.verdict)
                    if judgement.verdict is Verdict.REJECTED:
                        await judgement.dead_letter(letters)
                    else:
                        await judgement.confirm()
                    await client.commit(message=record, asynchronous=False)
        letters.client.close()
        return verdicts

    assert asyncio.run(consume()) == [Verdict.ACCEPTED, Verdict.REJECTED]
    assert bench.letters() == [b"forged"]
    assert bench.committed() == 2
