"""The audit topic without a broker: what is confirmed, what is open, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from mqauth.audit.record import AuditRecord
from mqauth.errors import Cause, ConfigurationError, Unavailable

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.errors import KafkaTimeoutError

    from mqauth.brokers import kafka


class Future:
    """An outcome that is open until it is told."""

    def __init__(self) -> None:
        self.is_done = False

    def get(self, timeout: float) -> None:
        if not self.is_done:
            raise KafkaTimeoutError


class Client:
    """A ``KafkaProducer`` as far as an audit topic knows it."""

    def __init__(self, **changes: Any) -> None:
        self.config = {"enable_idempotence": False, "acks": -1, "max_block_ms": 60_000, "key_serializer": None,
                       "value_serializer": None} | changes  # fmt: skip
        self.sent: list[tuple[str, bytes, bytes]] = []
        self.future = Future()

    def send(self, topic: str, *, value: bytes, key: bytes) -> Future:
        self.sent.append((topic, value, key))
        return self.future


def record(number: int = 0) -> AuditRecord:
    """Return a record."""
    return AuditRecord(
        id=f"id-{number}", time=0, verdict="rejected", reason="expired", detail=None, scope="s", broker={},
        token={}, body_sha256=None, body_size=None, key_set=None, policy=None, dead_letter=None,
        instance="me\ud800",
    )  # fmt: skip


def test_confirmed() -> None:
    """A record goes out once, keyed by its instance, whatever its name holds."""
    client = Client()
    client.future.is_done = True
    kafka.AuditTopic(client, "audit").write(record())
    ((topic, value, key),) = client.sent
    assert (topic, key) == ("audit", b"me?")
    assert b'"id":"id-0"' in value


def test_open_outcome_is_waited_for_again() -> None:
    """A record without a confirm defers, and is not sent a second time: the client keeps trying."""
    client = Client()
    sink = kafka.AuditTopic(client, "audit")
    for _ in range(3):
        with pytest.raises(Unavailable) as raised:
            sink.write(record())
    assert raised.value.cause is Cause.AUDIT_UNAVAILABLE
    client.future.is_done = True
    sink.write(record())
    assert len(client.sent) == 1


def test_open_outcomes_are_bounded() -> None:
    """Of more than a thousand open records the oldest are forgotten, and sent again."""
    client = Client()
    sink = kafka.AuditTopic(client, "audit")
    for number in range(1200):
        with pytest.raises(Unavailable):
            sink.write(record(number))
    assert len(sink._unconfirmed) == 1000


@pytest.mark.parametrize(
    "changes", [{"enable_idempotence": True}, {"acks": 1}, {"acks": 0}, {"value_serializer": str.encode}]
)
def test_unfit_client_is_refused(changes: dict[str, Any]) -> None:
    """A client that is poisoned by one refusal, does not wait for the brokers, or changes bytes, is refused."""
    with pytest.raises(ConfigurationError):
        kafka.AuditTopic(Client(**changes), "audit")


@pytest.mark.parametrize(("topic", "timeout"), [("", 30), ("audit", 0)])
def test_settings_are_checked(topic: str, timeout: float) -> None:
    """No topic and no time are refused."""
    with pytest.raises(ConfigurationError):
        kafka.AuditTopic(Client(), topic, timeout=timeout)


def test_send_does_not_block_for_a_minute() -> None:
    """The client's own wait for a topic's metadata is bounded too."""
    client = Client()
    kafka.AuditTopic(client, "audit", timeout=2)
    assert client.config["max_block_ms"] == 2000
