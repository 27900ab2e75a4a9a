"""Objects of other Kafka clients, real ones, in the hands of the kafka-python wrapper: refused by name."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiokafka
import confluent_kafka
import pytest

from mqauth import MemoryReplayStore, Pipeline
from mqauth.audit.record import AuditRecord
from mqauth.errors import ConfigurationError
from mqauth.testing import Forge
from tests.conftest import KAFKA

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from mqauth.brokers import kafka
    from mqauth.review.kafka import KafkaLetterBox, KafkaRecords


class Settings:
    """What is read of a client of kafka-python before anything else."""

    def __init__(self, **config: Any) -> None:
        self.config = {"key_serializer": None, "value_serializer": None} | config


class Sink:
    """A sink that is never reached."""

    name = "dead"

    def write(self, record: AuditRecord, /) -> None:
        """Take an audit record."""

    def publish(self, letter: Any, /) -> None:
        """Take a letter."""


PRODUCER = Settings(
    enable_idempotence=False, acks="all", transactional_id=None, max_block_ms=1, batch_size=262_144, linger_ms=0
)
CONSUMERS: dict[str, Callable[[Any, Pipeline], Any]] = {
    "Consumer": lambda client, guard: kafka.Consumer(client, guard, print, dead_letters=Sink()),
    "KafkaLetterBox": lambda client, _guard: KafkaLetterBox(client, PRODUCER, "t"),
    "KafkaRecords": lambda client, _guard: KafkaRecords(client),
}
PRODUCERS: dict[str, Callable[[Any, Pipeline], Any]] = {
    "Producer": lambda client, _guard: kafka.Producer(client, Forge().signer()),
    "Producer of batches": lambda client, _guard: kafka.Producer(client, Forge().signer(), batch=8),
    "DeadLetters": lambda client, _guard: kafka.DeadLetters(client, "t"),
    "TransactionalDeadLetters": lambda client, _guard: kafka.TransactionalDeadLetters(lambda: client, "t"),
    "AuditTopic": lambda client, _guard: kafka.AuditTopic(client, "t"),
    "KafkaLetterBox": lambda client, _guard: KafkaLetterBox(Settings(group_id=None), client, "t"),
}
RECORDS = {
    "confluent_kafka.Message": confluent_kafka.Message(topic="orders", value=b"x"),
    "aiokafka.ConsumerRecord": aiokafka.ConsumerRecord(
        topic="orders", partition=0, offset=0, timestamp=0, timestamp_type=0, key=None, value=b"x", checksum=None,
        serialized_key_size=0, serialized_value_size=1, headers=(),
    ),
}  # fmt: skip


@pytest.fixture
def guard(forge: Forge) -> Pipeline:
    """A pipeline a consumer takes."""
    return Pipeline(
        verifier=forge.verifier(), policy=forge.policy(KAFKA), replay=MemoryReplayStore(), audit=Sink()
    )


@pytest.fixture
def confluent() -> Iterator[tuple[Any, Any]]:
    """A consumer and a producer of confluent-kafka, which know no broker."""
    consumer = confluent_kafka.Consumer({"group.id": "g"})
    yield consumer, confluent_kafka.Producer({})
    consumer.close()


@pytest.fixture
async def aio() -> AsyncIterator[tuple[Any, Any]]:
    """A consumer and a producer of aiokafka, never started."""
    consumer, producer = aiokafka.AIOKafkaConsumer("orders", group_id="g"), aiokafka.AIOKafkaProducer()
    yield consumer, producer
    await consumer.stop()
    await producer.stop()


@pytest.mark.parametrize("wrap", CONSUMERS.values(), ids=CONSUMERS)
async def test_consumer_of_another_client(
    wrap: Callable[[Any, Pipeline], Any], guard: Pipeline, confluent: tuple[Any, Any], aio: tuple[Any, Any]
) -> None:
    """Whatever wants a ``KafkaConsumer`` refuses another library's, and names it."""
    for client, name in ((confluent[0], "confluent_kafka.Consumer"), (aio[0], "aiokafka.AIOKafkaConsumer")):
        with pytest.raises(ConfigurationError, match=f"KafkaConsumer of kafka-python is needed, not {name}$"):
            wrap(client, guard)


@pytest.mark.parametrize("wrap", PRODUCERS.values(), ids=PRODUCERS)
async def test_producer_of_another_client(
    wrap: Callable[[Any, Pipeline], Any], guard: Pipeline, confluent: tuple[Any, Any], aio: tuple[Any, Any]
) -> None:
    """Whatever wants a ``KafkaProducer`` refuses another library's, and names it."""
    for client, name in ((confluent[1], "confluent_kafka.Producer"), (aio[1], "aiokafka.AIOKafkaProducer")):
        with pytest.raises(ConfigurationError, match=f"KafkaProducer of kafka-python is needed, not {name}$"):
            wrap(client, guard)


def test_kinds_are_told_apart(guard: Pipeline) -> None:
    """A producer in the place of a consumer is refused by name, and the other way round."""
    for wrap in CONSUMERS.values():
        with pytest.raises(
            ConfigurationError, match=r"KafkaConsumer of kafka-python is needed, not tests\.Settings"
        ):
            wrap(PRODUCER, guard)
    for wrap in PRODUCERS.values():
        with pytest.raises(
            ConfigurationError, match=r"KafkaProducer of kafka-python is needed, not tests\.Settings"
        ):
            wrap(Settings(group_id="g"), guard)


@pytest.mark.parametrize("name", RECORDS)
def test_record_of_another_client(name: str, guard: Pipeline) -> None:
    """A record of another library is refused by name: it is no fault of its sender."""
    for read in (
        lambda record: kafka.judge(guard, record, scope="g"),
        lambda record: kafka.from_native(record, scope="g"),
    ):
        with pytest.raises(ConfigurationError, match=f"ConsumerRecord of kafka-python is needed, not {name}$"):
            read(RECORDS[name])
