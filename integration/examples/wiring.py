"""What the three services share: where the brokers are, mqauth's settings, and what they print."""

from __future__ import annotations

import importlib
import os
from typing import Any

import mqauth
from mqauth.brokers import kafka, rabbitmq

SHOP = os.environ["SHOP"]
"""Begins the name of every queue and topic."""
RABBITMQ = os.environ["SHOP_RABBITMQ"]
KAFKA = os.environ["SHOP_KAFKA"]
settings = mqauth.load(os.environ["SHOP_CONFIG"])


def handled(verified: mqauth.Verified) -> None:
    """Print what a handler got."""
    print("handled", verified.subject, (verified.body or b"").decode(), flush=True)


async def ready() -> None:
    """Print that the service consumes."""
    print("ready", flush=True)


async def rabbitmq_letters(broker: Any) -> rabbitmq.DeadLetters:
    """Return the dead letters of a service on RabbitMQ, their queue declared."""
    found = rabbitmq.DeadLetters(
        await (await broker.connect()).channel(), settings.dead_letters_name or ""
    )
    await found.declare()
    return found


def kafka_letters() -> kafka.DeadLetters:
    """Return the dead letters of a service on Kafka."""
    client: Any = importlib.import_module("kafka")  # untyped
    producer = client.KafkaProducer(
        bootstrap_servers=KAFKA, acks="all", enable_idempotence=False
    )
    return kafka.DeadLetters(producer, settings.dead_letters_name or "")
