"""``mqauth.brokers.kafka``: producer and dead letters on a client of our own making."""

from __future__ import annotations

import threading
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mqauth.audit.record import AuditRecord
from mqauth.brokers.closing import CLOSE_WITHIN, GIVE_UP_WITHIN
from mqauth.errors import (
    Cause,
    ConfigurationError,
    MalformedMessage,
    Reason,
    Rejection,
    RetryLater,
    Unavailable,
)
from mqauth.judging.verified import Verified
from mqauth.letters.dead_letter import DeadLetter
from mqauth.testing import Forge, verified
from mqauth.wire.message import Message, Origin
from tests.conftest import audit_record

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.errors import (
        KafkaTimeoutError,
        MessageSizeTooLargeError,
        NodeNotReadyError,
        TopicAuthorizationFailedError,
    )

    from mqauth.brokers import kafka
    from mqauth.brokers.kafka.producer import ProducerFatalError, Replies
    from tests.log_leaves import KafkaClient as Client
    from tests.log_leaves import KafkaFuture as Future


@pytest.fixture
def client() -> Client:
    """An idempotent client."""
    return Client()


def producer(client: Client, forge: Forge, **settings: Any) -> kafka.Producer:
    """Return a wrapped client, each of whose records has a token of its own."""
    return kafka.Producer(client, forge.signer(), batch=1, **settings)  # type: ignore[arg-type]


def test_malformed(client: Client, forge: Forge) -> None:
    """What cannot be signed or sent is refused, and takes no room in flight."""
    wrapped = producer(client, forge, max_in_flight=1)
    for _ in range(3):
        with pytest.raises(MalformedMessage):
            wrapped.send("orders", b"v", headers=[("mqauth-token", b"mine")])
        with pytest.raises(MalformedMessage):
            wrapped.send("orders")
    wrapped.send("orders", b"v")
    assert len(client.sent) == 1


def test_in_flight(forge: Forge) -> None:
    """No more than the bound is in flight; a completed record makes room, and waiting for it is bounded."""
    client = Client(max_block_ms=1)
    client.futures = [first := Future(done=False), Future(done=False)]
    wrapped = producer(client, forge, max_in_flight=1)
    wrapped.send("orders", b"1")
    with pytest.raises(KafkaTimeoutError, match="in flight"):
        wrapped.send("orders", b"2")
    first.complete()
    wrapped.send("orders", b"3")
    assert [record["value"] for record in client.sent] == [b"1", b"3"]


def test_send_waits_for_room(client: Client, forge: Forge) -> None:
    """A sender waits for room instead of failing at once."""
    client.futures = [first := Future(done=False)]
    wrapped = producer(client, forge, max_in_flight=1)
    wrapped.send("orders", b"1")
    sender = threading.Thread(target=wrapped.send, args=("orders", b"2"))
    sender.start()
    first.complete()
    sender.join(timeout=30)
    assert [record["value"] for record in client.sent] == [b"1", b"2"]


def test_context_manager(client: Client, forge: Forge) -> None:
    """Flush and close are the client's own, and ``with`` closes."""
    with producer(client, forge) as wrapped:
        wrapped.flush(3)
    wrapped.close(5)
    assert client.calls == [
        ("flush", 3),
        ("flush", CLOSE_WITHIN),
        ("close", GIVE_UP_WITHIN),
        ("flush", 5),
        ("close", GIVE_UP_WITHIN),
    ]


REJECTED = Message(
    destination="kafka:orders", body=b"body", key=b"k",
    headers=(("a", b"1"), ("null", None), ("mqauth-token", b"t")),
    origin=Origin(scope="billing", topic="orders", partition=1, offset=7),
)  # fmt: skip


def letter(**changes: Any) -> DeadLetter:
    """Return a dead letter."""
    return DeadLetter(
        message=replace(REJECTED, **changes),
        rejection=Rejection(Reason.EXPIRED, "expired"),
        scope="billing",
        time=1.9e9,
        audit="record-1",
    )


def dead_letters(*futures: Any, **settings: Any) -> tuple[kafka.DeadLetters, Client]:
    """Return dead letters and their client."""
    client = Client(enable_idempotence=False)
    client.futures = list(futures)
    return kafka.DeadLetters(client, "orders.dead", **settings), client  # type: ignore[arg-type]


def test_letter() -> None:
    """A letter keeps body, key and headers, moves the token, says why and where from; nulls become metadata."""
    letters, client = dead_letters(future := Future(), timeout=7)
    letters.publish(letter())
    (record,) = client.sent
    headers = dict(record["headers"])
    assert (record["topic"], record["value"], record["key"]) == (
        "orders.dead",
        b"body",
        b"k",
    )
    assert headers["a"] == b"1"
    assert headers["mqauth-dead-token"] == b"t"
    assert headers["mqauth-dead-reason"] == b"expired"
    assert headers["mqauth-dead-source"] == b"orders/1/7"
    assert headers["mqauth-dead-id"] == letter().id.encode()
    assert b"null" in headers["mqauth-dead-metadata"]
    assert "mqauth-token" not in headers
    assert all(isinstance(value, bytes) for value in headers.values())
    assert future.waits == [7]


def test_unknown_outcome_failed() -> None:
    """A letter that failed after all is sent again."""
    letters, client = dead_letters(
        slow := Future(KafkaTimeoutError("expired"), done=False)
    )
    with pytest.raises(Unavailable):
        letters.publish(letter())
    slow.complete()
    with pytest.raises(Unavailable):
        letters.publish(letter())
    letters.publish(letter())
    assert len(client.sent) == 2


def test_unknown_outcomes_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends large bad messages fills no memory with what is remembered of their letters."""
    monkeypatch.setattr("mqauth.brokers.log.confirmed.MAX_UNCONFIRMED_BYTES", 5000)
    letters, client = dead_letters(*(Future(done=False) for _ in range(3)))
    large, other = b"1" * 4000, b"2" * 4000
    for body in (large, other, other, large):
        with pytest.raises(Unavailable):
            letters.publish(letter(body=body))
    assert [record["value"] for record in client.sent] == [large, other, large]


def test_too_large_to_stop() -> None:
    """With ``stop`` no letter goes by reference; the record waits."""
    letters, client = dead_letters(
        MessageSizeTooLargeError(), MessageSizeTooLargeError(), oversize_letters="stop"
    )
    with pytest.raises(Unavailable, match="no form"):
        letters.publish(letter())
    assert client.sent == []


def test_tombstone() -> None:
    """A rejected tombstone is a tombstone again; one without a key, which the client refuses, goes as a form."""
    letters, client = dead_letters()
    letters.publish(letter(body=None))
    letters.publish(letter(body=None, key=None))
    assert (client.sent[0]["value"], client.sent[0]["key"]) == (None, b"k")
    assert ("mqauth-dead-form", b"json") in client.sent[1]["headers"]


@pytest.mark.parametrize(("timeout", "block"), [(30, 5000), (2, 2000)])
@pytest.mark.parametrize("kind", [kafka.DeadLetters, kafka.AuditTopic])
def test_missing_topic_is_noticed_soon(kind: Any, timeout: float, block: int) -> None:
    """A missing topic may not hold the others up for the client's default of a minute."""
    client = Client(enable_idempotence=False)
    kind(client, "orders.dead", timeout=timeout)
    assert client.config["max_block_ms"] == block


# The audit topic without a broker: what is confirmed, what is open, and what is refused.


def record(number: int = 0) -> AuditRecord:
    """Return a record."""
    return audit_record(number, instance="me\ud800")


def test_confirmed() -> None:
    """A record goes out once, keyed by its instance, whatever its name holds."""
    client = Client(enable_idempotence=False)
    kafka.AuditTopic(client, "audit").write(record())  # type: ignore[arg-type]
    (sent,) = client.sent
    assert (sent["topic"], sent["key"]) == ("audit", b"me?")
    assert b'"id":"id-0"' in sent["value"]


def test_open_outcome_is_waited_for_again() -> None:
    """A record without a confirm defers, and is not sent a second time: the client keeps trying."""
    client = Client(enable_idempotence=False)
    client.futures = [future := Future(done=False)]
    sink = kafka.AuditTopic(client, "audit")  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(Unavailable) as raised:
            sink.write(record())
    assert raised.value.cause is Cause.AUDIT_UNAVAILABLE
    future.complete()
    sink.write(record())
    assert len(client.sent) == 1


def test_open_outcomes_are_bounded() -> None:
    """Of more than a thousand open records the oldest are forgotten, and sent again."""
    client = Client(enable_idempotence=False)
    client.futures = [Future(done=False) for _ in range(1200)]
    sink = kafka.AuditTopic(client, "audit")  # type: ignore[arg-type]
    for number in range(1200):
        with pytest.raises(Unavailable):
            sink.write(record(number))
    assert len(sink._unconfirmed) == 1000


# What a signed answer on Kafka does to its handler where it cannot be sent.


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


AWAY = [
    KafkaTimeoutError(),
    NodeNotReadyError(),
    ProducerFatalError(),
    Unavailable(Cause.KEYS_UNAVAILABLE),
]
REFUSED = [
    MessageSizeTooLargeError(),
    TopicAuthorizationFailedError(),
    MalformedMessage(),
    ConfigurationError(),
]


@pytest.mark.parametrize("when_sent", [True, False])
@pytest.mark.parametrize(
    ("error", "verdict"),
    [*((e, None) for e in AWAY), *((e, "handler_failed") for e in REFUSED)],
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
        answer(
            verified(destination="kafka:orders", headers=[("reply-to", b"answers")]),
            b"pong",
        )


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
