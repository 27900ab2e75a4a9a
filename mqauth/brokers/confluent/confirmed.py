"""Dead letters and audit records on topics; each call waits until the broker has confirmed the record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from operator import attrgetter
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from mqauth.brokers.confluent.client import check_producer, error_of, has_topic, name_of, waits_for_all
from mqauth.brokers.confluent.translate import carries
from mqauth.brokers.log.confirmed import ConfirmingClient, TopicAudit, TopicLetters
from mqauth.errors import require
from mqauth.letters.dead_letter import Oversize

ROUND: Final = 0.05
"""Most seconds of one ``poll`` for a report: another thread may have served it."""
_TOO_LARGE: Final = frozenset((KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE))


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
        if self._error.code() in _TOO_LARGE:
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
    require(waits_for_all(config), 'confirms need a Producer of their own with "acks": "all"')
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
        failed=(KafkaException, TooLargeError, BufferError, ValueError, TypeError, RuntimeError),
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
        super().__init__(client, confirming(client, config), topic, timeout, oversize_letters)


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
        self, client: confluent_kafka.Producer, topic: str, *, timeout: float = 30, config: Mapping[str, Any]
    ) -> None:
        super().__init__(client, confirming(client, config), topic, timeout)
