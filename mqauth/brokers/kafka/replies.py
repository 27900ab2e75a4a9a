"""Signed answers on Kafka: what ``Verified.reply`` calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeAlias

from kafka.errors import KafkaError, RetriableError, UnknownTopicOrPartitionError

from mqauth.brokers.kafka.client import is_no_topic
from mqauth.brokers.kafka.producer import Producer
from mqauth.brokers.log.errors import ProducerFatalError
from mqauth.brokers.log.records import NativeHeaders
from mqauth.brokers.log.replies import TopicReplies, later
from mqauth.errors import Unavailable
from mqauth.judging.verified import Verified

_OUT_OF_REACH: Final = (RetriableError, ProducerFatalError, Unavailable)
"""Errors of a send while broker or signing key cannot be reached, or after the client has failed for good."""
_Request: TypeAlias = tuple[str, str, str, int | None]
"""Issuer, subject, token id and index of a request: the same for each attempt at it."""


class Replies(TopicReplies):
    """Sends signed answers to the topic in reply-to.

    An answer that the broker refuses makes an idempotent client fail for good: then the request of that answer
    fails, all others are deferred, and ``check`` ends the consumer.

    Args:
        producer: signs and sends.
    """

    def __init__(self, producer: Producer) -> None:
        super().__init__(producer)
        self._refused: dict[_Request, KafkaError] = {}

    def send(self, verified: Verified, topic: str, body: bytes, headers: NativeHeaders) -> Answer:
        """Send an answer.

        Raises:
            RetryLater: it cannot be sent now.
            kafka.errors.KafkaError: the topic does not exist, or the broker refused an earlier answer.
        """
        request = verified.issuer, verified.subject, verified.jti, verified.index
        began = time.monotonic()
        try:
            return Answer(self._producer.send(topic, value=body, headers=headers), partial(self._note, request))
        except _OUT_OF_REACH as error:
            if request in self._refused:
                raise self._refused[request] from error
            if isinstance(error, RetriableError) and is_no_topic(self._producer.client, topic, began):
                raise
            raise later(type(error).__name__) from error

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
            raise later(type(error).__name__) from error
        except KafkaError as error:
            self._refused(error)
            raise
