"""The attack suite against consumers of every client, on a real RabbitMQ and a real Kafka."""

from __future__ import annotations

import importlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from integration.services import Kafka, RabbitMQ
from mqauth import AuditFile, MemoryReplayStore, Pipeline, Verifier
from mqauth.brokers import kafka as kafka_wrapper
from mqauth.brokers import rabbitmq as rabbitmq_wrapper
from mqauth.testing.attacks import AttackSuite, Probe
from mqauth.testing.stage_aiokafka import AiokafkaStage
from mqauth.testing.stage_confluent import AIOConfluentStage, ConfluentStage
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_pika import PikaStage
from mqauth.testing.stage_rabbitmq import RabbitMQStage

client: Any = importlib.import_module("kafka")  # untyped
MakeGuard = Callable[[Probe], Pipeline]
OTHERS: dict[str, type[Any]] = {
    "pika": PikaStage, "confluent": ConfluentStage, "confluent_aio": AIOConfluentStage, "aiokafka": AiokafkaStage,
}  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.fixture
def make_guard(tmp_path: Path) -> Iterator[MakeGuard]:
    """Return what makes a service's pipeline; its store and its audit file outlive a consumer."""
    store = MemoryReplayStore()
    with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
        yield lambda probe: Pipeline(
            verifier=Verifier(keys=probe.keys, audience="billing"),
            policy=probe.forge.policy(probe.target.destination),
            replay=store,
            audit=audit,
            observers=[probe.observer],
        )


class TestRabbitMQ(AttackSuite):
    """A consumer with a connection of its own, on aio-pika."""

    @pytest.fixture
    def target(self, rabbitmq: RabbitMQ) -> Iterator[RabbitMQStage]:
        """Yield a queue of its own."""
        stage = RabbitMQStage(rabbitmq.url)
        yield stage
        stage.close()

    @pytest.fixture
    def make_consumer(
        self, rabbitmq: RabbitMQ, target: RabbitMQStage, make_guard: MakeGuard
    ) -> Callable[[Probe], AbstractAsyncContextManager[None]]:
        """Return what connects and consumes."""

        @asynccontextmanager
        async def consuming(probe: Probe) -> AsyncIterator[None]:
            async with await aio_pika.connect_robust(rabbitmq.url) as connection:
                channel = await connection.channel()
                letters = rabbitmq_wrapper.DeadLetters(await connection.channel(), target.dead)
                queue = await channel.get_queue(target.queue)
                async with rabbitmq_wrapper.Consumer(
                    queue, make_guard(probe), probe.handler, dead_letters=letters, prefetch=50
                ):
                    yield

        return consuming


class TestKafka(AttackSuite):
    """A consumer with clients of its own, on kafka-python."""

    @pytest.fixture
    def target(self, kafka: Kafka) -> Iterator[KafkaStage]:
        """Yield a topic of its own, with two partitions."""
        stage = KafkaStage(kafka.url, partitions=2)
        yield stage
        stage.close()

    @pytest.fixture
    def make_consumer(
        self, target: KafkaStage, make_guard: MakeGuard
    ) -> Callable[[Probe], AbstractContextManager[None]]:
        """Return what joins a group and consumes."""

        @contextmanager
        def consuming(probe: Probe) -> Iterator[None]:
            records, producer = target.consumer(), target.dead_letter_client()
            letters = kafka_wrapper.DeadLetters(producer, target.dead)
            try:
                with kafka_wrapper.Consumer(records, make_guard(probe), probe.handler, dead_letters=letters):
                    yield
            finally:
                records.close()
                producer.close()

        return consuming


class Staged:
    """A stage's own consumer, as one with ``run`` and ``stop``.

    Args:
        stage: of any client.
        guard: the pipeline.
        handler: of accepted messages.
    """

    def __init__(self, stage: Any, guard: Pipeline, handler: Any) -> None:
        self._stopped = threading.Event()
        self.stop = self._stopped.set
        self.run = lambda: stage.consume(guard, handler, until=self._stopped.is_set)


class TestOtherClients(AttackSuite):
    """The consumers of the other clients, as their stages make them."""

    @pytest.fixture(params=OTHERS)
    def target(self, request: pytest.FixtureRequest) -> Iterator[Any]:
        """Yield a queue or topic of its own."""
        service: Any = request.getfixturevalue("rabbitmq" if request.param == "pika" else "kafka")
        stage = OTHERS[request.param](service.url)
        yield stage
        stage.close()

    @pytest.fixture
    def make_consumer(self, target: Any, make_guard: MakeGuard) -> Callable[[Probe], Staged]:
        """Return what makes the stage's consumer."""
        return lambda probe: Staged(target, make_guard(probe), probe.handler)
