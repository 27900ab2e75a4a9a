"""Signed answers: ``Verified.reply`` on confluent-kafka."""

from __future__ import annotations

from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException

from mqauth.brokers.confluent.client import COMES_AGAIN, error_of, name_of
from mqauth.brokers.confluent.confirmed import Report
from mqauth.brokers.confluent.producer import Producer
from mqauth.brokers.log.errors import ProducerFatalError
from mqauth.brokers.log.records import NativeHeaders
from mqauth.brokers.log.replies import TopicReplies, later
from mqauth.errors import Unavailable
from mqauth.judging.verified import Verified
from mqauth.logs import emit

_NO_TOPIC: Final = frozenset(
    (KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART)
)
_LATER: Final = (COMES_AGAIN | {KafkaError._MSG_TIMED_OUT, KafkaError._QUEUE_FULL}) - _NO_TOPIC


class Replies(TopicReplies):
    """Sends signed answers to the topic in reply-to, and learns from reports whether the client has failed."""

    _producer: Producer

    def send(self, _verified: Verified, topic: str, body: bytes, headers: NativeHeaders) -> Answer:
        """Send an answer.

        Raises:
            RetryLater: it cannot be sent now.
            KafkaException: the client refuses the answer.
        """
        answer = Answer(self._producer)
        try:
            self._producer.produce(topic, value=body, headers=headers, on_delivery=answer.tell)
        except (BufferError, ProducerFatalError, Unavailable) as error:
            raise later(type(error).__name__) from error
        return answer

    def check(self) -> None:
        """Serve reports; refuse to go on with a client that has failed for good.

        Raises:
            ProducerFatalError: it has.
        """
        self._producer.poll(0)
        super().check()


class Answer(Report):
    """An answer that was sent; ``get`` puts the handler off while the broker is out of reach.

    Args:
        producer: the producer that sent it.
    """

    def __init__(self, producer: Producer) -> None:
        super().__init__(producer.poll)
        self._note = producer.note

    def tell(self, error: KafkaError | None, message: Any) -> None:
        """Note the delivery report; called by the client."""
        super().tell(error, message)
        self._note(error)
        if error is not None:
            emit("reply.lost", "an answer was not delivered: %s", error.name())

    def get(self, timeout: float | None = None) -> Any:
        """Return the delivered message, after at most so many seconds.

        Raises:
            RetryLater: the broker is out of reach, or has not answered yet.
            TooLargeError: it is too large for the client or the broker.
            KafkaException: the broker refused it.
        """
        try:
            return super().get(timeout)
        except KafkaException as error:
            if error_of(error).code() in _LATER:
                raise later(name_of(error)) from error
            raise
