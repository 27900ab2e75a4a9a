"""Dead letters and audit records on Kafka, each durable once the broker has confirmed it.

``TransactionalDeadLetters`` makes the calls for dead letters and offsets in one Kafka transaction. kafka-python
waits in a transaction without a time limit, and after a failed one it keeps offsets that it would add to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from kafka import KafkaProducer, OffsetAndMetadata
from kafka.errors import KafkaError, MessageSizeTooLargeError, ProducerFencedError

from mqauth.brokers.kafka import repair as kafka_repair
from mqauth.brokers.kafka.client import has_topic, producer_settings
from mqauth.brokers.log.confirmed import (
    MAX_BLOCK,
    ConfirmingClient,
    TopicAudit,
    TopicLetters,
)
from mqauth.brokers.log.transaction import TransactionalLetters
from mqauth.delivery.start import Committed
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
    config["max_block_ms"] = min(
        config["max_block_ms"], int(min(timeout, MAX_BLOCK) * 1000)
    )
    # In a list: kafka-python's future could be awaited, and a synchronous flow refuses what could.
    return ConfirmingClient(
        send=lambda topic, **record: [client.send(topic, **record)],
        wait=lambda sent, seconds: sent[0].get(timeout=seconds),
        over=lambda sent: sent[0].is_done,
        has=partial(has_topic, client),
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
        super().__init__(
            client, confirming(client, timeout), topic, timeout, oversize_letters
        )


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


class TransactionalDeadLetters(TransactionalLetters):
    """Dead letters that are written if and only if the offsets of their records are committed.

    Give it to a ``kafka.Consumer`` whose client has ``isolation_level="read_committed"``, and read the dead
    letters with that too. Once audited, a letter waits in memory; with the next commit it is written, in order and
    in the first of its forms that fits, together with the offsets. A transaction that fails is made again with
    the same letters; meanwhile their partitions are paused, and nothing of them is committed.

    Args:
        make_client: makes a connected ``KafkaProducer(transactional_id=...)`` for these letters alone; called at
            once, and after each failed transaction. The id is one for each running consumer and the same after
            its restart: a second instance with it shuts the first one out. Its clients are closed in the end.
        topic: the dead-letter topic; its ``max.message.bytes`` should be above the source's.
        timeout: seconds to wait for the broker to take the letters; longer ones are shown as stalled.

    Raises:
        ConfigurationError: the client has no ``transactional_id``, or a setting is out of its limits.
    """

    too_large = MessageSizeTooLargeError

    def __init__(
        self, make_client: Callable[[], KafkaProducer], topic: str, timeout: float = 30
    ) -> None:
        super().__init__(make_client, topic, timeout)
        self.longest = self.client.config["transaction_timeout_ms"] / 1000

    def checked(self, client: Any) -> Any:
        """Return a new client, with the settings that it must have.

        Raises:
            ConfigurationError: it has no ``transactional_id``, or a serializer.
        """
        config = producer_settings(client)
        require(
            config["transactional_id"],
            "transactional dead letters need a KafkaProducer(transactional_id=...)",
        )
        config["max_block_ms"] = min(
            config["max_block_ms"], int(min(self.timeout, MAX_BLOCK) * 1000)
        )
        return client

    def exists(self) -> bool | None:
        """Return whether the broker has the topic, as far as it tells."""
        return has_topic(self.client, self.name)

    def send_offsets(self, offsets: Mapping[Any, Committed], group: Any) -> None:
        """Add offsets to the transaction, by partition."""
        natives = {
            place: OffsetAndMetadata(*commit, -1) for place, commit in offsets.items()
        }
        self.client.send_offsets_to_transaction(natives, group)

    def fenced(self, _error: BaseException) -> bool:
        """Return whether another producer has taken over the id, or the broker has ended a long transaction."""
        manager = getattr(self.client, "_transaction_manager", None)
        return isinstance(getattr(manager, "last_error", None), ProducerFencedError)

    def close_client(self, client: Any) -> None:
        """Close a client within seconds, whatever its state."""
        kafka_repair.close_producer(client)
