"""Dead letters and audit records on topics; each call waits until the broker has confirmed the record.

``TransactionalDeadLetters`` makes the calls for dead letters and offsets in one Kafka transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from mqauth.brokers.confluent.client import (
    carries,
    check_producer,
    error_of,
    has_topic,
    name_of,
    waits_for_all,
)
from mqauth.brokers.confluent.positions import native
from mqauth.brokers.log.confirmed import ConfirmingClient, TopicAudit, TopicLetters
from mqauth.brokers.log.transaction import TransactionalLetters
from mqauth.delivery.start import Committed
from mqauth.errors import require
from mqauth.letters.dead_letter import Oversize

ROUND: Final = 0.05
"""Most seconds of one ``poll`` for a report: another thread may have served it."""


class TooLargeError(Exception):
    """A record is too large for the client or the broker."""


class Report:
    """The delivery report of one record, which is waited for by polling.

    Args:
        poll: serves delivery reports, for at most so many seconds.

    Attributes:
        told: whether it was served.
    """

    def __init__(self, poll: Any) -> None:
        self._poll = poll
        self.told = False
        self._error: KafkaError | None = None
        self._message: Any = None

    def tell(self, error: KafkaError | None, message: Any) -> None:
        """Note the report; called by the client."""
        self._error, self._message = error, message
        self.told = True

    def get(self, timeout: float | None = None) -> Any:
        """Return the delivered message, after at most so many seconds.

        Raises:
            TooLargeError: it is too large for the client or the broker.
            KafkaException: it was refused, or the broker has not answered yet.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while not self.told:
            left = ROUND if until is None else min(until - time.monotonic(), ROUND)
            if left <= 0:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            self._poll(left)
        if self._error is None:
            return self._message
        if self._error.code() in (
            KafkaError.MSG_SIZE_TOO_LARGE,
            KafkaError.RECORD_LIST_TOO_LARGE,
        ):
            raise TooLargeError(self._error.name())
        raise KafkaException(self._error)


def confirming(client: Any, config: Mapping[str, Any]) -> ConfirmingClient:
    """Return the calls of a ``confluent_kafka.Producer`` for confirmed records.

    Args:
        client: the producer.
        config: the settings it was made with.

    Raises:
        ConfigurationError: it does not wait for all replicas, is transactional, or serializes.
    """
    config = check_producer(client, config)
    require(
        waits_for_all(config), 'confirms need a Producer of their own with "acks": "all"'
    )
    require(
        not config.get("transactional.id"),
        "confirms need a Producer without transactional.id: nobody would commit",
    )
    return ConfirmingClient(
        send=lambda topic, **record: sent(client, topic, record),
        wait=Report.get,
        over=attrgetter("told"),
        has=partial(has_topic, client),
        carries=carries,
        too_large=TooLargeError,
        failed=(
            KafkaException,
            TooLargeError,
            BufferError,
            ValueError,
            TypeError,
            RuntimeError,
        ),
        name=name_of,
    )


def sent(client: Any, topic: str, record: Mapping[str, Any]) -> Report:
    """Give a record to the client; return its report, which may be there already."""
    report = Report(client.poll)
    try:
        client.produce(topic, on_delivery=report.tell, **record)
    except KafkaException as error:
        report.tell(error_of(error), None)
    return report


class DeadLetters(TopicLetters):
    """Sends dead letters to one topic and waits for the broker's confirm.

    Args:
        client: a ``confluent_kafka.Producer`` for dead letters alone, with ``"acks": "all"``, the default.
        topic: the dead-letter topic; let its ``max.message.bytes`` be above the source's, and the client's
            ``message.max.bytes`` too.
        timeout: seconds to wait for the confirm.
        config: the settings that the client was made with, which it does not tell.
        oversize_letters: a message that fits in no other form is dead-lettered by ``"reference"``
            (coordinates, digest, sizes) or deferred, ``"stop"``.

    Raises:
        ConfigurationError: the client is set up otherwise, or a setting is unknown.
    """

    def __init__(
        self,
        client: confluent_kafka.Producer,
        topic: str,
        timeout: float = 30,
        *,
        config: Mapping[str, Any],
        oversize_letters: Oversize = "reference",
    ) -> None:
        super().__init__(
            client, confirming(client, config), topic, timeout, oversize_letters
        )


class AuditTopic(TopicAudit):
    """An audit sink that sends each record as JSON, keyed by instance, and waits for the broker's confirm.

    The records have no ``prev`` and ``hash``: only the audit file is chained. Those of one instance are on one
    partition, in order. A topic with ``cleanup.policy=compact`` would lose all but the last of them.

    Args:
        client: a ``confluent_kafka.Producer`` with ``"acks": "all"``, as for ``DeadLetters``, whose client may be
            used.
        topic: the audit topic.
        timeout: seconds to wait for the confirm.
        config: the settings that the client was made with, which it does not tell.

    Raises:
        ConfigurationError: the client is set up otherwise, or a setting is wrong.
    """

    def __init__(
        self,
        client: confluent_kafka.Producer,
        topic: str,
        *,
        timeout: float = 30,
        config: Mapping[str, Any],
    ) -> None:
        super().__init__(client, confirming(client, config), topic, timeout)


_FENCED: Final = frozenset(
    (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH)
)


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
        # librdkafka's default of ``transaction.timeout.ms``.
        self.longest = float(config.get("transaction.timeout.ms", 60_000)) / 1000

    def checked(self, client: Any) -> Any:
        """Return a new client, whose settings are as they must be.

        Raises:
            ConfigurationError: it has no ``transactional.id``, or is of another kind.
        """
        config = check_producer(client, self._config)
        require(
            config.get("transactional.id"),
            "transactional dead letters need a Producer with transactional.id",
        )
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

    def send_offsets(self, offsets: Mapping[Any, Committed], group: Any) -> None:
        """Add offsets to the transaction, by partition."""
        natives = [native(place, *commit) for place, commit in offsets.items()]
        self.client.send_offsets_to_transaction(natives, group, self.timeout)

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
