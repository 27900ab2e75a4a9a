"""Signed answers on Kafka: what ``Verified.reply`` calls."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeAlias

from kafka.errors import KafkaError, RetriableError, UnknownTopicOrPartitionError

from mqauth.brokers.kafka.producer import Producer
from mqauth.brokers.log.errors import ProducerFatalError
from mqauth.errors import ConfigurationError, RetryLater, Unavailable
from mqauth.judging.verified import Verified

_LOG: Final = logging.getLogger("mqauth.kafka")
_OUT_OF_REACH: Final = (RetriableError, ProducerFatalError, Unavailable)
"""Errors of a send while broker or signing key cannot be reached, or after the client has failed for good."""
_Request: TypeAlias = tuple[str, str, str, int | None]
"""Issuer, subject, token id and index of a request: the same for each attempt at it."""


class Replies:
    """Sends signed answers to the topic in reply-to.

    While the broker or the signing key cannot be reached, the handler is deferred. An answer or a topic that is
    wrong fails the handler. An answer that the broker refuses makes an idempotent client fail for good: then the
    request of that answer fails, all others are deferred, and ``check`` ends the consumer.

    Args:
        producer: signs and sends.
    """

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._refused: dict[_Request, KafkaError] = {}

    def __call__(self, verified: Verified, body: bytes) -> Answer:
        """Send an answer.

        Raises:
            RetryLater: it cannot be sent now.
            ConfigurationError: the request names no topic.
            kafka.errors.KafkaError: the topic does not exist, or the broker refused an earlier answer.
        """
        properties = verified.properties
        request = verified.issuer, verified.subject, verified.jti, verified.index
        if "reply-to" not in properties:
            raise ConfigurationError("the message cannot be answered: it has no reply-to")
        names = ("correlation-id",) if "correlation-id" in properties else ()
        headers = [(name, properties[name].encode("utf-8")) for name in names]
        topic, began = properties["reply-to"], time.monotonic()
        try:
            return Answer(self._producer.send(topic, value=body, headers=headers), partial(self._note, request))
        except _OUT_OF_REACH as error:
            if request in self._refused:
                raise self._refused[request] from error
            if isinstance(error, RetriableError) and _is_no_topic(self._producer.client, topic, began):
                raise
            raise _later(error) from error

    def check(self) -> None:
        """Refuse to go on with a client that has failed for good: every request would be deferred.

        Raises:
            ProducerFatalError: it has.
        """
        try:
            self._producer.check_alive()
        except ProducerFatalError as error:
            _LOG.critical("answers: %s; the consumer ends, and requests without an answer come again", error)
            raise

    def _note(self, request: _Request, error: KafkaError) -> None:
        """Remember which request's answer made the client fail for good: its next attempt fails."""
        try:
            self._producer.check_alive()
        except ProducerFatalError:
            self._refused[request] = error


class Answer:
    """The client's future of an answer, whose ``get`` defers the handler while the broker is out of reach.

    Args:
        future: the client's.
        refused: called with the error where the broker refused the answer.
    """

    def __init__(self, future: Any, refused: Callable[[KafkaError], None]) -> None:
        self._future = future
        self._refused = refused

    def __getattr__(self, name: str) -> Any:
        return getattr(self._future, name)

    def get(self, timeout: float | None = None) -> Any:
        """Return the record's metadata, after at most so many seconds.

        Raises:
            RetryLater: the broker is out of reach, or has not answered yet.
            kafka.errors.KafkaError: it refused the answer.
        """
        try:
            return self._future.get(timeout=timeout)
        except UnknownTopicOrPartitionError:
            raise
        except _OUT_OF_REACH as error:
            raise _later(error) from error
        except KafkaError as error:
            self._refused(error)
            raise


def _is_no_topic(client: Any, topic: str, began: float) -> bool:
    """Return whether the broker has answered since ``began`` (monotonic seconds) and does not know the topic.

    kafka-python 3.0.12 raises ``KafkaTimeoutError`` both for this and for a broker out of reach. A requester
    chooses the topic: an answer to a topic that does not exist must not stop the request's partition for ever.
    """
    metadata = client._metadata
    answered: bool = metadata._last_successful_refresh_ms >= began * 1000
    return answered and metadata.partitions_for_topic(topic) is None


def _later(error: Exception) -> RetryLater:
    return RetryLater(f"the answer could not be sent: {type(error).__name__}")
