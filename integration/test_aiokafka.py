"""aiokafka's leaf on a real Kafka: the contracts, what its transactions cover, and its audit topic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import CommitFailedError
from aiokafka.protocol.commit import OffsetFetchRequest

from integration.client_bench import ClientBench, stage_on
from integration.kafka_stages import AiokafkaLogStage
from integration.services import Kafka
from mqauth.brokers import aiokafka
from mqauth.brokers.aiokafka import membership
from mqauth.brokers.aiokafka.membership import Membership
from mqauth.testing.contract import BatchContract
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_aiokafka import AiokafkaClients, AiokafkaStage
from tests.kit.delivery_contract import LogDeliveryContract


class TestAiokafkaInBatches(BatchContract):
    """The same with batch tokens."""

    stage = stage_on("kafka", AiokafkaStage)


class TestAiokafkaDeliveries(LogDeliveryContract):
    """What becomes of deliveries, with several consumers of one group."""

    stage = stage_on("kafka", AiokafkaLogStage)


class World(ClientBench):
    """A bench whose clients are aiokafka's."""

    def __init__(self, kafka: Kafka, folder: Path) -> None:
        super().__init__(kafka, folder, AiokafkaStage(kafka.url))
        self.call = self.stage.thread.call

    def keep(self, client: Any) -> Any:
        """Have a client stopped in the end."""
        self.ending.callback(lambda: self.call(client.stop()))
        return client


@pytest.fixture
def world(kafka: Kafka, tmp_path: Path) -> Iterator[World]:
    """A fresh world."""
    world = World(kafka, tmp_path)
    with world.ending:
        yield world


async def letters_of(world: World, name: str) -> aiokafka.TransactionalDeadLetters:
    """Return transactional letters."""
    servers, group = world.stage.servers, world.stage.group
    return aiokafka.TransactionalDeadLetters(
        lambda: AIOKafkaProducer(bootstrap_servers=servers, transactional_id=f"{group}.{name}"),
        world.stage.dead, 10,
    )  # fmt: skip


async def transactional(
    world: World, name: str
) -> tuple[aiokafka.Consumer, aiokafka.TransactionalDeadLetters]:
    """Return a consumer that runs, and its transactional letters."""
    clients = AiokafkaClients(world.stage.servers, world.stage.group)
    client = await clients.consumer(
        world.stage.topic, session_timeout_ms=6000, isolation_level="read_committed"
    )
    letters = await letters_of(world, name)
    consumer = aiokafka.Consumer(
        world.keep(client), world.guard(), world.handle, dead_letters=letters
    )
    return await consumer.__aenter__(), letters


def test_transaction_of_a_former_member(world: World) -> None:
    """The broker refuses letters with offsets of a consumer of a generation that is over."""
    world.forge_some(b"a")
    consumer, letters = world.call(transactional(world, "former"))
    wait_until(lambda: world.committed() == 1, lambda: not consumer.failed)
    member = consumer.calls.membership()
    offsets: dict[Any, Any] = {TopicPartition(world.stage.topic, 0): 7}
    group = Membership(str(member), member.generation - 1, member.member)
    world.call(consumer.stop())
    letters.prepare()
    with pytest.raises(CommitFailedError):
        letters.write([], offsets, group)
    letters.discard()
    world.call(letters.closed())
    assert world.committed() == 1


def test_offsets_are_final(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a transaction that would commit an offset is open its partition is not begun, and then behind it."""
    world.send(b"0", b"1")
    asked: list[type] = []
    send = membership._send

    async def noting(theirs: Any, request: Any) -> Any:
        asked.append(type(request))
        return await send(theirs, request)

    monkeypatch.setattr(membership, "_send", noting)
    letters = world.call(letters_of(world, "other"))
    letters.prepare()
    place = TopicPartition(world.stage.topic, 0)
    letters.write([], {place: 1}, Membership(world.stage.group, -1, ""))
    consumer, _ = world.call(transactional(world, "reader"))
    wait_until(lambda: asked.count(OffsetFetchRequest) > 3)
    assert world.handled == []
    letters.commit()
    wait_until(lambda: world.committed() == 2, lambda: not consumer.failed)
    world.call(consumer.stop())
    letters.discard()
    world.call(letters.closed())
    assert world.handled == [b"1"]


def test_audit_topic(world: World) -> None:
    """An audit record on a topic is one that the broker has confirmed."""
    sink = aiokafka.AuditTopic(
        world.keep(world.call(world.stage.clients.producer())), world.stage.dead
    )
    world.forge_some(b"forged")
    world.stage.consume(
        world.guard(audit=sink), world.handle, until=lambda: len(world.letters()) == 2
    )
    record, letter = world.letters()
    assert b'"token_missing"' in (record or b"")
    assert letter == b"forged"
