"""What a signed answer on Kafka does to its handler where it cannot be sent."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mqauth.errors import Cause, ConfigurationError, MalformedMessage, RetryLater, Unavailable
from mqauth.judging.verified import Verified
from mqauth.testing import verified

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.errors import (
        KafkaTimeoutError,
        MessageSizeTooLargeError,
        NodeNotReadyError,
        TopicAuthorizationFailedError,
    )

    from mqauth.brokers.kafka.producer import ProducerFatalError, Replies


class Unsent:
    """A producer, and a future of its, that end with an error."""

    def __init__(self, error: Exception, *, when_sent: bool, known: bool = True) -> None:
        self.client = SimpleNamespace(_metadata=self)
        self._last_successful_refresh_ms = 1e15
        self._error, self._when_sent, self._known = error, when_sent, known

    def partitions_for_topic(self, _topic: str) -> set[int] | None:
        return {0} if self._known else None

    def send(self, *_: Any, **__: Any) -> Any:
        if self._when_sent:
            raise self._error
        return self

    def get(self, timeout: float | None) -> Any:
        raise self._error

    def check_alive(self) -> None:
        pass


AWAY = [KafkaTimeoutError(), NodeNotReadyError(), ProducerFatalError(), Unavailable(Cause.KEYS_UNAVAILABLE)]
REFUSED = [MessageSizeTooLargeError(), TopicAuthorizationFailedError(), MalformedMessage(), ConfigurationError()]


@pytest.mark.parametrize("when_sent", [True, False])
@pytest.mark.parametrize(
    ("error", "verdict"), [*((e, None) for e in AWAY), *((e, "handler_failed") for e in REFUSED)]
)
def test_unsent_reply(error: Exception, verdict: str | None, when_sent: bool) -> None:
    """What is out of reach puts a handler off; what is refused fails it."""
    answer = Replies(cast(Any, Unsent(error, when_sent=when_sent)))
    asked = verified(destination="kafka:orders", headers=[("reply-to", b"answers")])
    with pytest.raises(RetryLater if error in AWAY else type(error)):
        answer(asked, b"pong").get()


def test_reply_to_no_topic() -> None:
    """Where the broker answers and knows no such topic, its client's time-out is no outage."""
    answer = Replies(cast(Any, Unsent(KafkaTimeoutError(), when_sent=True, known=False)))
    with pytest.raises(KafkaTimeoutError):
        answer(verified(destination="kafka:orders", headers=[("reply-to", b"answers")]), b"pong")


class Dead(Unsent):
    """A producer whose client fails for good with the first answer that the broker refuses."""

    def __init__(self) -> None:
        super().__init__(MessageSizeTooLargeError(), when_sent=False)
        self._fatal: ProducerFatalError | None = None

    def send(self, *_: Any, **__: Any) -> Any:
        self.check_alive()
        return self

    def get(self, timeout: float | None) -> Any:
        self._fatal = ProducerFatalError("failed for good")
        raise self._error

    def check_alive(self) -> None:
        if self._fatal is not None:
            raise self._fatal


def request() -> Verified:
    """Return a request."""
    return verified(destination="kafka:orders", headers=[("reply-to", b"answers")])


def test_a_producer_that_failed_for_good(caplog: pytest.LogCaptureFixture) -> None:
    """The request whose answer was refused fails at each attempt, others are put off, and the consumer ends."""
    replies = Replies(cast(Any, Dead()))
    replies.check()
    first = request()
    with pytest.raises(MessageSizeTooLargeError):
        replies(first, b"too large").get()
    with pytest.raises(MessageSizeTooLargeError):
        replies(first, b"too large")
    with pytest.raises(RetryLater):
        replies(request(), b"pong")
    with pytest.raises(ProducerFatalError), caplog.at_level("CRITICAL", "mqauth.kafka"):
        replies.check()
    assert "the consumer ends" in caplog.text


def test_refused_answers_are_not_remembered() -> None:
    """A client that goes on after a refusal, as one that is not idempotent, keeps nothing of it."""
    replies = Replies(cast(Any, Unsent(MessageSizeTooLargeError(), when_sent=False)))
    with pytest.raises(MessageSizeTooLargeError):
        replies(request(), b"too large").get()
    assert not replies._refused
