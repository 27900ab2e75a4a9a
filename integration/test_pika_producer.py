"""pika's producer on a real RabbitMQ: threads, refusals, lost connections."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
from pika.exceptions import AMQPError, NackError

from integration.pika_world import HEARTBEAT, World
from integration.services import RabbitMQ
from mqauth.brokers import pika as leaf
from mqauth.errors import MalformedMessage
from mqauth.testing.stage_kafka import wait_until
from mqauth.wire.message import TOKEN_HEADER


@pytest.fixture
def world(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[World]:
    """A fresh world."""
    world = World(rabbitmq.url, tmp_path)
    yield world
    world.close()


def test_threads_share_signatures(world: World) -> None:
    """What several threads publish at once is confirmed to each, and shares signatures."""
    producer = world.producer(batch=16)

    def publish(number: int) -> None:
        producer.publish(b"%d" % number, "orders.created")

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    channel = world.connect().channel()
    found = [channel.basic_get(world.stage.queue, auto_ack=True) for _ in range(64)]
    assert sorted(int(body) for _, _, body in found) == list(range(64))
    signatures = {properties.headers[TOKEN_HEADER].partition("~")[0] for _, properties, _ in found}
    assert len(signatures) < 64


def test_unroutable(world: World) -> None:
    """A message that no queue takes is an error of its caller alone, also where its id is in flight twice."""
    producer = world.producer()
    same = pika.BasicProperties(message_id="same")
    lost = producer.submit(b"1", "nowhere", same)
    kept = producer.submit(b"2", "orders.created", same)
    with pytest.raises(leaf.UnroutableError):
        lost.result(30)
    kept.result(30)
    producer.publish(b"3", "nowhere", mandatory=False)
    assert world.left() == 1
    assert same.headers is None


def test_refused(world: World) -> None:
    """A queue that is full refuses a message with pika's own error, and the producer goes on."""
    channel = world.connect().channel()
    full = channel.queue_declare("", exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    producer = world.producer("")
    producer.publish(b"1", full.method.queue)
    refused = [producer.submit(b"2", full.method.queue) for _ in range(10)]
    assert NackError in [type(each.exception(30)) for each in refused]
    producer.publish(b"3", world.stage.queue)


def test_what_cannot_be_sent(world: World) -> None:
    """A float, and headers over the broker's frame, are refused before they are sent; the connection lives."""
    producer = world.producer()
    for headers in ({"x": 1.5}, {"x": "a" * 131_064}):
        with pytest.raises(MalformedMessage):
            producer.publish(b"", "orders.created", pika.BasicProperties(headers=headers))
    producer.publish(b"1", "orders.created")
    assert world.left() == 1


def test_beside_one_that_is_too_large(world: World) -> None:
    """Messages that were open beside one that is too large are not told that they are, too."""
    producer = world.producer()
    large = producer.submit(b"b" * (17 << 20), "orders.created")
    beside = [producer.submit(b"%d" % number, "orders.created") for number in range(8)]
    assert isinstance(large.exception(30), ValueError)
    told = [each.exception(30) for each in beside]
    assert all(error is None or isinstance(error, AMQPError) for error in told)
    producer.publish(b"9", "orders.created")


def test_an_exchange_that_is_missing(world: World) -> None:
    """A channel that the broker closes fails its publishes, and is opened anew for the next."""
    producer = world.producer("no-such-exchange")
    for _ in range(2):
        with pytest.raises(pika.exceptions.ChannelClosedByBroker):
            producer.publish(b"1", "orders.created")


def test_idle_for_longer_than_heartbeats(world: World) -> None:
    """A producer that has nothing to publish answers heartbeats, and gives its connection back in the end."""
    connection = world.connect(f"?heartbeat={HEARTBEAT}")
    with leaf.Producer(connection, world.exchange, world.forge.signer()) as producer:
        producer.publish(b"1", "orders.created")
        threading.Event().wait(4 * HEARTBEAT)
        producer.publish(b"2", "orders.created")
    assert connection.channel().queue_declare(world.stage.queue, passive=True).method.message_count == 2


def test_a_lost_connection_is_an_error(world: World) -> None:
    """A publish on a lost connection fails with pika's error, and ``close`` returns."""
    producer = world.producer()
    producer.publish(b"1", "orders.created")
    producer.link._impl._transport._sock.shutdown(2)
    wait_until(lambda: producer.link.error is not None)
    with pytest.raises((AMQPError, OSError)):
        producer.publish(b"3", "orders.created")
    producer.close()


def test_answers_come_to_the_loop_alone(world: World) -> None:
    """A connection that one wrapper's thread uses is refused to another."""
    connection = world.connect()
    with leaf.Producer(connection, world.exchange, world.forge.signer()) as producer:
        producer.publish(b"1", "orders.created")
        letters = leaf.DeadLetters(connection, world.stage.dead)
        with pytest.raises(Exception, match="one thread"):
            asyncio.run(letters._publisher.link.channel())
