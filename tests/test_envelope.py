"""Where the token sits and what it binds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mqauth.errors import MalformedMessage, Reason, Rejection
from mqauth.wire import envelope
from mqauth.wire.claims import Binding
from mqauth.wire.message import PROTECTED_PROPERTIES, Message, form_of

ReasonOf = Callable[[Callable[[], object]], Reason]
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


def test_case_is_folded_in_ascii_alone(rabbit: Maker) -> None:
    """No verdict depends on a version of Unicode: letters beyond ASCII have no case."""
    for pair in (("\u00c4", "\u00e4"), ("\u212a", "k"), ("\u03a3", "\u03c3")):
        assert envelope.bind(rabbit(headers=tuple((name, 1) for name in pair))).hdr == pair
    with pytest.raises(MalformedMessage):
        envelope.bind(rabbit(headers=(("\u00e4A", 1), ("\u00e4a", 2))))


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


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ((), Reason.TOKEN_MISSING),
        ((("tenant", "x"),), Reason.TOKEN_MISSING),
        ((("Mqauth-Token", "x"),), Reason.TOKEN_MISSING),
        ((("mqauth-token ", "x"),), Reason.TOKEN_MISSING),
        ((("mqauth-token", "x"), ("MQAUTH-TOKEN", "x")), Reason.TOKEN_REPEATED),
        ((("mqauth-to\u212aen", "x"),), Reason.TOKEN_MISSING),
        ((("mqauth-token", "x" * 8193),), Reason.TOKEN_OVERSIZE),
        ((("mqauth-token", "\u00e9" * 4097),), Reason.TOKEN_OVERSIZE),
        ((("mqauth-token", "\u00e9" * 4096),), Reason.TOKEN_MALFORMED),
        ((("mqauth-token", b"x" * 8193),), Reason.TOKEN_MALFORMED),
        *[((("mqauth-token", value),), Reason.TOKEN_MALFORMED)
          for value in (None, 1, True, b"x", ("x",), {"a": "x"}, "\u00e9", "\ud800", 1.5)],
    ],
)  # fmt: skip
def test_rabbitmq_has_exactly_one_text_token(
    headers: Any, reason: Reason, rabbit: Maker, reason_of: ReasonOf
) -> None:
    """Missing, repeated in any case, too large, or of another type: each has its reason."""
    assert reason_of(lambda: envelope.token_of(rabbit(headers=headers))) is reason


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ((("mqauth-token", b"x"), ("mqauth-token", b"x")), Reason.TOKEN_REPEATED),
        ((("mqauth-token", b"x" * 8193),), Reason.TOKEN_OVERSIZE),
        ((("mqauth-token", None),), Reason.TOKEN_MALFORMED),
        ((("mqauth-token", "x"),), Reason.TOKEN_MALFORMED),
    ],
)
def test_kafka_has_exactly_one_bytes_token(
    headers: Any, reason: Reason, kafka: Maker, reason_of: ReasonOf
) -> None:
    """On Kafka the token is bytes; a null header is no token."""
    assert reason_of(lambda: envelope.token_of(kafka(headers=headers))) is reason
    assert envelope.token_of(kafka(headers=(("mqauth-token", b"x" * 8192),))) == b"x" * 8192


BENDS: dict[str, tuple[Callable[[Message], Message], Reason]] = {
    "destination": (lambda m: replace(m, destination=m.destination + "x"), Reason.DESTINATION_MISMATCH),
    "body": (lambda m: replace(m, body=b"hellp"), Reason.BODY_MISMATCH),
    "empty body": (lambda m: replace(m, body=b""), Reason.BODY_MISMATCH),
    "tombstone": (lambda m: replace(m, body=None), Reason.BODY_MISMATCH),
    "header removed": (lambda m: replace(m, headers=m.headers[:-1]), Reason.HEADERS_MISMATCH),
    "header repeated": (lambda m: replace(m, headers=(*m.headers, m.headers[-1])), Reason.HEADERS_MISMATCH),
    "header twin": (lambda m: replace(m, headers=(*m.headers, ("TENANT", b"x"))), Reason.HEADERS_MISMATCH),
    "header null": (
        lambda m: replace(m, headers=(*m.headers[:-1], (m.headers[-1][0], None))),
        Reason.HEADERS_MISMATCH,
    ),
    "header deep": (lambda m: replace(m, headers=(*m.headers, ("tenant", object()))), Reason.HEADERS_MISMATCH),  # type: ignore[dict-item,arg-type]
}


@pytest.mark.parametrize("bend", BENDS)
@pytest.mark.parametrize("broker", ["rabbit", "kafka"])
def test_each_bound_part_has_its_reason(
    bend: str, broker: str, rabbit: Maker, kafka: Maker, reason_of: ReasonOf
) -> None:
    """Changing any bound part after signing is rejected with the reason of that part."""
    message = rabbit() if broker == "rabbit" else kafka()
    binding = envelope.bind(message)
    check(message, binding)
    change, reason = BENDS[bend]
    assert reason_of(lambda: check(change(message), binding)) is reason


@pytest.mark.parametrize("key", [None, b"", b"43"])
def test_the_record_key_is_bound(key: bytes | None, kafka: Maker, reason_of: ReasonOf) -> None:
    """Another key, an empty one and none are three different things."""
    binding = envelope.bind(kafka())
    assert reason_of(lambda: check(kafka(key=key), binding)) is Reason.RECORD_KEY_MISMATCH
    check(kafka(key=key), envelope.bind(kafka(key=key)))


@pytest.mark.parametrize("name", PROTECTED_PROPERTIES)
def test_each_property_is_bound_on_both_brokers(
    name: str, rabbit: Maker, kafka: Maker, reason_of: ReasonOf
) -> None:
    """Adding, emptying, changing or removing one of the seven is headers_mismatch, though none is listed."""
    for value in (None, "", "a", "b"):
        amqp = rabbit(properties={} if value is None else {name: value})
        record = kafka(headers=() if value is None else ((name, value.encode()),))
        for other in {None, "", "a", "b"} - {value}:
            changed = replace(amqp, properties={} if other is None else {name: other})
            assert reason_of(lambda a=amqp, c=changed: check(c, envelope.bind(a))) is Reason.HEADERS_MISMATCH
            changed = replace(record, headers=() if other is None else ((name, other.encode()),))
            assert reason_of(lambda r=record, c=changed: check(c, envelope.bind(r))) is Reason.HEADERS_MISMATCH


def test_unprotected_properties_are_not_bound(rabbit: Maker) -> None:
    """What brokers and operators may set, such as priority, does not break the token."""
    check(rabbit(properties={**rabbit().properties, "priority": "9"}), envelope.bind(rabbit()))


def test_direct_reply_to_is_bound_without_the_brokers_suffix(rabbit: Maker, reason_of: ReasonOf) -> None:
    """RabbitMQ appends a suffix to direct reply-to; the rest stays bound, and names that only resemble it too."""
    direct = rabbit(properties={"reply-to": "amq.rabbitmq.reply-to"})
    check(replace(direct, properties={"reply-to": "amq.rabbitmq.reply-to.g1h2"}), envelope.bind(direct))
    for other in ("amq.rabbitmq.reply-tox", "amq.rabbitmq.reply", "x.amq.rabbitmq.reply-to.g1"):
        changed = replace(direct, properties={"reply-to": other})
        assert reason_of(lambda c=changed: check(c, envelope.bind(direct))) is Reason.HEADERS_MISMATCH


@pytest.mark.parametrize("value", [None, b"amq.rabbitmq.reply-to.x", 7])
def test_a_reply_to_that_is_no_text_is_bound_as_it_is(value: Any, rabbit: Maker, reason_of: ReasonOf) -> None:
    """A transport of one's own may hand over a reply-to of another type: it is bound, and breaks nothing."""
    odd = rabbit(properties={"reply-to": value})
    check(odd, envelope.bind(odd))
    changed = replace(odd, properties={"reply-to": "x"})
    assert reason_of(lambda: check(changed, envelope.bind(odd))) is Reason.HEADERS_MISMATCH


def test_kafka_knows_no_direct_reply_to(kafka: Maker, reason_of: ReasonOf) -> None:
    """On Kafka the suffix is part of the value."""
    direct = kafka(headers=(("reply-to", b"amq.rabbitmq.reply-to"),))
    changed = replace(direct, headers=(("reply-to", b"amq.rabbitmq.reply-to.x"),))
    assert reason_of(lambda: check(changed, envelope.bind(direct))) is Reason.HEADERS_MISMATCH


def test_a_covered_absent_header_may_not_appear(rabbit: Maker, reason_of: ReasonOf) -> None:
    """A header covered as absent cannot be added, not even with an empty or null value."""
    binding = envelope.bind(rabbit(), ["extra"])
    for value in (None, "", ()):
        changed = rabbit(headers=(*rabbit().headers, ("extra", value)))
        assert reason_of(lambda c=changed: check(c, binding)) is Reason.HEADERS_MISMATCH


def test_occurrences_keep_their_order(kafka: Maker, reason_of: ReasonOf) -> None:
    """Swapping two values of one name is headers_mismatch; moving whole names is not."""
    binding = envelope.bind(kafka())
    head, tenant, first, second = kafka().headers
    assert (
        reason_of(lambda: check(kafka(headers=(head, tenant, second, first)), binding)) is Reason.HEADERS_MISMATCH
    )
    check(kafka(headers=(first, second, tenant, head)), binding)


def test_the_first_difference_decides(rabbit: Maker, reason_of: ReasonOf) -> None:
    """Destination comes before record key, key before body, body before headers."""
    binding = envelope.bind(rabbit())
    changed = rabbit(destination="rabbitmq:a/b", key=b"x", body=b"", headers=())
    order = []
    for fixed in ({"destination": binding.dst}, {"key": None}, {"body": b"hello"}):
        order.append(reason_of(lambda c=changed: check(c, binding)))
        changed = replace(changed, **fixed)
    order.append(reason_of(lambda: check(changed, binding)))
    assert order == [
        Reason.DESTINATION_MISMATCH, Reason.RECORD_KEY_MISMATCH, Reason.BODY_MISMATCH, Reason.HEADERS_MISMATCH
    ]  # fmt: skip


def test_thousands_of_names_cost_linear_work(rabbit: Maker) -> None:
    """20,000 headers and 2,000 covered names bind by one pass over each, counted in lookups."""
    headers = tuple((f"h{number}", number) for number in range(20_000))
    names = [f"h{number}" for number in range(2_000)]
    message = rabbit(headers=headers)
    binding = envelope.bind(message, names)
    check(message, binding)
    assert len(envelope.headers_input(message, names)) < 64 * len(names) + 1024


def test_rejections_name_no_value(rabbit: Maker) -> None:
    """No header value or name of an attacker stands in the error."""
    binding = envelope.bind(rabbit())
    with pytest.raises(Rejection) as caught:
        check(rabbit(headers=(("TENANT", "secret"), *rabbit().headers)), binding)
    assert "secret" not in str(caught.value)
    assert "TENANT" not in str(caught.value)
