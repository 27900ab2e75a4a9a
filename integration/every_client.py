"""A consumer of mqauth on each client, in one form, for tests of what every client promises."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import aio_pika
import kafka as kafka_python
from confluent_kafka import Consumer as ConfluentConsumer

from mqauth import Pipeline
from mqauth.brokers import aiokafka, confluent, kafka, pika, rabbitmq
from mqauth.brokers.event_loop import on_thread, on_threads
from mqauth.integrations.faststream import (
    UnverifiedMessage,
    VerifiedMessage,
    protect,
    unverified,
)
from mqauth.signer import Signer
from mqauth.testing.loop_thread import LoopThread
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_aiokafka import AiokafkaClients
from mqauth.testing.stage_confluent import ConfluentClients
from mqauth.testing.stage_kafka import servers
from mqauth.testing.stage_pika import connect

_KAFKA: Any = kafka_python  # its classes have no types
LONG: Final = 300.0
"""Seconds: longer than any client of ours waits for a broker that is silent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What a consumer is made of, whatever its client.

    Args:
        url: of the broker.
        source: the queue or topic.
        dead: the dead-letter queue or topic.
        scope: the consumer group; on RabbitMQ the queue.
        guard: the pipeline.
        handler: a plain function that takes a ``Verified``.
        old: one that takes an ``Unverified``, or a table of them by kind, or ``None``.
        grace: seconds that running handlers may take at a stop.
        decode: makes the value of a body; FastStream's own decoders do that.
        letters: another sink than the usual one, of FastStream's brokers and of Kafka's clients.
        replies: signs the answers of handlers; not of RabbitMQ's clients, nor of FastStream's.
        client: settings of a consuming client of Kafka, with ``_`` for dots.
        consumer: more settings of mqauth's consumer.
    """

    url: str
    source: str
    dead: str
    scope: str
    guard: Pipeline
    handler: Callable[[Any], Any]
    old: Callable[[Any], Any] | Mapping[str, Callable[[Any], Any]] | None = None
    grace: float = 30.0
    decode: Callable[..., Any] | None = None
    letters: Any = None
    replies: Signer | None = None
    client: Mapping[str, Any] = field(default_factory=dict)
    consumer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A consumer that runs.

    Args:
        stop: stops it, and returns once it has stopped.
        health: returns how it is doing; ``None`` where a framework owns it.
        read_on: returns the value of the record that a client of Kafka reads next, once its consumer has stopped.
    """

    stop: Callable[[], Any]
    health: Callable[[], Any] | None = None
    read_on: Callable[[], bytes] | None = None


Consuming = Callable[[Wiring], AbstractContextManager[Running]]
"""Consumes within a ``with`` block, then stops in order; raises what kept the consumer from starting."""


def _on_thread(consumer: Any, read_on: Any = None) -> Running:
    return Running(
        stop=lambda: consumer.__exit__(None, None, None),
        health=consumer.health,
        read_on=read_on,
    )


def _in_loop(thread: LoopThread, consumer: Any, read_on: Any = None) -> Running:
    return Running(
        stop=lambda: thread.call(consumer.stop(), LONG),
        health=consumer.health,
        read_on=read_on,
    )


# RabbitMQ


@contextmanager
def by_aio_pika(wiring: Wiring) -> Iterator[Running]:
    """Consume with aio-pika."""

    async def consumer() -> rabbitmq.Consumer:
        queue = await (await consuming.channel()).get_queue(wiring.source)
        letters = rabbitmq.DeadLetters(await publishing.channel(), wiring.dead)
        return rabbitmq.Consumer(
            queue, wiring.guard, on_thread(wiring.handler), dead_letters=letters, prefetch=100,
            unverified=on_threads(wiring.old), grace=wiring.grace, decode=wiring.decode,
        )  # fmt: skip

    with closing(LoopThread()) as thread:
        consuming = thread.call(
            aio_pika.connect_robust(wiring.url, reconnect_interval=0.2)
        )
        publishing = thread.call(
            aio_pika.connect_robust(wiring.url, reconnect_interval=0.2)
        )
        try:
            made = thread.call(consumer())
            thread.call(made.__aenter__())
            yield _in_loop(thread, made)
            thread.call(made.__aexit__(None, None, None))
        finally:
            thread.call(consuming.close())
            thread.call(publishing.close())


@contextmanager
def by_pika(wiring: Wiring) -> Iterator[Running]:
    """Consume with pika."""
    with connect(wiring.url) as consuming, connect(wiring.url) as publishing:
        letters = pika.DeadLetters(publishing, wiring.dead)
        with pika.Consumer(
            consuming, wiring.source, wiring.guard, wiring.handler, dead_letters=letters, unverified=wiring.old,
            grace=wiring.grace, decode=wiring.decode,
        ) as consumer:  # fmt: skip
            # The thread that runs it raises what kept it from starting once the block ends.
            wait_until(lambda: consumer.failed or consumer.health().consuming)
            if not consumer.failed:
                yield _on_thread(consumer)
                return
    raise AssertionError("unreachable")


# Kafka


@contextmanager
def by_kafka_python(wiring: Wiring) -> Iterator[Running]:
    """Consume with kafka-python."""
    known = {"bootstrap_servers": servers(wiring.url), "allow_auto_create_topics": False}
    client = _KAFKA.KafkaConsumer(
        wiring.source, group_id=wiring.scope, enable_auto_commit=False, auto_offset_reset="earliest", **known,
        **wiring.client,
    )  # fmt: skip
    letters = _KAFKA.KafkaProducer(acks="all", enable_idempotence=False, **known)
    sink = wiring.letters or kafka.DeadLetters(letters, wiring.dead)
    replies = kafka.Producer(letters, wiring.replies) if wiring.replies else None
    with (
        closing(client),
        closing(letters),
        kafka.Consumer(
            client, wiring.guard, wiring.handler, dead_letters=sink, unverified=wiring.old, grace=wiring.grace,
            decode=wiring.decode, replies=replies, **wiring.consumer,
        ) as consumer,
    ):  # fmt: skip
        yield _on_thread(consumer, lambda: next(client).value)


@contextmanager
def by_confluent(wiring: Wiring) -> Iterator[Running]:
    """Consume with confluent-kafka's ``Consumer``."""
    clients = ConfluentClients(servers(wiring.url), wiring.scope)
    letters = clients.letters(wiring.dead)
    settings = clients.consumer_settings(**wiring.client)
    client = ConfluentConsumer(settings)
    with (
        closing(client),
        confluent.Consumer(
            client, wiring.guard, wiring.handler, topics=[wiring.source], dead_letters=wiring.letters or letters,
            config=settings, unverified=wiring.old, grace=wiring.grace, decode=wiring.decode,
            replies=_answers(clients, letters, wiring),
        ) as consumer,
    ):  # fmt: skip
        yield _on_thread(consumer, partial(_next_of, client))
    letters.client.flush()


def _next_of(client: ConfluentConsumer) -> bytes:
    """Return the value of the next record."""
    return bytes(client.consume(1, 30.0)[0].value())


def _answers(
    clients: ConfluentClients, letters: Any, wiring: Wiring
) -> confluent.Producer | None:
    """Return what sends signed answers, by the client of the dead letters."""
    if wiring.replies is None:
        return None
    return confluent.Producer(
        letters.client, wiring.replies, config=clients.producer_settings()
    )


@contextmanager
def by_confluent_aio(wiring: Wiring) -> Iterator[Running]:
    """Consume with confluent-kafka's ``AIOConsumer``, which old releases lack."""
    from confluent_kafka.aio import AIOConsumer

    clients = ConfluentClients(servers(wiring.url), wiring.scope)
    letters = clients.letters(wiring.dead)

    async def consumer() -> tuple[Any, confluent.AIOConsumer]:
        settings = clients.consumer_settings(**wiring.client)
        client = AIOConsumer(settings)
        return client, confluent.AIOConsumer(
            client, wiring.guard, on_thread(wiring.handler), topics=[wiring.source],
            dead_letters=wiring.letters or letters, config=settings, unverified=on_threads(wiring.old),
            grace=wiring.grace, decode=wiring.decode, replies=_answers(clients, letters, wiring),
        )  # fmt: skip

    def read_on() -> bytes:
        return bytes(thread.call(client.consume(1, 30.0))[0].value())

    with closing(letters.client), closing(LoopThread()) as thread:
        client, made = thread.call(consumer())
        try:
            thread.call(made.__aenter__())
            yield _in_loop(thread, made, read_on)
            thread.call(made.__aexit__(None, None, None))
        finally:
            thread.call(client.close())


@contextmanager
def by_aiokafka(wiring: Wiring) -> Iterator[Running]:
    """Consume with aiokafka."""
    clients = AiokafkaClients(servers(wiring.url), wiring.scope)

    async def consumer() -> aiokafka.Consumer:
        sink = wiring.letters or aiokafka.DeadLetters(letters, wiring.dead)
        replies = aiokafka.Producer(letters, wiring.replies) if wiring.replies else None
        return aiokafka.Consumer(
            client, wiring.guard, on_thread(wiring.handler), dead_letters=sink, unverified=on_threads(wiring.old),
            grace=wiring.grace, decode=wiring.decode, replies=replies, **wiring.consumer,
        )  # fmt: skip

    with closing(LoopThread()) as thread:
        client = thread.call(clients.consumer(wiring.source, **wiring.client))
        letters = thread.call(clients.producer())
        try:
            made = thread.call(consumer())
            thread.call(made.__aenter__())
            yield _in_loop(thread, made, lambda: thread.call(client.getone()).value)
            thread.call(made.__aexit__(None, None, None))
        finally:
            thread.call(client.stop())
            thread.call(letters.stop())


# FastStream


def by_faststream(package: str) -> Consuming:
    """Return what consumes with FastStream on a client.

    Args:
        package: FastStream's, with the client.
    """

    @contextmanager
    def consuming(wiring: Wiring) -> Iterator[Running]:
        on_kafka = wiring.url.startswith("kafka:")
        client: Any = importlib.import_module(package)
        with closing(LoopThread()) as thread:
            broker = thread.call(_broker(client, wiring, on_kafka=on_kafka))
            with ExitStack() as ending:
                # Its client would go on as a member of the group, while this process lives.
                ending.callback(lambda: thread.call(_left(), LONG))
                stopping = ExitStack()
                ending.callback(stopping.close)
                stopping.callback(lambda: thread.call(broker.stop(), LONG))
                thread.call(broker.start())
                yield Running(stop=stopping.close)

    return consuming


async def _left() -> None:
    """Wait until a stop that was left, since its broker was silent, has come to its end."""
    left = {
        task
        for task in asyncio.all_tasks()
        if getattr(task.get_coro(), "__name__", "") == "stop"
    }
    if left:
        await asyncio.wait(left, timeout=LONG / 2)


async def _broker(client: Any, wiring: Wiring, *, on_kafka: bool) -> Any:
    """Return a protected broker with one subscriber, not started."""
    kind = client.KafkaBroker if on_kafka else client.RabbitBroker
    url = wiring.url.removeprefix("kafka://") if on_kafka else wiring.url
    broker = kind(url, graceful_timeout=min(5, wiring.grace))

    async def in_queue() -> rabbitmq.DeadLetters:
        return rabbitmq.DeadLetters(await (await broker.connect()).channel(), wiring.dead)

    def in_topic() -> kafka.DeadLetters:
        producer = _KAFKA.KafkaProducer(
            bootstrap_servers=servers(wiring.url), acks="all", enable_idempotence=False,
            allow_auto_create_topics=False,
        )  # fmt: skip
        return kafka.DeadLetters(producer, wiring.dead)

    usual = in_topic if on_kafka else in_queue
    protect(broker, guard=wiring.guard, dead_letters=wiring.letters or usual)
    if on_kafka:
        source = broker.subscriber(
            wiring.source, group_id=wiring.scope, auto_offset_reset="earliest"
        )
    else:
        source = broker.subscriber(client.RabbitQueue(wiring.source, declare=False))

    def takes(old: Callable[[Any], Any]) -> Any:
        async def take_unverified(body: Any, message: UnverifiedMessage) -> None:
            old(message)

        return take_unverified

    for kind, old in (
        wiring.old if isinstance(wiring.old, Mapping) else {"*": wiring.old}
    ).items():
        if old is not None:
            source(takes(old), filter=unverified.of(kind))

    @source
    async def take(body: Any, message: VerifiedMessage) -> None:
        await asyncio.to_thread(wiring.handler, message)

    return broker


RABBITMQ: Final[dict[str, Consuming]] = {
    "aio-pika": by_aio_pika, "pika": by_pika, "faststream": by_faststream("faststream.rabbit"),
}  # fmt: skip
"""Every client of RabbitMQ."""
KAFKA: Final[dict[str, Consuming]] = {
    "kafka-python": by_kafka_python, "confluent": by_confluent, "confluent+aio": by_confluent_aio,
    "aiokafka": by_aiokafka, "faststream": by_faststream("faststream.kafka"),
    "faststream-confluent": by_faststream("faststream.confluent"),
}  # fmt: skip
"""Every client of Kafka."""
CLIENTS: Final = {f"rabbitmq {name}": each for name, each in RABBITMQ.items()} | {
    f"kafka {name}": each for name, each in KAFKA.items()
}
"""Every client, by its broker and name."""
