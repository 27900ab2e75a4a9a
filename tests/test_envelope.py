"""Where the token sits and what it binds."""

from __future__ import annotations

from collections.abc import Callable

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
    envelope.check(
        message, binding, envelope.checked_encoder(form_of(message), binding.hdr)
    )


def test_only_what_changes_with_each_delivery_is_broker_written() -> None:
    """Broker-written headers name no content; the application's transport headers do."""
    assert {name for name in (*TRANSPORT, *APPLICATION) if envelope.is_broker_written(name)} == {
        "x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count", "x-acquired-count",
        "x-stream-offset", "x-opt-anything",
    }  # fmt: skip


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
