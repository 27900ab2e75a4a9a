"""Where the token sits and what it binds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mqauth.errors import MalformedMessage, Rejection
from mqauth.wire import envelope
from mqauth.wire.claims import Binding
from mqauth.wire.message import Message, form_of

Maker = Callable[..., Message]
TRANSPORT = (
    "x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count", "x-acquired-count", "x-delay",
    "x-stream-offset", "x-opt-anything", "timestamp_in_ms", "BCC", "traceparent", "tracestate", "baggage",
    "b3", "B3", "x-b3-traceid", "X-B3-Sampled", "sentry-trace", "x-datadog-trace-id", "uber-trace-id", "uberctx-a",
    "X-Amzn-Trace-Id", "x-cloud-trace-context", "newrelic", "elastic-apm-traceparent", "x-shovelled",
    "x-shovelled-timestamp", "x-received-from", "x-original-exchange", "x-original-routing-key",
    "mqauth-token", "mqauth-dead-id", "MQAUTH-anything", "X-Opt-A", "X-Death", "Traceparent",
)  # fmt: skip
APPLICATION = (
    "tenant",
    "CC",
    "bcc",
    "x-my",
    "x-deaths",
    "b3x",
    "x-b3",
    "x-shovelled-by",
    "sentry-trace-id",
    "content-type",
    "timestamp",
    "mqauth",
    "",
    "mqauth\u212a",
    "\u212aey",
    "\u1e9e",
)


@pytest.mark.parametrize("name", TRANSPORT)
def test_what_transports_write_is_not_covered(name: str, rabbit: Maker) -> None:
    """Headers that transports add, change or remove are left out by default."""
    assert envelope.is_transport(name)
    assert envelope.application_headers(form_of(rabbit(headers=((name, "x"),)))) == ()


@pytest.mark.parametrize("name", APPLICATION)
def test_everything_else_is_the_applications(name: str, rabbit: Maker) -> None:
    """Any other header is covered by default, on RabbitMQ also one named like a property."""
    assert envelope.bind(rabbit(headers=((name, "x"),))).hdr == (name,)


def check(message: Message, binding: Binding) -> None:
    """Hold a binding against a message."""
    envelope.check(message, binding, envelope.checked_encoder(form_of(message), binding.hdr))


def test_only_what_changes_with_each_delivery_is_broker_written() -> None:
    """Broker-written headers name no content; the application's transport headers do."""
    assert {name for name in (*TRANSPORT, *APPLICATION) if envelope.is_broker_written(name)} == {
        "x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count", "x-acquired-count",
        "x-stream-offset", "x-opt-anything",
    }  # fmt: skip


def test_properties_are_not_listed_on_kafka(kafka: Maker) -> None:
    """On Kafka the seven properties are headers that are always covered, and names stand once."""
    assert envelope.bind(kafka()).hdr == ("tenant", "tag")


def test_cover_chooses_the_names(rabbit: Maker) -> None:
    """A producer may cover fewer headers, or absent ones, each once."""
    assert envelope.bind(rabbit(), ["absent", "tenant", "absent"]).hdr == ("absent", "tenant")


@pytest.mark.parametrize("headers", [(("Tenant", 1), ("tenant", 2)), (("TENANT", 1), ("tenant", 2))])
def test_twins_in_case_cannot_be_signed(headers: Any, rabbit: Maker) -> None:
    """Two names that differ in case only are refused when signing."""
    with pytest.raises(MalformedMessage):
        envelope.bind(rabbit(headers=headers))


def test_covering_twins_in_case_is_refused(rabbit: Maker) -> None:
    """Covering two such names is refused even where neither is present."""
    with pytest.raises(MalformedMessage):
        envelope.bind(rabbit(headers=()), ["a", "A"])


def test_a_property_in_another_case_cannot_be_signed_on_kafka(kafka: Maker) -> None:
    """On Kafka the seven names are covered, so Content-Type is their twin."""
    with pytest.raises(MalformedMessage):
        envelope.bind(kafka(headers=(("Content-Type", b"x"),)))


def test_the_token_is_carried_in_the_brokers_type(rabbit: Maker, kafka: Maker) -> None:
    """A str on RabbitMQ, bytes on Kafka, after the other headers."""
    assert envelope.attach(rabbit(), "t")[-1] == ("mqauth-token", "t")
    assert envelope.attach(kafka(), "t")[-1] == ("mqauth-token", b"t")


@pytest.mark.parametrize("name", ["mqauth-token", "MQAUTH-Token"])
def test_a_second_token_is_refused(name: str) -> None:
    """Names among which a token is already, in any spelling, are refused; others are not."""
    envelope.refuse_token(["tenant", name[:-1]])
    with pytest.raises(MalformedMessage):
        envelope.refuse_token(["tenant", name])


def test_a_token_over_its_size_is_not_attached(rabbit: Maker) -> None:
    """8,192 characters are attached, one more is refused at the producer."""
    assert envelope.attach(rabbit(), "t" * 8192)
    with pytest.raises(MalformedMessage):
        envelope.attach(rabbit(), "t" * 8193)


def test_rejections_name_no_value(rabbit: Maker) -> None:
    """No header value or name of an attacker stands in the error."""
    binding = envelope.bind(rabbit())
    with pytest.raises(Rejection) as caught:
        check(rabbit(headers=(("TENANT", "secret"), *rabbit().headers)), binding)
    assert "secret" not in str(caught.value)
    assert "TENANT" not in str(caught.value)
