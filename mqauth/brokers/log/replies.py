"""Signed answers to requests of a log: what ``Verified.reply`` calls, for every client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from mqauth.brokers.log.errors import ProducerFatalError
from mqauth.brokers.log.records import NativeHeaders
from mqauth.errors import RetryLater, require
from mqauth.judging.verified import Verified
from mqauth.logs import emit


class TopicReplies(ABC):
    """Sends signed answers to the topic in reply-to; the leaf says how one is sent.

    While the broker or the signing key cannot be reached, the handler is deferred. An answer or a topic that is
    wrong fails the handler: the requester chooses the topic, and a missing one must not hold a partition for ever.

    Args:
        producer: signs and sends.
    """

    def __init__(self, producer: Any) -> None:
        self._producer = producer

    def __call__(self, verified: Verified, body: bytes) -> Any:
        """Send an answer.

        Raises:
            RetryLater: it cannot be sent now.
            ConfigurationError: the request names no topic.
            Exception: the client's own, where it refuses the answer.
        """
        properties = verified.properties
        require("reply-to" in properties, "the message cannot be answered: it has no reply-to")
        names = ("correlation-id",) if "correlation-id" in properties else ()
        headers = [(name, properties[name].encode("utf-8")) for name in names]
        return self.send(verified, properties["reply-to"], body, headers)

    @abstractmethod
    def send(self, verified: Verified, topic: str, body: bytes, headers: NativeHeaders) -> Any:
        """Send an answer, as ``__call__`` describes; a leaf's own.

        Args:
            verified: the request.
            topic: where the answer goes.
            body: of the answer.
            headers: of the answer.
        """

    def check(self) -> None:
        """Refuse to go on with a client that has failed for good: every request would be deferred.

        Raises:
            ProducerFatalError: it has.
        """
        try:
            self._producer.check_alive()
        except ProducerFatalError as error:
            emit(
                "reply.failed", "answers: %s; the consumer ends, and requests without an answer come again", error
            )
            raise


def later(why: str) -> RetryLater:
    """Return the error that defers a handler whose answer cannot be sent now."""
    return RetryLater(f"the answer could not be sent: {why}")
