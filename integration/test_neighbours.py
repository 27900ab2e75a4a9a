"""What the fault of one message does to what the same producer publishes beside it, on every client."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial

import aio_pika
import pytest
from aiokafka.errors import MessageSizeTooLargeError as AiokafkaTooLarge
from confluent_kafka import KafkaError, KafkaException
from faststream.rabbit import RabbitBroker, RabbitExchange
from kafka.errors import MessageSizeTooLargeError

from integration.every_producer import (
    KAFKA,
    PATIENCE,
    RABBITMQ,
    Producing,
    Publishing,
    by_futures,
    in_loop,
)
from integration.services import Kafka, RabbitMQ
from mqauth import MalformedMessage
from mqauth.brokers import pika
from mqauth.brokers import rabbitmq as aio_pika_leaf
from mqauth.brokers.amqp_messages import DEFAULT_MAX_BODY
from mqauth.integrations.faststream import protect
from mqauth.testing.forge import Forge
from mqauth.testing.loop_thread import LoopThread
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_pika import connect

LARGE = b"b" * (20 << 20)
"""A body that neither RabbitMQ nor Kafka takes as they are set up."""
BESIDE = 30
"""Messages before the large one, and after it."""
SIGNER = Forge(lifetime=600).signer()
AROUND = [*[b"small"] * BESIDE, LARGE, *[b"small"] * BESIDE]


@pytest.fixture
def queue(rabbitmq: RabbitMQ) -> Iterator[str]:
    """A queue's name, for whoever publishes to declare it."""
    name = f"neighbours-{uuid.uuid4().hex[:8]}"
    yield name
    with connect(rabbitmq.url) as connection:
        channel = connection.channel()
        for beside in ("", ".taskiq", ".delay", ".DQ", ".XQ"):
            channel.queue_delete(name + beside)
        channel.exchange_delete(name)


def declare(url: str, queue: str) -> None:
    """Declare a queue."""
    with connect(url) as connection:
        connection.channel().queue_declare(queue, durable=True)


def count(url: str, queue: str) -> int:
    """Return how many messages a queue has."""
    with connect(url) as connection:
        return int(
            connection.channel().queue_declare(queue, passive=True).method.message_count
        )


@pytest.mark.parametrize("producing", RABBITMQ.values(), ids=RABBITMQ)
def test_a_large_message_is_refused_alone(
    producing: Producing, rabbitmq: RabbitMQ, queue: str
) -> None:
    """What RabbitMQ would close the channel for is not sent; what is published beside it arrives."""
    with producing(rabbitmq.url, queue, SIGNER) as publish:
        outcomes = publish(AROUND)
    refused = outcomes.pop(BESIDE)
    assert isinstance(refused, MalformedMessage)
    assert "the broker takes 16777216 bytes" in str(refused)
    assert outcomes == [None] * (2 * BESIDE)
    assert count(rabbitmq.url, queue) == 2 * BESIDE


@pytest.mark.parametrize("producing", RABBITMQ.values(), ids=RABBITMQ)
def test_the_limit_can_be_set(
    producing: Producing, rabbitmq: RabbitMQ, queue: str
) -> None:
    """A broker with another limit has its own: no client is told it."""
    with producing(rabbitmq.url, queue, SIGNER, max_body=1000) as publish:
        (refused,) = publish([b"b" * 2000])
    assert isinstance(refused, MalformedMessage)
    assert "the broker takes 1000 bytes" in str(refused)


@pytest.mark.parametrize("name", ["aio-pika", "pika"])
def test_the_default_is_the_limit_of_the_broker(
    name: str, rabbitmq: RabbitMQ, queue: str
) -> None:
    """A body of the default limit arrives; RabbitMQ itself refuses one that is a byte longer."""
    with RABBITMQ[name](rabbitmq.url, queue, SIGNER, max_body=1 << 30) as publish:
        assert publish([bytes(DEFAULT_MAX_BODY)]) == [None]
        (refused,) = publish([bytes(DEFAULT_MAX_BODY + 1)])
    assert "larger than configured max size 16777216" in str(refused)
    assert count(rabbitmq.url, queue) == 1


@pytest.mark.parametrize("producing", KAFKA.values(), ids=KAFKA)
def test_a_large_record_is_refused_alone(producing: Producing, kafka: Kafka) -> None:
    """Each client of Kafka refuses by itself what is over its limit; what is published beside it arrives."""
    with closing(KafkaStage(kafka.url)) as stage:
        with producing(kafka.url, stage.topic, SIGNER) as publish:
            outcomes = publish(AROUND)
        refused = outcomes.pop(BESIDE)
        if isinstance(refused, KafkaException):
            assert refused.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE
        else:
            assert isinstance(refused, (AiokafkaTooLarge, MessageSizeTooLargeError))
        assert outcomes == [None] * (2 * BESIDE)


Exchanging = Callable[[str, str], AbstractContextManager[tuple[Publishing, Publishing]]]
"""Publishes to an exchange, and to a queue beside it, on one channel where the client has one for both."""


@contextmanager
def by_aio_pika(
    url: str, name: str, *, ensure: bool = False
) -> Iterator[tuple[Publishing, Publishing]]:
    """Publish with aio-pika, whose channel is the caller's."""

    async def opened() -> tuple[
        aio_pika.abc.AbstractConnection, *tuple[aio_pika_leaf.Producer, ...]
    ]:
        connection = await aio_pika.connect_robust(url)
        channel = await connection.channel()
        there = channel.default_exchange, await channel.get_exchange(name, ensure=ensure)
        return connection, *[aio_pika_leaf.Producer(each, SIGNER) for each in there]

    def by(producer: aio_pika_leaf.Producer) -> Publishing:
        return in_loop(
            thread, lambda body: producer.publish(aio_pika.Message(body), name)
        )

    with closing(LoopThread()) as thread:
        connection, beside, there = thread.call(opened())
        yield by(there), by(beside)
        thread.call(connection.close())


@contextmanager
def by_pika(url: str, name: str) -> Iterator[tuple[Publishing, Publishing]]:
    """Publish with pika, each of whose producers has a channel of its own, and a connection."""

    def by(producer: pika.Producer) -> Publishing:
        return by_futures(
            lambda body: partial(producer.submit(body, name).result, PATIENCE)
        )

    with (
        connect(url) as one,
        connect(url) as other,
        pika.Producer(one, name, SIGNER) as there,
        pika.Producer(other, "", SIGNER) as beside,
    ):
        yield by(there), by(beside)


@contextmanager
def by_faststream(url: str, name: str) -> Iterator[tuple[Publishing, Publishing]]:
    """Publish with FastStream, which has one channel for all that it publishes."""
    broker = protect(RabbitBroker(url), signer=SIGNER)
    exchange = RabbitExchange(name, declare=False, robust=False)
    with closing(LoopThread()) as thread:
        thread.call(broker.start())
        yield (
            in_loop(thread, lambda body: broker.publish(body, name, exchange)),
            in_loop(thread, lambda body: broker.publish(body, name)),
        )
        thread.call(broker.stop())


EXCHANGING: dict[str, tuple[Exchanging, int]] = {
    "aio-pika": (by_aio_pika, BESIDE), "pika": (by_pika, BESIDE), "faststream": (by_faststream, 1),
}  # fmt: skip
"""With how many messages meet the fault at once: of many, aiormq's own ``basic_publish`` writes some after the
end of the channel, and RabbitMQ ends the connection for that."""


@pytest.mark.parametrize(("exchanging", "faults"), EXCHANGING.values(), ids=EXCHANGING)
def test_an_exchange_goes_and_comes(
    exchanging: Exchanging, faults: int, rabbitmq: RabbitMQ, queue: str
) -> None:
    """What was not confirmed when a channel ended raises; what is published next works, where its exchange is."""

    def make() -> None:
        channel.exchange_declare(queue, "direct")
        channel.queue_bind(queue, queue, queue)

    def confirmed(publish: Publishing, messages: int = BESIDE) -> int:
        return publish([b"small"] * messages).count(None)

    declare(rabbitmq.url, queue)
    with connect(rabbitmq.url) as connection:
        channel = connection.channel()
        make()
        with exchanging(rabbitmq.url, queue) as (there, beside):
            assert confirmed(there) == confirmed(beside) == BESIDE
            channel.exchange_delete(queue)
            assert confirmed(there, faults) == 0
            assert confirmed(beside) == BESIDE
            assert confirmed(there, faults) == 0
            make()
            assert confirmed(there) == confirmed(beside) == BESIDE
    assert count(rabbitmq.url, queue) == 5 * BESIDE


def test_a_channel_that_needs_its_exchange(rabbitmq: RabbitMQ, queue: str) -> None:
    """An exchange of `get_exchange` that is gone keeps its channel closed: each publish says so at once."""
    declare(rabbitmq.url, queue)
    with connect(rabbitmq.url) as connection:
        channel = connection.channel()
        channel.exchange_declare(queue, "direct")
        with by_aio_pika(rabbitmq.url, queue, ensure=True) as (there, beside):
            channel.exchange_delete(queue)
            there([b"small"])
            outcomes = beside([b"small"] * BESIDE)
            assert all(f"no exchange '{queue}'" in str(each) for each in outcomes)
            channel.exchange_declare(queue, "direct")
            wait_until(lambda: beside([b"small"]) == [None])
    assert count(rabbitmq.url, queue) == 1


@pytest.mark.parametrize("name", ["aio-pika", "pika", "faststream"])
def test_a_queue_gets_them_in_their_order(
    name: str, rabbitmq: RabbitMQ, queue: str
) -> None:
    """Of messages that one producer publishes together none overtakes another, also as its channel opens."""
    bodies = [b"%d" % number for number in range(1000)]
    with RABBITMQ[name](rabbitmq.url, queue, SIGNER) as publish:
        assert publish(bodies) == [None] * len(bodies)
    with connect(rabbitmq.url) as connection:
        channel = connection.channel()
        got = [channel.basic_get(queue, auto_ack=True)[2] for _ in bodies]
    assert got == bodies


@pytest.mark.parametrize("producing", KAFKA.values(), ids=KAFKA)
def test_a_partition_gets_them_in_their_order(producing: Producing, kafka: Kafka) -> None:
    """Of records that one producer publishes together none overtakes another of its partition."""
    bodies = [b"%d" % number for number in range(1000)]
    with closing(KafkaStage(kafka.url)) as stage:
        with producing(kafka.url, stage.topic, SIGNER) as publish:
            assert publish(bodies) == [None] * len(bodies)
        with closing(stage.consumer()) as client:
            assert [next(client).value for _ in bodies] == bodies
