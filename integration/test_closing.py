"""A producer that is closed while its broker is silent: it ends in time, and says what has no confirm."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import closing
from functools import partial
from typing import Any, Final

import aio_pika
import aiokafka as aiokafka_library
import confluent_kafka
import kafka as kafka_python
import pytest
from kafka.admin import KafkaAdminClient, NewTopic
from pika import BlockingConnection, URLParameters

from integration.services import Kafka, RabbitMQ
from mqauth.brokers import aiokafka, confluent, kafka, pika, rabbitmq
from mqauth.brokers.closing import UnconfirmedError
from mqauth.signer import Signer
from mqauth.testing import FakeClock, Forge
from mqauth.testing.stage_kafka import servers

SILENT: Final = 3
"""Messages that are published to a broker that is frozen."""
PATIENCE: Final = 1.0
HANGS: Final = 45.0
"""Seconds: far more than a close takes on a busy machine, far less than a client's own time-outs."""


async def on_aio_pika(url: str, name: str, signer: Signer, broker: Any) -> list[Any]:
    """Close a producer of aio-pika."""
    connection = await aio_pika.connect(url)
    channel = await connection.channel()
    await channel.declare_queue(name, auto_delete=True)
    producer = rabbitmq.Producer(channel.default_exchange, signer)
    await producer.publish(aio_pika.Message(b"first"), name)
    broker.pause()
    silent = [
        asyncio.create_task(producer.publish(aio_pika.Message(b"silent"), name))
        for _ in range(SILENT)
    ]
    await asyncio.sleep(0)
    with pytest.raises(UnconfirmedError, match=f"{SILENT} of the messages"):
        await producer.close(PATIENCE)
    broker.resume()
    await connection.close()
    return await asyncio.gather(*silent, return_exceptions=True)


def on_pika(url: str, name: str, signer: Signer, broker: Any) -> list[Any]:
    """Close a producer of pika."""
    connection = BlockingConnection(URLParameters(url))
    connection.channel().queue_declare(name, auto_delete=True)
    producer = pika.Producer(connection, "", signer)
    producer.publish(b"first", name, timeout=60)
    broker.pause()
    silent = [producer.submit(b"silent", name) for _ in range(SILENT)]
    with pytest.raises(UnconfirmedError, match=f"{SILENT} of the messages"):
        producer.close(PATIENCE)
    broker.resume()
    connection.close()
    return [future.exception(0) for future in silent]


def on_kafka_python(url: str, name: str, signer: Signer, broker: Any) -> list[Any]:
    """Close a producer of kafka-python."""
    producer = kafka.Producer(kafka_python.KafkaProducer(bootstrap_servers=url), signer)
    producer.send(name, b"first").get(60)
    broker.pause()
    silent = [producer.send(name, b"silent") for _ in range(SILENT)]
    with pytest.raises(UnconfirmedError, match=f"{SILENT} of the messages"):
        producer.close(PATIENCE)
    return [future.exception for future in silent if future.is_done]


def on_confluent(url: str, name: str, signer: Signer, broker: Any) -> list[Any]:
    """Close a producer of confluent-kafka."""
    config = {"bootstrap.servers": url}
    producer = confluent.Producer(confluent_kafka.Producer(config), signer, config=config)
    producer.produce(name, b"first")
    assert producer.flush(60) == 0
    broker.pause()
    errors: list[Any] = []
    for _ in range(SILENT):
        producer.produce(
            name, b"silent", on_delivery=lambda error, _: errors.append(error)
        )
    with pytest.raises(UnconfirmedError, match=f"{SILENT} of the messages"):
        producer.close(PATIENCE)
    return errors


async def on_aiokafka(url: str, name: str, signer: Signer, broker: Any) -> list[Any]:
    """Close a producer of aiokafka."""
    client = aiokafka_library.AIOKafkaProducer(bootstrap_servers=url)
    await client.start()
    producer = aiokafka.Producer(client, signer)
    await producer.send_and_wait(name, b"first")
    broker.pause()
    silent = [await producer.send(name, b"silent") for _ in range(SILENT)]
    with pytest.raises(UnconfirmedError, match=f"{SILENT} of the messages"):
        await producer.stop(PATIENCE)
    done, _ = await asyncio.wait(silent, timeout=0)
    return [future.exception() for future in done]


RABBITMQ: Final = {"aio-pika": on_aio_pika, "pika": on_pika}
KAFKA: Final = {
    "kafka-python": on_kafka_python,
    "confluent-kafka": on_confluent,
    "aiokafka": on_aiokafka,
}


async def closed(client: Any, url: str, name: str, broker: Any) -> list[Any]:
    """Return what the publishes to a frozen broker ended with, once their producer was closed."""
    signer = Forge(FakeClock()).signer()
    ended: Any = client
    if not asyncio.iscoroutinefunction(client):
        ended = partial(asyncio.to_thread, client)
    try:
        return list(await asyncio.wait_for(ended(url, name, signer, broker), HANGS))
    finally:
        broker.resume()


@pytest.mark.parametrize("name", RABBITMQ)
async def test_a_frozen_rabbitmq(name: str, own_rabbitmq: RabbitMQ) -> None:
    """A close ends within its time, counts what has no confirm, and ends each publish with that error."""
    queue = f"closing-{uuid.uuid4().hex[:12]}"
    errors = await closed(RABBITMQ[name], own_rabbitmq.url, queue, own_rabbitmq)
    assert [type(error) for error in errors] == [UnconfirmedError] * SILENT


@pytest.mark.parametrize("name", KAFKA)
async def test_a_frozen_kafka(name: str, own_kafka: Kafka) -> None:
    """A close ends within its time, counts what has no outcome, and fails each record."""
    topic = f"closing-{uuid.uuid4().hex[:12]}"
    (address,) = servers(own_kafka.url)
    with closing(KafkaAdminClient(bootstrap_servers=address)) as admin:
        admin.create_topics([NewTopic(topic, num_partitions=1)], wait_for_metadata=True)
    errors = await closed(KAFKA[name], address, topic, own_kafka)
    assert len(errors) == SILENT
    assert all(error is not None for error in errors)
