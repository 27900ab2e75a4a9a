"""Signed answers: ``Verified.reply`` on confluent-kafka."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException

from mqauth.brokers.confluent.client import COMES_AGAIN
from mqauth.brokers.confluent.producer import Producer
from mqauth.brokers.log.errors import ProducerFatalError
from mqauth.errors import ConfigurationError, RetryLater, Unavailable
from mqauth.judging.verified import Verified

ROUND: Final = 0.05
"""Most seconds of one ``poll`` for a report: another thread may have served it."""
_NO_TOPIC: Final = frozenset(
    (KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART)
)
_LATER: Final = (COMES_AGAIN | {KafkaError._MSG_TIMED_OUT, KafkaError._QUEUE_FULL}) - _NO_TOPIC
_LOG: Final = logging.getLogger("mqauth.kafka")


class Replies:
    """Sends the answer of ``Verified.reply`` to the topic in ``reply-to``.

    The handler is put off while the broker or the signing key cannot be reached. It fails if the answer or its
    topic is wrong: the requester chooses the topic, and a missing one must not hold a partition for ever.

    Args:
        producer: sends.
    """

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    def __call__(self, verified: Verified, body: bytes) -> Answer:
        """Send an answer.

        Raises:
            RetryLater: it cannot be sent now.
            ConfigurationError: the request names no topic.
            KafkaException: the client refuses the answer.
        """
        properties = verified.properties
        if "reply-to" not in properties:
            raise ConfigurationError("the message has no reply-to")
        names = ("correlation-id",) if "correlation-id" in properties else ()
        headers = [(name, properties[name].encode("utf-8")) for name in names]
        answer = Answer(self._producer)
        try:
            self._producer.produce(properties["reply-to"], value=body, headers=headers, on_delivery=answer.tell)
        except (BufferError, ProducerFatalError, Unavailable) as error:
            raise RetryLater(f"the answer could not be sent: {type(error).__name__}") from error
        return answer

    def check(self) -> None:
        """Raise an error if the client has failed for good: every request would be put off.

        Raises:
            ProducerFatalError: it has.
        """
        try:
            self._producer.poll(0)
            self._producer.check_alive()
        except ProducerFatalError as error:
            _LOG.critical("answers: %s; the consumer ends, requests without an answer come again", error)
            raise


class Answer:
    """An answer that was sent; ``get`` puts the handler off while the broker is out of reach.

    Args:
        producer: the producer that sent it.
    """

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._told: tuple[KafkaError | None, Any] | None = None

    def tell(self, error: KafkaError | None, message: Any) -> None:
        """Note the delivery report; called by the client."""
        self._told = error, message
        self._producer.note(error)
        if error is not None:
            _LOG.error("an answer was not delivered: %s", error.name())

    def get(self, timeout: float | None = None) -> Any:
        """Return the delivered message, after at most so many seconds.

        Raises:
            RetryLater: the broker is out of reach, or has not answered yet.
            KafkaException: it refused the answer.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while self._told is None:
            if until is not None and time.monotonic() >= until:
                raise RetryLater("the answer could not be sent: no report yet")
            self._producer.poll(ROUND)
        error, message = self._told
        if error is None:
            return message
        if error.code() in _LATER:
            raise RetryLater(f"the answer could not be sent: {error.name()}")
        raise KafkaException(error)
