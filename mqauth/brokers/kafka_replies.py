"""Signed answers: what ``Verified.reply`` does on Kafka."""

from __future__ import annotations

import time
from typing import Any, Final

from kafka.errors import RetriableError, UnknownTopicOrPartitionError

from mqauth.brokers.kafka_producer import Producer, ProducerFatalError
from mqauth.errors import ConfigurationError, RetryLater, Unavailable
from mqauth.verified import Responder, Verified

_MILLISECONDS: Final = 1000
_OUT_OF_REACH: Final = (RetriableError, ProducerFatalError, Unavailable)
"""What sending raises where broker or signing key cannot be reached, or the client has failed for good."""


def responder(producer: Producer) -> Responder:
    """Return what ``Verified.reply`` calls: it sends a signed answer to the topic in reply-to.

    While broker or signing key cannot be reached the handler is put off. An error of the answer or its topic fails
    the handler.

    Args:
        producer: sends.
    """

    def reply(verified: Verified, body: bytes) -> Answer:
        properties = verified.properties
        if "reply-to" not in properties:
            raise ConfigurationError("the message has no reply-to")
        names = ("correlation-id",) if "correlation-id" in properties else ()
        headers = [(name, properties[name].encode("utf-8")) for name in names]
        topic, began = properties["reply-to"], time.monotonic()
        try:
            return Answer(producer.send(topic, value=body, headers=headers))
        except _OUT_OF_REACH as error:
            if isinstance(error, RetriableError) and _is_no_topic(producer.client, topic, began):
                raise
            raise _later(error) from error

    return reply


class Answer:
    """The client's future of an answer; its ``get`` puts the handler off while the broker is out of reach.

    Args:
        future: the client's.
    """

    def __init__(self, future: Any) -> None:
        self._future = future

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


def _is_no_topic(client: Any, topic: str, began: float) -> bool:
    """Tell whether the broker has answered since then, in monotonic seconds, and does not know the topic.

    kafka-python 3.0.12 raises ``KafkaTimeoutError`` in both cases. A requester chooses the topic: an answer to one
    that does not exist must not hold its partition for ever.
    """
    metadata = client._metadata
    answered: bool = metadata._last_successful_refresh_ms >= began * _MILLISECONDS
    return answered and metadata.partitions_for_topic(topic) is None


def _later(error: Exception) -> RetryLater:
    """Return what puts a handler off."""
    return RetryLater(f"the answer could not be sent: {type(error).__name__}")
