"""``mqauth.brokers.kafka``: producer and dead letters on a client of our own making."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mqauth.errors import Cause, ConfigurationError, MalformedMessage, Reason, Rejection, Unavailable
from mqauth.judging.verified import Verified
from mqauth.letters.dead_letter import DeadLetter
from mqauth.testing import Forge
from mqauth.wire.message import Message, Origin

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError, TopicAuthorizationFailedError

    from mqauth.brokers import kafka


class Future:
    """A future that a test completes."""

    def __init__(self, outcome: Any = None, *, done: bool = True) -> None:
        self.is_done = done
        self.outcome = outcome
        self.callbacks: list[Callable[[Any], Any]] = []
        self.waits: list[Any] = []

    def add_both(self, callback: Callable[[Any], Any]) -> Future:
        self.callbacks.append(callback)
        if self.is_done:
            callback(self.outcome)
        return self

    def complete(self) -> None:
        self.is_done = True
        for callback in self.callbacks:
            callback(self.outcome)

    def get(self, timeout: float) -> Any:
        self.waits.append(timeout)
        if not self.is_done:
            raise KafkaTimeoutError("slow")
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class Client:
    """A ``KafkaProducer`` that keeps what it is given."""

    def __init__(self, **config: Any) -> None:
        self.config = {
            "enable_idempotence": True, "acks": -1, "key_serializer": None, "value_serializer": None,
            "max_block_ms": 60_000, "max_request_size": 1_048_576,
        } | config  # fmt: skip
        self.sent: list[dict[str, Any]] = []
        self.futures: list[Any] = []
        self.calls: list[Any] = []

    def send(self, topic: str, **record: Any) -> Any:
        future = self.futures.pop(0) if self.futures else Future()
        if isinstance(future, Exception):
            raise future
        self.sent.append({"topic": topic, **record})
        return future

    def flush(self, timeout: Any) -> None:
        self.calls.append(("flush", timeout))

    def close(self, timeout: Any) -> None:
        self.calls.append(("close", timeout))


@pytest.fixture
def client() -> Client:
    """An idempotent client."""
    return Client()


def producer(client: Client, forge: Forge, **settings: Any) -> kafka.Producer:
    """Return a wrapped client."""
    return kafka.Producer(client, forge.signer(), **settings)  # type: ignore[arg-type]


def verified(forge: Forge, record: dict[str, Any]) -> Verified:
    """Verify what was sent."""
    message = Message(
        destination=f"kafka:{record['topic']}", body=record["value"], key=record["key"],
        headers=tuple(record["headers"]),
    )  # fmt: skip
    verifier = forge.verifier()
    return verifier.verify(message, verifier.open(message), forge.keys, forge.clock.now())


def test_send(client: Client, forge: Forge) -> None:
    """What is sent verifies, everything else goes through as given, and the client's own future comes back."""
    client.futures = [future := Future()]
    result = producer(client, forge).send("orders", b"v", b"k", [("content-type", b"a/b"), ("t", b"1")], 3, 99)
    (record,) = client.sent
    seen = verified(forge, record)
    assert (seen.body, seen.key, seen.properties, seen.headers) == (
        b"v", b"k", {"content-type": "a/b"}, (("t", b"1"),))  # fmt: skip
    assert (record["partition"], record["timestamp_ms"]) == (3, 99)
    assert result is future  # type: ignore[comparison-overlap]


def test_fresh_token(client: Client, forge: Forge) -> None:
    """Each call makes a token of its own, and the caller's headers are not changed."""
    headers = [("t", b"1")]
    wrapped = producer(client, forge)
    wrapped.send("orders", b"v", headers=headers)
    wrapped.send("orders", b"v", headers=headers)
    assert headers == [("t", b"1")]
    assert verified(forge, client.sent[0]).jti != verified(forge, client.sent[1]).jti


def test_value_serializer(client: Client, forge: Forge) -> None:
    """A value is serialized before it is signed; bytes and tombstones pass as they are."""
    wrapped = producer(client, forge, value_serializer=lambda value: str(value).encode())
    wrapped.send("orders", 7)
    wrapped.send("orders", b"raw")
    wrapped.send("orders", None, b"k")
    assert [verified(forge, record).body for record in client.sent] == [b"7", b"raw", None]


@pytest.mark.parametrize("name", ["key_serializer", "value_serializer"])
def test_serializers_refused(forge: Forge, name: str) -> None:
    """A client's serializer would change what was signed, and is refused by name."""
    with pytest.raises(ConfigurationError, match=name):
        producer(Client(**{name: str.encode}), forge)


def test_without_idempotence(forge: Forge, caplog: pytest.LogCaptureFixture) -> None:
    """A producer whose retries look like replays is warned about once; an idempotent one is not."""
    with caplog.at_level(logging.WARNING, "mqauth.kafka"):
        producer(Client(), forge)
        assert caplog.text == ""
        producer(Client(enable_idempotence=False), forge).send("orders", b"v")
    assert caplog.text.count("idempotence") == 1


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


def test_failed_send_gives_room_back(client: Client, forge: Forge) -> None:
    """A send the client refuses takes no room."""
    client.futures = [MessageSizeTooLargeError(), MessageSizeTooLargeError()]
    wrapped = producer(client, forge, max_in_flight=1)
    for _ in range(2):
        with pytest.raises(MessageSizeTooLargeError):
            wrapped.send("orders", b"v")
    wrapped.send("orders", b"v")
    assert len(client.sent) == 1


@pytest.mark.parametrize("bound", [0, -1])
def test_bound_refused(client: Client, forge: Forge, bound: int) -> None:
    """A bound that lets nothing through is refused."""
    with pytest.raises(ConfigurationError):
        producer(client, forge, max_in_flight=bound)


class Manager:
    """Stands for kafka-python's transaction manager."""

    fatal = True
    last_error = TopicAuthorizationFailedError("orders")

    def has_fatal_error(self) -> bool:
        return self.fatal


def test_fatal(client: Client, forge: Forge) -> None:
    """A client that has failed for good is reported as that, by its first error, before anything is sent."""
    client._transaction_manager = manager = Manager()  # type: ignore[attr-defined]
    wrapped = producer(client, forge)
    with pytest.raises(kafka.ProducerFatalError, match="TopicAuthorizationFailedError"):
        wrapped.send("orders", b"v")
    manager.fatal = False
    wrapped.send("orders", b"v")
    assert len(client.sent) == 1


def test_context_manager(client: Client, forge: Forge) -> None:
    """Flush and close are the client's own, and ``with`` closes."""
    with producer(client, forge) as wrapped:
        wrapped.flush(3)
    wrapped.close(5)
    assert client.calls == [("flush", 3), ("close", None), ("close", 5)]


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
    assert (record["topic"], record["value"], record["key"]) == ("orders.dead", b"body", b"k")
    assert headers["a"] == b"1"
    assert headers["mqauth-dead-token"] == b"t"
    assert headers["mqauth-dead-reason"] == b"expired"
    assert headers["mqauth-dead-source"] == b"orders/1/7"
    assert headers["mqauth-dead-id"] == letter().id.encode()
    assert b"null" in headers["mqauth-dead-metadata"]
    assert "mqauth-token" not in headers
    assert all(isinstance(value, bytes) for value in headers.values())
    assert future.waits == [7]


@pytest.mark.parametrize(
    "failure",
    [
        KafkaTimeoutError("slow"),
        TopicAuthorizationFailedError("orders.dead"),
        ValueError("topic"),
        OSError("gone"),
    ],
    ids=lambda failure: type(failure).__name__,
)
@pytest.mark.parametrize("late", [False, True])
def test_not_confirmed(failure: Exception, late: bool) -> None:
    """Whatever is not a confirmed record is no dead letter, whether it fails at once or later."""
    letters, _ = dead_letters(Future(failure) if late else failure)
    with pytest.raises(Unavailable) as caught:
        letters.publish(letter())
    assert caught.value.cause is Cause.DEAD_LETTER_UNAVAILABLE
    assert caught.value.detail == type(failure).__name__


def test_unknown_outcome_is_waited_for_again() -> None:
    """A letter whose confirm did not come in time is not sent twice: its retry waits for the same record."""
    letters, client = dead_letters(slow := Future(done=False))
    for _ in range(3):
        with pytest.raises(Unavailable):
            letters.publish(letter())
    assert len(client.sent) == 1
    slow.complete()
    letters.publish(letter())
    assert len(client.sent) == 1
    letters.publish(letter())
    assert len(client.sent) == 2


def test_unknown_outcome_failed() -> None:
    """A letter that failed after all is sent again."""
    letters, client = dead_letters(slow := Future(KafkaTimeoutError("expired"), done=False))
    with pytest.raises(Unavailable):
        letters.publish(letter())
    slow.complete()
    with pytest.raises(Unavailable):
        letters.publish(letter())
    letters.publish(letter())
    assert len(client.sent) == 2


def test_unknown_outcomes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many open outcomes are remembered; the oldest is forgotten first."""
    monkeypatch.setattr("mqauth.brokers.log.confirmed.MAX_UNCONFIRMED", 2)
    letters, client = dead_letters(*(Future(done=False) for _ in range(4)))
    for body in (b"1", b"2", b"3", b"3", b"2", b"1"):
        with pytest.raises(Unavailable):
            letters.publish(letter(body=body))
    assert [record["value"] for record in client.sent] == [b"1", b"2", b"3", b"1"]


def test_unknown_outcomes_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends large bad messages fills no memory with what is remembered of their letters."""
    monkeypatch.setattr("mqauth.brokers.log.confirmed.MAX_UNCONFIRMED_BYTES", 5000)
    letters, client = dead_letters(*(Future(done=False) for _ in range(3)))
    large, other = b"1" * 4000, b"2" * 4000
    for body in (large, other, other, large):
        with pytest.raises(Unavailable):
            letters.publish(letter(body=body))
    assert [record["value"] for record in client.sent] == [large, other, large]


@pytest.mark.parametrize("late", [False, True])
def test_too_large(late: bool) -> None:
    """A form that is too large, for the client or the broker, is followed by the next at once."""
    too_large = [MessageSizeTooLargeError(), MessageSizeTooLargeError()]
    letters, client = dead_letters(*(Future(error) if late else error for error in too_large))
    letters.publish(letter())
    assert ("mqauth-dead-form", b"reference") in client.sent[-1]["headers"]
    assert len(client.sent) == (3 if late else 1)


def test_too_large_to_stop() -> None:
    """With ``stop`` no letter goes by reference; the record waits."""
    letters, client = dead_letters(MessageSizeTooLargeError(), MessageSizeTooLargeError(), oversize_letters="stop")
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


@pytest.mark.parametrize(
    "config", [{"enable_idempotence": True}, {"acks": 1}, {"acks": 0}, {"value_serializer": str.encode}], ids=str
)
def test_client_refused(config: dict[str, Any]) -> None:
    """Dead letters need a client of their own: acks from all, not idempotent, no serializers."""
    with pytest.raises(ConfigurationError):
        kafka.DeadLetters(Client(**({"enable_idempotence": False} | config)), "orders.dead")  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"timeout": 0}, {"oversize_letters": "drop"}], ids=str)
def test_settings_refused(settings: dict[str, Any]) -> None:
    """A setting out of its limits is refused."""
    with pytest.raises(ConfigurationError):
        dead_letters(**settings)


@pytest.mark.parametrize(("timeout", "block"), [(30, 5000), (2, 2000)])
def test_missing_topic_is_noticed_soon(timeout: float, block: int) -> None:
    """A missing topic may not hold the others up for the client's default of a minute."""
    _, client = dead_letters(timeout=timeout)
    assert client.config["max_block_ms"] == block
