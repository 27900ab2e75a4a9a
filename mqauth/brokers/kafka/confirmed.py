"""Dead letters and audit records on Kafka, each durable once the broker has confirmed it."""

from __future__ import annotations

from functools import partial
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError

from mqauth.brokers.kafka.client import has_topic, producer_settings
from mqauth.brokers.kafka.translate import carries
from mqauth.brokers.log.confirmed import MAX_BLOCK, ConfirmingClient, TopicAudit, TopicLetters
from mqauth.errors import require
from mqauth.letters.dead_letter import Oversize


def confirming(client: Any, timeout: float) -> ConfirmingClient:
    """Return the calls of a ``KafkaProducer`` for confirmed records, and lower its ``max_block_ms`` to 5 s.

    Raises:
        ConfigurationError: it does not wait for all replicas, is idempotent, or serializes.
    """
    config = producer_settings(client)
    # One record that the broker refuses makes an idempotent producer of kafka-python fail for good (decision 11).
    require(
        not config["enable_idempotence"] and config["acks"] in (-1, "all"),
        'confirms need a KafkaProducer of their own with acks="all" and enable_idempotence=False',
    )
    config["max_block_ms"] = min(config["max_block_ms"], int(min(timeout, MAX_BLOCK) * 1000))
    # In a list: kafka-python's future could be awaited, and a synchronous flow refuses what could.
    return ConfirmingClient(
        send=lambda topic, **record: [client.send(topic, **record)],
        wait=lambda sent, seconds: sent[0].get(timeout=seconds),
        over=lambda sent: sent[0].is_done,
        has=partial(has_topic, client),
        carries=carries,
        too_large=MessageSizeTooLargeError,
        failed=(KafkaError, ValueError, TypeError, OSError),
    )


class DeadLetters(TopicLetters):
    """Sends dead letters to one topic and waits for the broker's confirm.

    Args:
        client: a ``KafkaProducer(acks="all", enable_idempotence=False)`` for dead letters alone: one letter that
            the broker refuses makes an idempotent client fail for good. Its ``max_block_ms`` is lowered to 5 s at
            most. Give it ``allow_auto_create_topics=False`` unless the broker may create the topic.
        topic: the dead-letter topic; its ``max.message.bytes`` should be above the source's.
        timeout: seconds to wait for the confirm.
        oversize_letters: a message that fits in no other form is dead-lettered by ``"reference"``
            (coordinates, digest, sizes) or deferred, ``"stop"``.

    Raises:
        ConfigurationError: the client is set up otherwise, or a setting is unknown.
    """

    def __init__(
        self,
        client: KafkaProducer,
        topic: str,
        timeout: float = 30,
        *,
        oversize_letters: Oversize = "reference",
    ) -> None:
        super().__init__(client, confirming(client, timeout), topic, timeout, oversize_letters)


class AuditTopic(TopicAudit):
    """An audit sink that sends each record as JSON, keyed by instance, and waits for the broker's confirm.

    The records have no ``prev`` and ``hash``: only the audit file is chained. Those of one instance are on one
    partition, in order. A topic with ``cleanup.policy=compact`` would lose all but the last of them.

    Args:
        client: a ``KafkaProducer(acks="all", enable_idempotence=False, allow_auto_create_topics=False)``, as for
            ``DeadLetters``, whose client may be used. Its ``max_block_ms`` is lowered to 5 s at most.
        topic: the audit topic.
        timeout: seconds to wait for the confirm.

    Raises:
        ConfigurationError: the client is set up otherwise, or a setting is wrong.
    """

    def __init__(self, client: KafkaProducer, topic: str, *, timeout: float = 30) -> None:
        super().__init__(client, confirming(client, timeout), topic, timeout)
