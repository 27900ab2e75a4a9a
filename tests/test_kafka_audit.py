"""The audit topic without a broker: what is confirmed, what is open, and what is refused."""

from __future__ import annotations

import warnings

import pytest

from mqauth.audit.record import AuditRecord
from mqauth.errors import Cause, Unavailable

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from mqauth.brokers import kafka
    from tests.log_leaves import KafkaClient, KafkaFuture


def record(number: int = 0) -> AuditRecord:
    """Return a record."""
    return AuditRecord(
        id=f"id-{number}", time=0, verdict="rejected", reason="expired", detail=None, scope="s", broker={},
        token={}, body_sha256=None, body_size=None, key_set=None, policy=None, dead_letter=None,
        instance="me\ud800",
    )  # fmt: skip


def test_confirmed() -> None:
    """A record goes out once, keyed by its instance, whatever its name holds."""
    client = KafkaClient(enable_idempotence=False)
    kafka.AuditTopic(client, "audit").write(record())  # type: ignore[arg-type]
    (sent,) = client.sent
    assert (sent["topic"], sent["key"]) == ("audit", b"me?")
    assert b'"id":"id-0"' in sent["value"]


def test_open_outcome_is_waited_for_again() -> None:
    """A record without a confirm defers, and is not sent a second time: the client keeps trying."""
    client = KafkaClient(enable_idempotence=False)
    client.futures = [future := KafkaFuture(done=False)]
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
    client = KafkaClient(enable_idempotence=False)
    client.futures = [KafkaFuture(done=False) for _ in range(1200)]
    sink = kafka.AuditTopic(client, "audit")  # type: ignore[arg-type]
    for number in range(1200):
        with pytest.raises(Unavailable):
            sink.write(record(number))
    assert len(sink._unconfirmed) == 1000


def test_send_does_not_block_for_a_minute() -> None:
    """The client's own wait for a topic's metadata is bounded too."""
    client = KafkaClient(enable_idempotence=False)
    kafka.AuditTopic(client, "audit", timeout=2)  # type: ignore[arg-type]
    assert client.config["max_block_ms"] == 2000
