"""A producer of mqauth on each client and framework, in one form, for tests of what every producer promises."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from typing import Any, Final

import aio_pika
import dramatiq
import kafka as kafka_python
from celery import Celery
from confluent_kafka import KafkaException
from confluent_kafka import Producer as ConfluentProducer
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from taskiq.exceptions import SendTaskError
from taskiq.serializers import PickleSerializer
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

from mqauth.brokers import aiokafka, confluent, kafka, pika, rabbitmq
from mqauth.integrations import celery, faststream, taskiq
from mqauth.integrations import dramatiq as dramatiq_tasks
from mqauth.signer import Signer
from mqauth.testing.loop_thread import LoopThread
from mqauth.testing.stage_aiokafka import AiokafkaClients
from mqauth.testing.stage_confluent import ConfluentClients
from mqauth.testing.stage_kafka import servers
from mqauth.testing.stage_pika import connect

_KAFKA: Any = kafka_python  # its classes have no types
PATIENCE: Final = 60.0
"""Seconds that any publish may take."""
Publishing = Callable[[Sequence[bytes]], list[BaseException | None]]
"""Publishes bodies at the same time; returns what was raised for each, ``None`` for what was confirmed."""
Producing = Callable[..., AbstractContextManager[Publishing]]
"""Makes that of a broker's URL, a queue of the default exchange or a topic, a signer, and settings by name."""


def _outcome(confirmed: Callable[[], Any]) -> BaseException | None:
    try:
        confirmed()
    except Exception as error:
        return error
    return None


def in_loop(thread: LoopThread, publish: Callable[[bytes], Any]) -> Publishing:
    """Return what publishes by a coroutine function."""

    async def together(bodies: Sequence[bytes]) -> list[BaseException | None]:
        found = await asyncio.gather(*map(publish, bodies), return_exceptions=True)
        return [each if isinstance(each, BaseException) else None for each in found]

    return lambda bodies: thread.call(together(bodies), PATIENCE)


def _on_threads(publish: Callable[[bytes], Any]) -> Publishing:
    """Return what publishes by a plain function that waits, on eight threads."""

    def together(bodies: Sequence[bytes]) -> list[BaseException | None]:
        with ThreadPoolExecutor(8) as threads:
            return list(
                threads.map(lambda body: _outcome(partial(publish, body)), bodies)
            )

    return together


def by_futures(begin: Callable[[bytes], Any]) -> Publishing:
    """Return what publishes by a function that returns at once a function that waits."""

    def begun(body: bytes) -> Callable[[], Any]:
        try:
            return begin(body)  # type: ignore[no-any-return]
        except Exception as error:
            failed: Future[None] = Future()
            failed.set_exception(error)
            return failed.result

    return lambda bodies: [_outcome(each) for each in [begun(body) for body in bodies]]


# RabbitMQ


def _declare(url: str, queue: str) -> None:
    """Declare a queue, as task queues do with theirs."""
    with connect(url) as connection:
        connection.channel().queue_declare(queue, durable=True)


@contextmanager
def by_aio_pika(
    url: str, queue: str, signer: Signer, **settings: Any
) -> Iterator[Publishing]:
    """Publish with aio-pika."""
    _declare(url, queue)

    async def opened() -> tuple[Any, rabbitmq.Producer]:
        connection = await aio_pika.connect_robust(url)
        exchange = (await connection.channel()).default_exchange
        return connection, rabbitmq.Producer(exchange, signer, **settings)

    with closing(LoopThread()) as thread:
        connection, producer = thread.call(opened())
        yield in_loop(
            thread, lambda body: producer.publish(aio_pika.Message(body), queue)
        )
        thread.call(connection.close())


@contextmanager
def by_pika(
    url: str, queue: str, signer: Signer, **settings: Any
) -> Iterator[Publishing]:
    """Publish with pika."""
    _declare(url, queue)
    with (
        connect(url) as connection,
        pika.Producer(connection, "", signer, **settings) as producer,
    ):
        yield by_futures(
            lambda body: partial(producer.submit(body, queue).result, PATIENCE)
        )


@contextmanager
def by_taskiq(
    url: str, queue: str, signer: Signer, **settings: Any
) -> Iterator[Publishing]:
    """Send taskiq's tasks."""
    exchange = Exchange(queue)
    broker: Any = AioPikaBroker(
        url,
        exchange=exchange,
        task_queues=[Queue(name=queue)],
        dead_letter_queue=Queue(name=f"{queue}.taskiq"),
        delay_queue=Queue(name=f"{queue}.delay"),
    ).with_serializer(PickleSerializer())

    @broker.task(task_name="pack")
    async def pack(body: bytes) -> None:
        pass

    async def send(body: bytes) -> None:
        try:
            await pack.kiq(body)
        except SendTaskError as error:
            # taskiq hides what kept a task from being sent.
            raise error.__cause__ or error from None

    with closing(LoopThread()) as thread:
        taskiq.protect(broker, signer=signer, **settings)
        thread.call(broker.startup())
        yield in_loop(thread, send)
        thread.call(broker.shutdown())


@contextmanager
def by_dramatiq(
    url: str, queue: str, signer: Signer, **settings: Any
) -> Iterator[Publishing]:
    """Send dramatiq's tasks."""
    broker: Any = RabbitmqBroker(url=url, confirm_delivery=True)
    dramatiq_tasks.protect(broker, signer=signer, **settings)

    @dramatiq.actor(broker=broker, queue_name=queue, actor_name="pack")
    def pack(body: str) -> None:
        pass

    with closing(broker):
        yield _on_threads(lambda body: pack.send(body.decode()))


@contextmanager
def by_celery(
    url: str, queue: str, signer: Signer, **settings: Any
) -> Iterator[Publishing]:
    """Send Celery's tasks."""
    app: Any = Celery(broker=url, set_as_current=False)
    app.conf.broker_transport_options = {"confirm_publish": True}
    app.conf.task_create_missing_queues = True
    celery.protect(app, signer=signer, **settings)

    with closing(app):
        yield _on_threads(
            lambda body: app.send_task("pack", (body.decode(),), queue=queue)
        )


# Kafka


@contextmanager
def by_kafka_python(
    url: str, topic: str, signer: Signer, **settings: Any
) -> Iterator[Publishing]:
    """Publish with kafka-python."""
    client = _KAFKA.KafkaProducer(bootstrap_servers=servers(url), acks="all")
    with closing(client):
        producer = kafka.Producer(client, signer, **settings)
        yield by_futures(lambda body: partial(producer.send(topic, body).get, PATIENCE))


@contextmanager
def by_confluent(
    url: str, topic: str, signer: Signer, **settings: Any
) -> Iterator[Publishing]:
    """Publish with confluent-kafka."""
    config = ConfluentClients(servers(url), "").producer_settings()
    producer = confluent.Producer(
        ConfluentProducer(config), signer, config=config, **settings
    )

    def begin(body: bytes) -> Callable[[], None]:
        told: Future[None] = Future()

        def tell(error: Any, _message: Any) -> None:
            if error is None:
                told.set_result(None)
            elif isinstance(error, BaseException):
                told.set_exception(error)
            else:
                told.set_exception(KafkaException(error))

        producer.produce(topic, body, on_delivery=tell)

        def wait() -> None:
            producer.flush(PATIENCE)
            told.result(0)

        return wait

    with closing(producer):
        yield by_futures(begin)


@contextmanager
def by_aiokafka(
    url: str, topic: str, signer: Signer, **settings: Any
) -> Iterator[Publishing]:
    """Publish with aiokafka."""
    with closing(LoopThread()) as thread:
        client = thread.call(AiokafkaClients(servers(url), "").producer())
        producer = aiokafka.Producer(client, signer, **settings)
        yield in_loop(thread, lambda body: producer.send_and_wait(topic, body))
        thread.call(client.stop())


# FastStream


def by_faststream(package: str) -> Producing:
    """Return what publishes with FastStream on a client.

    Args:
        package: FastStream's, with the client.
    """

    @contextmanager
    def producing(
        url: str, place: str, signer: Signer, **settings: Any
    ) -> Iterator[Publishing]:
        client: Any = importlib.import_module(package)
        on_kafka = url.startswith("kafka:")
        if not on_kafka:
            _declare(url, place)
        kind = client.KafkaBroker if on_kafka else client.RabbitBroker
        broker: Any = faststream.protect(
            kind(url.removeprefix("kafka://")), signer=signer, **settings
        )
        with closing(LoopThread()) as thread:
            thread.call(broker.start())
            yield in_loop(thread, lambda body: broker.publish(body, place))
            thread.call(broker.stop())

    return producing


RABBITMQ: Final[dict[str, Producing]] = {
    "aio-pika": by_aio_pika, "pika": by_pika, "faststream": by_faststream("faststream.rabbit"),
    "taskiq": by_taskiq, "dramatiq": by_dramatiq, "celery": by_celery,
}  # fmt: skip
"""Every client and framework of RabbitMQ."""
KAFKA: Final[dict[str, Producing]] = {
    "kafka-python": by_kafka_python, "confluent": by_confluent, "aiokafka": by_aiokafka,
    "faststream": by_faststream("faststream.kafka"), "faststream-confluent": by_faststream("faststream.confluent"),
}  # fmt: skip
"""Every client and framework of Kafka."""
