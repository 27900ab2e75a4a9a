"""Destinations have one spelling."""

from __future__ import annotations

import pytest

from mqauth.errors import MalformedMessage
from mqauth.wire import destination


@pytest.mark.parametrize(
    ("exchange", "routing_key", "text"),
    [
        ("shop", "orders.created", "rabbitmq:shop/orders.created"),
        ("", "queue", "rabbitmq:/queue"),
        ("", "", "rabbitmq:/"),
        ("a/b", "c/d", "rabbitmq:a%2Fb/c%2Fd"),
        ("é", "*#", "rabbitmq:%C3%A9/%2A%23"),
        ("-._~", " %", "rabbitmq:-._~/%20%25"),
        ("a\x00b", "\U0001f600", "rabbitmq:a%00b/%F0%9F%98%80"),
    ],
)
def test_rabbitmq_destinations_round_trip(exchange: str, routing_key: str, text: str) -> None:
    """Exchange and routing key become one canonical text and come back from it."""
    assert destination.rabbitmq(exchange, routing_key) == text
    assert destination.parse(text) == ("rabbitmq", exchange, routing_key)


def test_kafka_destinations_round_trip() -> None:
    """A topic becomes one canonical text and comes back from it."""
    assert destination.kafka("orders.v1") == "kafka:orders.v1"
    assert destination.parse("kafka:orders.v1") == ("kafka", "orders.v1")
    assert destination.is_kafka("kafka:orders")
    assert not destination.is_kafka("rabbitmq:kafka:/x")


@pytest.mark.parametrize(
    "text",
    [
        "", "kafka", "kafka:", "kafka:a/b", "rabbitmq:", "rabbitmq:a", "rabbitmq:a/b/c", "redis:a", "KAFKA:a",
        "Kafka:a", " kafka:a", "kafka:a ", "kafka:a\n", "kafka:%61", "kafka:a%2fb", "kafka:a%2", "kafka:%",
        "kafka:%FF", "kafka:%C0%AF", "kafka:%ED%A0%80", "kafka:\xe9", "kafka:a+b", "kafka:a*", "kafka:%zz",
        "rabbitmq:a%2F", "kafka:%2E", "rabbitmq:a/b?x", "kafka:\ud800",
    ],
)  # fmt: skip
def test_any_other_spelling_is_refused(text: str) -> None:
    """What is not canonical is malformed: encoded unreserved characters, lower-case hex, overlong UTF-8."""
    with pytest.raises(MalformedMessage):
        destination.parse(text)
    with pytest.raises(MalformedMessage):
        destination.parse(text)


def test_a_lone_surrogate_has_no_destination() -> None:
    """A name without UTF-8 form is refused with an error of ours."""
    with pytest.raises(MalformedMessage):
        destination.kafka("\ud800")
