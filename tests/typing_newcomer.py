"""A newcomer's first code, as README and pages have it: two type checkers read it strictly, nobody runs it."""

from __future__ import annotations

from typing import Any

import aio_pika
import aiokafka
import confluent_kafka
import pika
from faststream.rabbit import RabbitBroker
from pydantic import BaseModel

import mqauth
from mqauth import testing
from mqauth.brokers import aiokafka as aiokafka_wrapper
from mqauth.brokers import confluent, kafka, rabbitmq
from mqauth.brokers import pika as pika_wrapper
from mqauth.integrations.faststream import VerifiedMessage, protect


class Order(BaseModel):
    """What the body of a message is."""

    number: int


signer = mqauth.Signer(
    key=mqauth.ActiveKey("keys"),
    issuer="https://auth.example",
    subject="orders-api",
    audience="billing",
)
guard = mqauth.Pipeline(
    verifier=mqauth.Verifier(
        keys={"https://auth.example": mqauth.JWKS("https://auth.example/jwks.json")},
        audience="billing",
    ),
    policy=mqauth.Allow({"orders-api": ["rabbitmq:/orders"]}),
    replay=mqauth.MemoryReplayStore(),
    audit=mqauth.AuditFile("audit.jsonl"),
)


async def handle(verified: mqauth.Verified) -> None:
    """Handle bytes."""
    print(verified.subject, verified.payload.decode(), verified.header("tenant"))


async def old_handle(message: mqauth.Unverified) -> None:
    """Handle what nothing proves."""
    print(message.would.code if message.would else "", message.payload.decode())


async def handle_order(verified: mqauth.Verified[Order]) -> None:
    """Handle what was decoded."""
    print(verified.value.number)


def take(verified: mqauth.Verified[Order]) -> None:
    """Handle it without an event loop."""
    print(verified.value.number + 1)


def decode(body: bytes, verified: mqauth.Verified) -> Order:
    """Decode a body by one of its headers."""
    print(verified.header("schema"))
    return Order.model_validate_json(body)


async def on_rabbitmq(url: str) -> None:
    """Produce and consume with aio-pika."""
    connection = await aio_pika.connect_robust(url)
    channel = await connection.channel()
    queue = await rabbitmq.declare_source(channel, "orders")
    await rabbitmq.declare_dead_letters(channel, "orders.dead")
    letters = rabbitmq.DeadLetters(channel, "orders.dead")
    await rabbitmq.Producer(channel.default_exchange, signer).publish(
        aio_pika.Message(b"1"), "orders"
    )
    await rabbitmq.Consumer(queue, guard, handle, dead_letters=letters).run()
    await rabbitmq.Consumer(
        queue, guard, handle_order, dead_letters=letters, decode=Order.model_validate_json
    ).run()


def on_pika(
    connection: pika.BlockingConnection, letters: pika_wrapper.DeadLetters
) -> None:
    """Consume with pika."""
    pika_wrapper.Consumer(
        connection, "orders", guard, take, dead_letters=letters, decode=decode
    ).run()


def on_kafka(client: Any, letters: kafka.DeadLetters) -> None:
    """Consume with kafka-python."""
    kafka.Consumer(
        client, guard, take, dead_letters=letters, decode=Order.model_validate_json
    ).run()


def on_confluent(
    client: confluent_kafka.Consumer,
    config: dict[str, Any],
    letters: confluent.DeadLetters,
) -> None:
    """Consume with confluent-kafka."""
    confluent.Consumer(
        client, guard, take, config=config, topics=["orders"], dead_letters=letters,
        decode=Order.model_validate_json,
    ).run()  # fmt: skip


async def on_aiokafka(
    client: aiokafka.AIOKafkaConsumer, letters: aiokafka_wrapper.DeadLetters
) -> None:
    """Consume with aiokafka."""
    await aiokafka_wrapper.Consumer(
        client,
        guard,
        handle_order,
        dead_letters=letters,
        decode=Order.model_validate_json,
    ).run()


broker = protect(RabbitBroker(), guard=guard, signer=signer)


@broker.subscriber("orders")
async def on_faststream(order: Order, verified: VerifiedMessage) -> None:
    """Handle in a FastStream service."""
    print(order.number, verified.subject)


def test_of_a_handler() -> None:
    """Call a handler in a unit test."""
    take(testing.verified(body=b'{"number": 1}', value=Order(number=1)))
