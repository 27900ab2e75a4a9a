"""Dead letters and offsets in one Kafka transaction: the calls of kafka-python.

kafka-python waits in a transaction without a time limit, and after a failed one it keeps offsets that it would add
to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kafka import KafkaProducer, OffsetAndMetadata
from kafka.errors import MessageSizeTooLargeError, ProducerFencedError

from mqauth.brokers.kafka import repair as kafka_repair
from mqauth.brokers.kafka.client import has_topic, producer_settings
from mqauth.brokers.kafka.translate import carries
from mqauth.brokers.log.confirmed import MAX_BLOCK
from mqauth.brokers.log.transaction import TransactionalLetters, TransactionContent
from mqauth.errors import require


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

    carries = staticmethod(carries)
    too_large = MessageSizeTooLargeError

    def __init__(self, make_client: Callable[[], KafkaProducer], topic: str, timeout: float = 30) -> None:
        super().__init__(make_client, topic, timeout)
        self.longest = self.client.config["transaction_timeout_ms"] / 1000

    def checked(self, client: Any) -> Any:
        """Return a new client, with the settings that it must have.

        Raises:
            ConfigurationError: it has no ``transactional_id``, or a serializer.
        """
        config = producer_settings(client)
        require(
            config["transactional_id"], "transactional dead letters need a KafkaProducer(transactional_id=...)"
        )
        config["max_block_ms"] = min(config["max_block_ms"], int(min(self.timeout, MAX_BLOCK) * 1000))
        return client

    def exists(self) -> bool | None:
        """Return whether the broker has the topic, as far as it tells."""
        return has_topic(self.client, self.name)

    def send_offsets(self, content: TransactionContent) -> None:
        """Add the offsets to the transaction."""
        offsets = {place: OffsetAndMetadata(*commit, -1) for place, commit in content.offsets.items()}
        self.client.send_offsets_to_transaction(offsets, content.group)

    def fenced(self, _error: BaseException) -> bool:
        """Return whether another producer has taken over the id, or the broker has ended a long transaction."""
        manager = getattr(self.client, "_transaction_manager", None)
        return isinstance(getattr(manager, "last_error", None), ProducerFencedError)

    def close_client(self, client: Any) -> None:
        """Close a client within seconds, whatever its state."""
        kafka_repair.close_producer(client)
