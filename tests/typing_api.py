"""The user's view, as the architecture page shows it: type-checked by ``test_typing_api``, never run."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, assert_type

import aio_pika
import confluent_kafka
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractQueue
from faststream.rabbit import RabbitBroker
from kafka import KafkaConsumer, KafkaProducer

import mqauth
from mqauth.brokers import confluent, kafka, rabbitmq
from mqauth.integrations.faststream import VerifiedMessage, protect
from mqauth.replay.rules import ClaimRequest, ClaimStatus

signer = mqauth.Signer(
    key=mqauth.Key.load("orders.pem"), issuer="https://auth.example", subject="orders-api", audience="billing",
    lifetime=60,
)  # fmt: skip
guard = mqauth.Pipeline(
    verifier=mqauth.Verifier(
        keys={"https://auth.example": mqauth.JWKS("https://auth.example/jwks.json")},
        audience="billing",
    ),
    policy=mqauth.Allow({"orders-api": ["rabbitmq:shop/orders.*"]}),
    replay=mqauth.MemoryReplayStore(),
    audit=mqauth.AuditFile("audit.jsonl"),
)


async def handler(verified: mqauth.Verified) -> None:
    """Handle what was verified."""
    assert_type(verified.body, bytes | None)
    assert_type(verified.subject, str)
    assert_type(verified.claims.exp, int)


def handle(verified: mqauth.Verified) -> None:
    """Handle without an event loop."""
    if verified.body == b"":
        raise mqauth.RetryLater("empty")


async def on_rabbitmq(
    channel: AbstractChannel, exchange: AbstractExchange, queue: AbstractQueue
) -> None:
    """Wrap a connected exchange and queue, one line each."""
    producer = rabbitmq.Producer(exchange, signer)
    await producer.publish(aio_pika.Message(b"..."), routing_key="orders.created")
    consumer = rabbitmq.Consumer(
        queue, guard, handler, dead_letters=rabbitmq.DeadLetters(channel, "orders.dead")
    )
    await consumer.run()


def on_kafka(client: KafkaConsumer, main: KafkaProducer, separate: KafkaProducer) -> None:
    """Wrap connected clients, one line each."""
    producer = kafka.Producer(main, signer)
    producer.send("orders", value=b"...", key=b"42")
    kafka.Consumer(
        client, guard, handle, dead_letters=kafka.DeadLetters(separate, "orders.dead")
    ).run()


def on_faststream(dead_letters: rabbitmq.DeadLetters) -> None:
    """Protect a broker; it keeps its type, and a handler's parameter is a ``Verified``."""
    broker = protect(
        RabbitBroker(), guard=guard, dead_letters=dead_letters, signer=signer
    )
    assert_type(broker, RabbitBroker)

    @broker.subscriber("orders")
    async def take(order: dict[str, int], verified: VerifiedMessage) -> str:
        assert_type(verified, mqauth.Verified)
        return verified.subject


def on_confluent(
    client: confluent_kafka.Consumer,
    main: confluent_kafka.Producer,
    config: dict[str, Any],
) -> None:
    """Wrap connected clients, one line each."""
    producer = confluent.Producer(main, signer, config=config)
    producer.produce("orders", b"...", b"42")
    letters = confluent.DeadLetters(main, "orders.dead", config=config)
    confluent.Consumer(
        client, guard, handle, config=config, topics=["orders"], dead_letters=letters
    ).run()


def old_handle(message: mqauth.Unverified) -> None:
    """Handle what nothing proved: it has a body, and nobody to authorise."""
    assert_type(message.body, bytes | None)
    print(message.subject)  # type: ignore[attr-defined]
    message.reply(b"")  # type: ignore[attr-defined]
    handle(message)  # type: ignore[arg-type]


def both(
    client: KafkaConsumer, letters: kafka.DeadLetters, verified: mqauth.Verified
) -> None:
    """Give each handler its own type: exchanged, they do not type-check."""
    kafka.Consumer(client, guard, handle, dead_letters=letters, unverified=old_handle)
    kafka.Consumer(client, guard, handle, dead_letters=letters, unverified=handle)  # type: ignore[arg-type]
    kafka.Consumer(client, guard, old_handle, dead_letters=letters)  # type: ignore[arg-type]
    old_handle(verified)  # type: ignore[arg-type]


class SyncStore:
    """A replay store of one's own, synchronous."""

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Say that all is fresh."""
        return ClaimStatus.FRESH

    def confirm(self, request: ClaimRequest, /) -> None:
        """Do nothing."""

    def release(self, request: ClaimRequest, /) -> None:
        """Do nothing."""


class AsyncStore:
    """The same, asynchronous."""

    async def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Say that all is fresh."""
        return ClaimStatus.FRESH

    async def confirm(self, request: ClaimRequest, /) -> None:
        """Do nothing."""

    async def release(self, request: ClaimRequest, /) -> None:
        """Do nothing."""


class Rules:
    """A policy of one's own."""

    version = "1"

    def decide(self, verified: mqauth.Verified, /) -> mqauth.Decision:
        """Allow all of one subject."""
        return (
            mqauth.Decision.ALLOW
            if verified.subject == "orders-api"
            else mqauth.Decision.DENY
        )


class Vault:
    """A signing key that stays where it is."""

    kid = "vault-1"
    algorithm = "ES256"

    def sign(self, data: bytes, /) -> bytes:
        """Ask somebody else."""
        return data


def plugged(verifier: mqauth.Verifier) -> list[mqauth.Pipeline]:
    """Plug in classes that import nothing of ours but data, of either colour."""
    mqauth.Signer(key=Vault(), issuer="i", subject="s", audience="a")
    return [
        mqauth.Pipeline(verifier=verifier, policy=Rules(), replay=store)
        for store in (SyncStore(), AsyncStore())
    ]


def replied(verified: mqauth.Verified) -> None:
    """Answer a message."""
    assert_type(verified.reply(b"..."), Awaitable[Any] | Any)


def refused(store: object, message: mqauth.Message) -> None:
    """What must not type-check: each line is an error that mypy has to see."""
    mqauth.Pipeline(verifier=guard.verifier, policy=guard.policy, replay=store)  # type: ignore[arg-type]
    mqauth.Pipeline(verifier=guard.verifier, replay=SyncStore())  # type: ignore[call-arg]
    mqauth.Verifier(keys={})  # type: ignore[call-arg]
    handle(message)  # type: ignore[arg-type]
    mqauth.Issuer(keys=mqauth.KeySet([]), subjects={"*": "orders-api"})  # type: ignore[dict-item]


def misspelt(
    queue: AbstractQueue, client: KafkaConsumer, letters: rabbitmq.DeadLetters
) -> None:
    """An option that no consumer has, and one of the other broker."""
    rabbitmq.Consumer(queue, guard, handler, dead_letters=letters, prefech=1)  # type: ignore[call-arg]
    kafka.Consumer(client, guard, handle, dead_letters=letters, prefetch=1)  # type: ignore[call-arg]
