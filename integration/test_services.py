"""The services themselves: real, of the right versions, and under control."""

from __future__ import annotations

import importlib
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import pytest
import redis as redis_client

from integration.services import Kafka, NotOursError, NotReadyError, RabbitMQ, Redis, Service
from integration.services.machine import docker_answers

pytestmark = pytest.mark.slow

client: Any = importlib.import_module("kafka")  # untyped
KINDS = pytest.mark.parametrize("name", ["rabbitmq", "kafka", "redis"])
# One more start of Kafka takes five to ten seconds of CPU, which the quick form of the test command saves.
RESTARTED = pytest.mark.parametrize("name", ["rabbitmq", pytest.param("kafka", marks=pytest.mark.slow), "redis"])
INTERCEPTOR = "message_interceptors.incoming.set_header_timestamp.overwrite = true"
VARIABLES = {"rabbitmq": "MQAUTH_RABBITMQ_URL", "kafka": "MQAUTH_KAFKA_URL", "redis": "MQAUTH_REDIS_URL"}
LAUNCH: dict[str, Callable[[], Service]] = {
    "rabbitmq": RabbitMQ.launch, "kafka": Kafka.launch, "redis": Redis.launch,
}  # fmt: skip


@pytest.fixture
def service(name: str, request: pytest.FixtureRequest) -> Service:
    """The session's service of that name, if it is ours to stop."""
    found = request.getfixturevalue(name)
    assert isinstance(found, Service)
    return _ours(found)


def _ours(service: Service) -> Service:
    if not service.ours:
        pytest.skip(f"needs a server of its own to stop; this one is {service.origin}")
    return service


def _refused(url: str) -> bool:
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=1).close()
    except OSError:
        return True
    return False


def test_rabbitmq_is_version_4(rabbitmq: RabbitMQ) -> None:
    """The RabbitMQ under test answers AMQP and is 4.0 or newer."""
    assert int(rabbitmq.probe().split(".")[0]) >= 4
    assert rabbitmq.probe() == rabbitmq.version


def test_kafka_is_version_4(kafka: Kafka) -> None:
    """The Kafka under test answers ApiVersions and has dropped what 4.0 dropped."""
    assert kafka.probe() == "4.0+"
    assert int(kafka.version.split(".")[0]) >= 4


def test_redis_answers(redis: Redis) -> None:
    """The Redis under test answers PING and tells its version."""
    assert redis.probe() == redis.version


async def test_rabbitmqctl_reaches_the_broker_under_test(rabbitmq: RabbitMQ) -> None:
    """`ctl` speaks to the very node whose URL the tests use."""
    _ours(rabbitmq)
    exchange = f"seen-{uuid.uuid4()}"
    async with await aio_pika.connect(rabbitmq.url) as connection:
        await (await connection.channel()).declare_exchange(exchange, auto_delete=True)
        assert exchange in rabbitmq.ctl("list_exchanges")


@KINDS
def test_paused_is_silent_and_resumed_answers(service: Service) -> None:
    """A paused server lets a probe time out with its port open; a resumed one answers."""
    service.pause()
    with pytest.raises(NotReadyError, match="timed out"):
        service.probe(timeout=0.3)
    service.resume()
    assert service.probe()


@RESTARTED
def test_killed_refuses_and_started_answers_on_its_port(service: Service) -> None:
    """A killed server refuses connections and comes back on the same port."""
    service.kill()
    assert _refused(service.url)
    with pytest.raises(NotReadyError):
        service.probe(timeout=0.3)
    service.start()
    assert service.probe()


@pytest.mark.slow
@KINDS
def test_stop_ends_a_paused_server(service: Service) -> None:
    """A server can be stopped while it is paused, and stopping twice does no harm."""
    service.pause()
    service.stop()
    service.stop()
    assert _refused(service.url)
    service.start()
    assert service.probe()


async def test_rabbitmq_keeps_a_durable_message_over_a_restart(rabbitmq: RabbitMQ) -> None:
    """A persistent message in a quorum queue is there after a restart."""
    _ours(rabbitmq)
    queue_name = f"kept-{uuid.uuid4()}"
    async with await aio_pika.connect(rabbitmq.url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(queue_name, durable=True, arguments={"x-queue-type": "quorum"})
        message = aio_pika.Message(b"kept", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, routing_key=queue_name)
    rabbitmq.restart()
    async with await aio_pika.connect(rabbitmq.url) as connection:
        queue = await (await connection.channel()).get_queue(queue_name)
        received = await queue.get(timeout=10)
        assert received is not None
        assert received.body == b"kept"
        await received.ack()
        await queue.delete(if_unused=False, if_empty=False)


@pytest.mark.slow
def test_kafka_keeps_a_record_over_a_restart(kafka: Kafka) -> None:
    """A record acknowledged before a restart is read after it."""
    _ours(kafka)
    topic = f"kept-{uuid.uuid4()}"
    admin = client.KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    try:
        admin.create_topics([client.admin.NewTopic(name=topic, num_partitions=1, replication_factor=1)])
    finally:
        admin.close()
    producer = client.KafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all")
    try:
        producer.send(topic, b"kept").get(timeout=20)
    finally:
        producer.close()
    kafka.restart()
    assert _first_record(kafka, topic) == b"kept"


def _first_record(kafka: Kafka, topic: str) -> bytes:
    consumer = client.KafkaConsumer(bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest")
    try:
        consumer.assign([client.TopicPartition(topic, 0)])
        records = next(iter(consumer.poll(timeout_ms=20_000).values()))
        return bytes(records[0].value)
    finally:
        consumer.close()


def test_redis_keeps_a_key_over_a_kill(redis: Redis) -> None:
    """A key set before SIGKILL is there after the start."""
    _ours(redis)
    key = f"kept-{uuid.uuid4()}"
    with redis_client.Redis.from_url(redis.url) as connection:
        connection.set(key, "1", nx=True)
    redis.kill()
    redis.start()
    with redis_client.Redis.from_url(redis.url) as connection:
        assert connection.get(key) == b"1"


@RESTARTED
def test_closed_leaves_nothing(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second instance runs beside the first on a port of its own, and nothing of it is left after close."""
    first = request.getfixturevalue(name)
    monkeypatch.delenv(VARIABLES[name], raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with LAUNCH[name]() as second:
        assert second.url != first.url
        assert second.probe()
    assert second.control.ended()
    assert _refused(second.url)
    assert not list(tmp_path.iterdir())
    assert not getattr(second.control, "folder", tmp_path / "none").exists()


@RESTARTED
def test_a_killed_run_leaves_no_server(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies by SIGKILL, with no chance to clean up, takes its servers with it."""
    if docker_answers():
        pytest.skip("containers outlive the process that started them")
    monkeypatch.delenv(VARIABLES[name], raising=False)
    kind = LAUNCH[name].__self__.__name__  # type: ignore[attr-defined]
    script = f"from integration.services import {kind} as k; print(k.launch().url, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        url = run.stdout.readline().strip()
        assert not _refused(url)
        run.kill()
    deadline = time.monotonic() + 20
    while not _refused(url):
        assert time.monotonic() < deadline, f"{url} still answers"


@KINDS
def test_a_server_given_by_its_url_is_used_and_left_alone(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A URL in the environment is taken as it is; stopping that server is refused, its variable named."""
    first = request.getfixturevalue(name)
    monkeypatch.setenv(VARIABLES[name], first.url)
    with LAUNCH[name]() as given:
        assert given.url == first.url
        with pytest.raises(NotOursError, match=VARIABLES[name]):
            given.stop()
    assert first.probe()


async def stamp_of(broker: RabbitMQ) -> datetime | None:
    """Return the timestamp of a message to which its publisher gave the year 1970."""
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        await channel.default_exchange.publish(aio_pika.Message(b"", timestamp=1), routing_key=queue.name)
        received = await queue.get(timeout=10)
        return None if received is None else received.timestamp


async def test_the_broker_stamps_what_it_takes(rabbitmq: RabbitMQ) -> None:
    """The configuration that Docker Compose gives it overwrites a publisher's timestamp."""
    stamp = await stamp_of(rabbitmq)
    assert stamp is not None
    assert stamp.year > 2000


async def test_extra_config_has_the_last_word() -> None:
    """A broker of one's own may leave a publisher's timestamp alone."""
    with RabbitMQ.launch(extra_config=[INTERCEPTOR.replace("true", "false")]) as believing:
        stamp = await stamp_of(believing)
    assert stamp is not None
    assert stamp.timestamp() == 1
