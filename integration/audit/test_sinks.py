"""Audit records on a real RabbitMQ queue and a real Kafka topic: confirmed and whole, else deferred."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from jsonschema import Draft202012Validator

from integration.audit.records import record
from integration.services import Kafka, RabbitMQ
from mqauth.brokers import kafka, rabbitmq
from mqauth.errors import Cause, ConfigurationError, Unavailable
from mqauth.testing.stage_kafka import KafkaStage

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs" / "audit-record.schema.json").read_text()
)
WRITTEN = 20


def valid(raw: bytes) -> dict[str, Any]:
    """Return a record, held against its schema."""
    found: dict[str, Any] = json.loads(raw)
    Draft202012Validator(SCHEMA).validate(found)
    return found


@pytest.fixture
async def channel(rabbitmq: RabbitMQ) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """A channel with confirms on a connection of its own."""
    async with await aio_pika.connect_robust(rabbitmq.url) as connection:
        yield await connection.channel()


async def test_queue(channel: aio_pika.abc.AbstractChannel) -> None:
    """Every record is in the queue when ``write`` returns: persistent JSON that follows the schema."""
    sink = rabbitmq.AuditQueue(channel, f"audit.{uuid.uuid4().hex[:12]}")
    queue = await sink.declare()
    await asyncio.gather(*(sink.write(record(number)) for number in range(WRITTEN)))
    found = [await queue.get() for _ in range(WRITTEN)]
    assert sorted(valid(message.body)["id"] for message in found) == [
        record(n).id for n in range(WRITTEN)
    ]
    assert {message.delivery_mode for message in found} == {
        aio_pika.DeliveryMode.PERSISTENT
    }
    assert {message.content_type for message in found} == {"application/json"}
    await queue.delete(if_empty=False, if_unused=False)


async def test_queue_missing(channel: aio_pika.abc.AbstractChannel) -> None:
    """A queue that is not there defers: an unroutable record is no record."""
    with pytest.raises(Unavailable, match="does not exist") as raised:
        await rabbitmq.AuditQueue(channel, f"none.{uuid.uuid4().hex}").write(record(0))
    assert raised.value.cause is Cause.AUDIT_UNAVAILABLE


async def test_queue_full(channel: aio_pika.abc.AbstractChannel) -> None:
    """A queue that refuses when full defers, and takes the record again once there is room."""
    name = f"audit.{uuid.uuid4().hex[:12]}"
    queue = await channel.declare_queue(
        name, durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    sink = rabbitmq.AuditQueue(channel, name)
    await sink.write(record(0))
    with pytest.raises(Unavailable):
        await sink.write(record(1))
    await queue.purge()
    await sink.write(record(1))
    await queue.delete(if_empty=False, if_unused=False)


async def test_queue_of_a_closed_connection(rabbitmq: RabbitMQ) -> None:
    """A connection its owner closed defers within its timeout, as does a channel without confirms at once."""
    connection = await aio_pika.connect_robust(rabbitmq.url)
    sink = _queue(await connection.channel())
    with pytest.raises(ConfigurationError, match="confirms"):
        _queue(await connection.channel(publisher_confirms=False))
    await connection.close()
    with pytest.raises(Unavailable):
        await sink.write(record(0))


def _queue(channel: aio_pika.abc.AbstractChannel) -> rabbitmq.AuditQueue:
    return rabbitmq.AuditQueue(channel, "audit", timeout=10)


@pytest.fixture
def stage(kafka: Kafka) -> Iterator[KafkaStage]:
    """Topics and clients of a real Kafka."""
    stage = KafkaStage(kafka.url)
    yield stage
    stage.close()


def test_topic(stage: KafkaStage) -> None:
    """Every record is in the topic when ``write`` returns, those of one instance in order."""
    client = stage.dead_letter_client()
    sink = kafka.AuditTopic(client, stage.dead)
    for number in range(WRITTEN):
        sink.write(record(number))
    assert [valid(letter.body or b"")["id"] for letter in stage.letters()] == [
        record(n).id for n in range(WRITTEN)
    ]
    client.close()


def test_topic_missing(stage: KafkaStage) -> None:
    """A topic that is not there defers, in seconds."""
    client = stage.dead_letter_client()
    with pytest.raises(Unavailable) as raised:
        kafka.AuditTopic(client, f"none.{uuid.uuid4().hex}", timeout=1).write(record(0))
    assert raised.value.cause is Cause.AUDIT_UNAVAILABLE
    client.close()
