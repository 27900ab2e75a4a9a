"""FastStream's two Kafka brokers on a real one: a stop in the middle of a handler, and a store that is away."""

from __future__ import annotations

import asyncio
import importlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.services import Kafka
from integration.test_faststream import observing
from mqauth import AuditFile, MemoryReplayStore, Pipeline
from mqauth.brokers import kafka as wrapper
from mqauth.integrations.faststream import UnverifiedMessage, VerifiedMessage, protect, unverified
from mqauth.judging.rollout import Rollout
from mqauth.testing.forge import Forge

client: Any = importlib.import_module("kafka")  # untyped
PATIENCE = 60.0
RECORDS = 5


class Shop:
    """A topic, its group, and protected brokers on it.

    Args:
        address: of Kafka.
        package: FastStream's, with the client.
        audit: where records go.
    """

    def __init__(self, address: str, package: str, audit: AuditFile) -> None:
        self.address = address
        self.package = importlib.import_module(package)
        self.forge = Forge()
        self.topic = f"orders-{uuid.uuid4().hex}"
        self.audit = audit
        self.replay: Any = MemoryReplayStore()
        self.rollout: Rollout | None = None
        self.handled: list[int] = []
        self.done = asyncio.Event()

    def broker(self) -> Any:
        """Return a broker whose handler is not declared yet."""
        guard = Pipeline(
            verifier=self.forge.verifier(), policy=self.forge.policy(f"kafka:{self.topic}"), replay=self.replay,
            audit=self.audit, rollout=self.rollout,
        )  # fmt: skip
        broker = self.package.KafkaBroker(self.address, graceful_timeout=0.1)
        return protect(broker, guard=guard, dead_letters=self.letters, signer=self.forge.signer())

    def letters(self) -> wrapper.DeadLetters:
        """Return the dead letters; none is due in this file."""
        producer = client.KafkaProducer(bootstrap_servers=self.address, acks="all", enable_idempotence=False)
        return wrapper.DeadLetters(producer, f"{self.topic}.dead")

    def subscriber(self, broker: Any) -> Any:
        """Return the decorator of the topic's handler."""
        return broker.subscriber(self.topic, group_id=self.topic, auto_offset_reset="earliest")

    async def take(self, order: int, verified: VerifiedMessage) -> None:
        """Handle a record."""
        assert verified.body == str(order).encode()
        self.handled.append(order)
        if order == RECORDS - 1:
            self.done.set()

    async def publish(self, broker: Any) -> None:
        """Publish the records."""
        for number in range(RECORDS):
            await broker.publish(number, self.topic)

    def committed(self) -> int:
        """Return the offset that the group has committed."""
        with client.KafkaConsumer(bootstrap_servers=self.address, group_id=self.topic) as consumer:
            found: int = consumer.committed(client.TopicPartition(self.topic, 0))
        return found


@pytest.fixture(params=["faststream.kafka", "faststream.confluent"])
def shop(request: pytest.FixtureRequest, kafka: Kafka, tmp_path: Path) -> Iterator[Shop]:
    """Yield a shop on each client, its topic made."""
    with AuditFile(tmp_path / "audit.jsonl") as audit:
        shop = Shop(kafka.url.partition("://")[2], request.param, audit)
        with client.KafkaAdminClient(bootstrap_servers=shop.address) as admin:
            admin.create_topics([client.admin.NewTopic(name=shop.topic, num_partitions=1, replication_factor=1)])
            yield shop
            admin.delete_topics([shop.topic])


async def test_stop_in_the_middle(shop: Shop) -> None:
    """A broker that stops in the middle of a handler commits what was handled; all else is handled after that."""
    first, stuck = shop.broker(), asyncio.Event()

    @shop.subscriber(first)
    async def wait(order: int, verified: VerifiedMessage) -> None:
        if order == 2:
            stuck.set()
            await asyncio.Event().wait()
        await shop.take(order, verified)

    await first.start()
    await shop.publish(first)
    async with asyncio.timeout(PATIENCE):
        await stuck.wait()
    await first.stop()
    assert (shop.handled, shop.committed()) == ([0, 1], 2)
    second = shop.broker()
    shop.subscriber(second)(shop.take)
    await second.start()
    async with asyncio.timeout(PATIENCE):
        await shop.done.wait()
    await second.stop()
    assert (shop.handled, shop.committed()) == (list(range(RECORDS)), RECORDS)


async def test_rollout(shop: Shop) -> None:
    """While a topic is observed, what is not signed reaches the second handler, what is signed the first."""
    shop.rollout = observing(f"kafka:{shop.topic}")
    broker, proofless = shop.broker(), list[bytes | None]()
    records = shop.subscriber(broker)

    @records(filter=unverified)
    async def old(order: int, message: UnverifiedMessage) -> None:
        assert message.body == str(order).encode()
        proofless.append(message.body)

    records(shop.take)
    await broker.start()
    with client.KafkaProducer(bootstrap_servers=shop.address) as producer:
        producer.send(shop.topic, value=b"77").get(timeout=PATIENCE)
    await shop.publish(broker)
    async with asyncio.timeout(PATIENCE):
        await shop.done.wait()
    await broker.stop()
    assert (proofless, shop.handled, shop.committed()) == ([b"77"], list(range(RECORDS)), RECORDS + 1)


class Away(MemoryReplayStore):
    """A replay store that is away for some calls."""

    failures = 3

    def claim(self, request: Any, /) -> Any:
        """Fail, or claim."""
        if self.failures:
            self.failures -= 1
            raise ConnectionError
        return super().claim(request)


async def test_deferral_holds_the_subscriber(shop: Shop) -> None:
    """While the replay store is away nothing is handled, skipped or committed; then all is, in order."""
    shop.replay = Away()
    broker = shop.broker()
    shop.subscriber(broker)(shop.take)
    await broker.start()
    await shop.publish(broker)
    async with asyncio.timeout(PATIENCE):
        await shop.done.wait()
    await broker.stop()
    assert (shop.handled, shop.committed(), shop.replay.failures) == (list(range(RECORDS)), RECORDS, 0)
