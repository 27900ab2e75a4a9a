"""Dead letters and offsets in one Kafka transaction: the calls of confluent-kafka."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from mqauth.brokers.confluent.client import check_producer, error_of, has_topic, membership_of
from mqauth.brokers.confluent.confirmed import Report, TooLargeError, sent
from mqauth.brokers.confluent.offsets import Offsets
from mqauth.brokers.confluent.positions import native
from mqauth.brokers.confluent.translate import carries
from mqauth.brokers.log.poller import LogPoller
from mqauth.brokers.log.transaction import TransactionalLetters, TransactionContent
from mqauth.errors import require

_FENCED: Final = frozenset((KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH))
_LONGEST_MS: Final = 60_000
"""librdkafka's default of ``transaction.timeout.ms``."""


class TransactionalDeadLetters(TransactionalLetters):
    """Dead letters that are written if and only if the offsets of their records are committed.

    Give it to a ``Consumer`` or ``AIOConsumer`` of mqauth, and read the dead letters with
    ``"isolation.level": "read_committed"``, the default. Once audited, a letter waits in memory; with the next
    commit it is written, in order and in the first of its forms that fits, together with the offsets. A
    transaction that fails is made again with the same letters; meanwhile their partitions are paused, and nothing
    of them is committed.

    Args:
        make_client: makes a ``confluent_kafka.Producer`` with ``transactional.id``, for these letters alone;
            called at once, and after each failed transaction. The id is one for each running consumer and the
            same after its restart: a second instance with it shuts the first one out. Its clients are closed in
            the end.
        topic: the dead-letter topic; let its ``max.message.bytes`` be above the source's, and the client's
            ``message.max.bytes`` too.
        timeout: seconds to wait for the broker to take the letters; longer ones are shown as stalled.
        config: the settings that the clients are made with, which they do not tell.

    Raises:
        ConfigurationError: there is no ``transactional.id``, or a setting is out of its limits.
    """

    carries = staticmethod(carries)
    too_large = TooLargeError

    def __init__(
        self,
        make_client: Callable[[], confluent_kafka.Producer],
        topic: str,
        timeout: float = 30,
        *,
        config: Mapping[str, Any],
    ) -> None:
        self._config = config
        super().__init__(make_client, topic, timeout)
        self.longest = float(config.get("transaction.timeout.ms", _LONGEST_MS)) / 1000

    def checked(self, client: Any) -> Any:
        """Return a new client, whose settings are as they must be.

        Raises:
            ConfigurationError: it has no ``transactional.id``, or is of another kind.
        """
        config = check_producer(client, self._config)
        require(config.get("transactional.id"), "transactional dead letters need a Producer with transactional.id")
        return client

    def start(self) -> None:
        """Start the client; a transaction that its predecessor left open is ended first."""
        self.client.init_transactions(self.timeout)

    def send(self, record: Mapping[str, Any]) -> Report:
        """Give a record to the client."""
        return sent(self.client, self.name, record)

    def exists(self) -> bool:
        """Return whether the broker has the topic, as far as it tells."""
        return has_topic(self.client, self.name)

    def send_offsets(self, content: TransactionContent) -> None:
        """Add the offsets to the transaction."""
        offsets = [native(place, *commit) for place, commit in content.offsets.items()]
        self.client.send_offsets_to_transaction(offsets, content.group, self.timeout)

    def fenced(self, error: BaseException) -> bool:
        """Return whether another producer has taken over the id, or the broker has ended a long transaction."""
        return isinstance(error, KafkaException) and error_of(error).code() in _FENCED

    def close_client(self, client: Any) -> None:
        """Close a client; what it has not sent is dropped, else it would be waited for."""
        # One that was fenced raises SystemError at its close.
        with suppress(KafkaException, SystemError):
            client.purge()
            # Before 2.13 a client has no close, and ends with its last reference.
            getattr(client, "close", client.flush)()


class TransactionCalls(Offsets, LogPoller):
    """The calls of a ``confluent_kafka.Consumer`` that transactions need."""

    def membership(self) -> Any:
        """Return the membership to commit by, ``None`` during a rebalance."""
        # Partitions assigned by hand have no generation either, and no member.
        if self._client.memberid() and membership_of(self._client).generation < 0:
            return None
        return self._client.consumer_group_metadata()
