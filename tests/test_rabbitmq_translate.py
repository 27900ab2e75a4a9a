"""RabbitMQ translation: total on the way in, exact about the wire on the way out."""

from __future__ import annotations

import json
import struct
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from types import SimpleNamespace
from typing import Any

import aio_pika
import pytest
from aiormq.abc import DeliveredMessage
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp import commands, decode, encode
from pamqp.header import ContentHeader

from mqauth import MalformedMessage, Message, Reason, Rejection
from mqauth.brokers import pika
from mqauth.brokers.amqp_messages import may_be_too_large
from mqauth.brokers.amqp_values import on_wire
from mqauth.brokers.rabbitmq.consumer import Unreadable, delivered
from mqauth.brokers.rabbitmq.translate import (
    MAX_HEADER_FRAME,
    Measured,
    agreed,
    carries,
    from_native,
    scalar_on_wire,
    to_message,
    to_native,
)
from mqauth.letters.dead_letter import DeadLetter, content_digest
from mqauth.wire.json_form import PROPERTIES, from_form, to_form


class Hostile:
    """Something whose every use raises."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("hostile")

    def __repr__(self) -> str:
        raise RuntimeError("hostile")


class Grudging:
    """Something that cannot be shown."""

    def __repr__(self) -> str:
        raise RecursionError


def incoming(**parts: Any) -> Any:
    """Return a delivery as aio-pika gives it, with parts replaced."""
    usual: dict[str, Any] = {
        "body": b"body", "headers": {}, "content_type": None, "content_encoding": None, "type": None,
        "message_id": None, "correlation_id": None, "reply_to": None, "app_id": None, "user_id": None,
        "priority": 0, "delivery_mode": 1, "timestamp": None, "expiration": None, "cluster_id": None,
        "exchange": "shop", "routing_key": "orders.created", "redelivered": False,
    }  # fmt: skip
    return SimpleNamespace(**(usual | parts))


ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.datetimes(),
        st.binary().map(bytearray), st.decimals(), st.builds(object), st.builds(Hostile), st.builds(Grudging),
        st.just(time.gmtime(0)), st.complex_numbers(),
    ),
    lambda inner: st.one_of(
        st.lists(inner), st.tuples(inner), st.dictionaries(st.one_of(st.text(), st.integers()), inner)
    ),
)  # fmt: skip
ATTRIBUTES = sorted(vars(incoming()))


def given_by_aiormq(**properties: Any) -> DeliveredMessage:
    """Return a delivery as aiormq gives it, with these properties."""
    header = ContentHeader(
        body_size=1,
        properties=commands.Basic.Properties(headers={"a": 1}, message_id="m"),
    )
    for name, value in properties.items():
        setattr(header.properties, name, value)
    deliver = commands.Basic.Deliver("c", 7, False, "shop", "k")
    return DeliveredMessage(
        delivery=deliver, header=header, body=b"x", channel=SimpleNamespace()
    )  # type: ignore[arg-type]


@example(mode=3, expiration="60000")
@given(mode=st.none() | st.integers(0, 255), expiration=st.none() | st.text())
def test_every_delivery_has_a_message(mode: int | None, expiration: str | None) -> None:
    """What aio-pika's own message raises for is malformed, with its body, headers, id and tag."""
    found = delivered(given_by_aiormq(delivery_mode=mode, expiration=expiration))
    message = from_native(found, queue="q")
    assert (message.body, message.headers, message.properties["message-id"]) == (
        b"x",
        (("a", 1),),
        "m",
    )
    assert found.delivery_tag == 7
    assert message.properties["delivery-mode"] == str(mode or 1)
    assert (message.malformed is None) == (not isinstance(found, Unreadable))
    if mode in {None, 0, 1, 2}:
        assert message.malformed in {None, "the expiration is no number"}
    else:
        assert message.malformed is not None


@pytest.mark.slow
@example(parts={"timestamp": datetime(1969, 1, 1)}, headers={})
@given(
    parts=st.dictionaries(st.sampled_from(ATTRIBUTES), ANYTHING),
    headers=st.dictionaries(st.text(), ANYTHING),
)
def test_total(parts: dict[str, Any], headers: dict[str, Any]) -> None:
    """Whatever a delivery holds, translating it and making its dead letter never raise."""
    message = from_native(incoming(**({"headers": headers} | parts)), queue="q")
    letter = DeadLetter(
        message=message,
        rejection=Rejection(Reason.MESSAGE_MALFORMED),
        scope="q",
        time=0.0,
        audit="a",
    )
    for form in (letter.whole(carries), letter.in_body(), letter.reference()):
        to_native(form, message_id="m").check()


@pytest.mark.parametrize(
    "make", [lambda: None, object, Hostile, lambda: SimpleNamespace(body=b"kept")]
)
def test_no_delivery_at_all(make: Any) -> None:
    """What is no delivery becomes a malformed message."""
    message = from_native(make(), queue="q", scope="s")
    assert message.malformed is not None
    assert (message.origin.queue, message.origin.scope) == ("q", "s")


def test_origin_and_destination() -> None:
    """Destination and origin are the broker's words, the scope the queue unless told."""
    message = from_native(
        incoming(redelivered=True, exchange="", routing_key="a b"), queue="q"
    )
    assert message.destination == "rabbitmq:/a%20b"
    origin = message.origin
    assert (origin.queue, origin.scope, origin.exchange, origin.routing_key) == (
        "q",
        "q",
        "",
        "a b",
    )
    assert origin.redelivered is True


@pytest.mark.parametrize(
    ("value", "found", "kind"),
    [
        (1_700_000_000_123, 1_700_000_000_123, "append"), (0, 0, "append"),
        *((value, None, None) for value in (True, "1", 1.0, None, -1, datetime(2024, 1, 1, tzinfo=UTC))),
    ],
)  # fmt: skip
def test_append_time(value: Any, found: int | None, kind: str | None) -> None:
    """An integer timestamp_in_ms is offered, for the verifier to believe or not; anything else is no evidence."""
    origin = from_native(incoming(headers={"timestamp_in_ms": value}), queue="q").origin
    assert (origin.timestamp_ms, origin.timestamp_type) == (found, kind)


def test_properties_have_the_json_names() -> None:
    """Every property comes by its hyphenated name and as text, and the JSON form takes them all."""
    message = from_native(
        incoming(
            content_type="a", content_encoding="b", type="c", message_id="d", correlation_id="e", reply_to="f",
            app_id="g", user_id="h", cluster_id="i", priority=3, delivery_mode=2, expiration=1.5,
            timestamp=datetime(1970, 1, 1, 0, 0, 7, tzinfo=UTC),
        ),
        queue="q",
    )  # fmt: skip
    assert set(message.properties) == set(PROPERTIES)
    numbers = {
        name: message.properties[name]
        for name in ("priority", "delivery-mode", "expiration", "timestamp")
    }
    assert numbers == {
        "priority": "3",
        "delivery-mode": "2",
        "expiration": "1500",
        "timestamp": "7",
    }
    assert from_form(to_form(message)) == message


def test_values_in_our_types() -> None:
    """bytearray becomes bytes, a list a tuple, and tables keep their nesting."""
    headers = {"raw": bytearray(b"\xff"), "list": [bytearray(b"a"), {"b": [1]}]}
    assert from_native(incoming(headers=headers), queue="q").headers == (
        ("raw", b"\xff"),
        ("list", (b"a", {"b": (1,)})),
    )


def test_depth_is_bounded() -> None:
    """A header nested beyond 32 is malformed, not an exception, and one of 32 is fine."""
    value: Any = 1
    for _ in range(32):
        value = [value]
    assert from_native(incoming(headers={"deep": value}), queue="q").malformed is None
    assert "deeper" in str(
        from_native(incoming(headers={"deep": [value]}), queue="q").malformed
    )


def test_absent_is_what_pamqp_drops() -> None:
    """An empty text property is bound as absent, since it is not sent."""
    native = aio_pika.Message(b"", content_type="", message_id="m", app_id="a")
    assert to_message(native, exchange="", routing_key="q").properties == {
        "message-id": "m",
        "app-id": "a",
    }


SENDABLE = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(-3e38, 3e38),
        st.text(st.characters(exclude_categories=["Cs"])), st.binary().map(bytearray),
        st.datetimes(datetime(1970, 1, 2), datetime(2105, 1, 1), timezones=st.sampled_from(
            [UTC, timezone(timedelta(hours=-7, minutes=30))])),
        st.builds(lambda number, places: Decimal(number).scaleb(-places),
                  st.integers(-(2**31), 2**31 - 1), st.integers(0, 255)),
    ),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=30), inner)),
)  # fmt: skip


@given(value=SENDABLE)
def test_bound_is_what_is_read(value: Any) -> None:
    """What is bound for a header is what a consumer reads after pamqp's encoding, and can be sent again."""
    (_, read) = decode.field_table(encode.field_table({"x": value}))
    bound = to_message(
        aio_pika.Message(b"", headers={"x": value}), exchange="", routing_key="q"
    ).headers
    assert bound == from_native(incoming(headers=read), queue="q").headers
    assert carries("x", bound[0][1])


@pytest.mark.parametrize(
    ("headers", "what"),
    [
        ({"k" * 129: 1}, "name"), ({"ü" * 65: 1}, "name"), ({1: 1}, "name"), ({"\ud800": 1}, "name"),
        ({"x": {"k" * 129: 1}}, "name"), ({"x": b"raw"}, "bytearray"), ({"x": (1,)}, "bytearray"),
        ({"x": [b"raw"]}, "bytearray"), ({"x": 2**63}, "64 bits"), ({"x": -(2**63) - 1}, "64 bits"),
        ({"x": float("nan")}, "finite"), ({"x": float("inf")}, "finite"), ({"x": 1e300}, "range"),
        ({"x": "\ud800"}, "UTF-8"), ({"x": Decimal("1e20")}, "range"), ({"x": Decimal("NaN")}, "range"),
        ({"x": Decimal("12345678901.5")}, "range"), ({"x": datetime(1969, 1, 1)}, "1970"),
        ({"x": datetime(2107, 1, 1, tzinfo=UTC)}, "2106"), ({"x": object()}, "type"),
        ({"x": time.struct_time((2024, 13, 45, 0, 0, 0, 0, 0, 0))}, "range"), ([("x", 1)], "dict"),
    ],
)  # fmt: skip
def test_unsendable_headers(headers: Any, what: str) -> None:
    """A header that cannot be sent, or would arrive as something else, is refused by what is wrong."""
    with pytest.raises(MalformedMessage, match=what):
        to_message(aio_pika.Message(b"", headers=headers), exchange="", routing_key="q")


@pytest.mark.parametrize(
    ("attribute", "value", "what"),
    [
        ("content_type", "x" * 256, "255"), ("app_id", "ü" * 128, "255"), ("type", "\ud800", "255"),
        ("content_encoding", 5, "must be text"), ("body", "text", "bytes"), ("body", None, "bytes"),
    ],
)  # fmt: skip
def test_unsendable_parts(attribute: str, value: Any, what: str) -> None:
    """A property over 255 bytes or of another type, and a body that is no bytes, are refused."""
    native = aio_pika.Message(b"")
    setattr(native, attribute, value)
    with pytest.raises(MalformedMessage, match=what):
        to_message(native, exchange="", routing_key="q")


@pytest.mark.parametrize(
    "translate",
    [
        partial(to_message, aio_pika.Message(bytes(1000)), exchange="", routing_key="q"),
        partial(pika.to_message, None, bytes(1000), exchange="", routing_key="q"),
    ],
    ids=["aio-pika", "pika"],
)
def test_a_body_has_a_limit(translate: Any) -> None:
    """A body of the broker's limit is taken, one of a byte more refused by its size."""
    assert len(translate(max_body=1000).body) == 1000
    with pytest.raises(MalformedMessage, match="takes 999 bytes"):
        translate(max_body=999)


@pytest.mark.parametrize("routing_key", ["x" * 256, "\ud800", None, 7])
def test_unsendable_routing_key(routing_key: Any) -> None:
    """A routing key over 255 bytes, or no text, is refused."""
    with pytest.raises(MalformedMessage, match="routing key"):
        to_message(aio_pika.Message(b""), exchange="", routing_key=routing_key)


def test_too_deep_to_sign() -> None:
    """A header nested beyond 32 is refused at signing, as verifiers would refuse it."""
    value: Any = 1
    for _ in range(33):
        value = [value]
    with pytest.raises(MalformedMessage, match="32"):
        on_wire(value, scalar_on_wire)


def test_struct_time() -> None:
    """A struct_time is UTC, as pamqp takes it."""
    assert on_wire(time.gmtime(86_400), scalar_on_wire) == datetime(
        1970, 1, 2, tzinfo=UTC
    )


def framed(size: int) -> Measured:
    """Return a message whose header frame has so many bytes."""
    empty = ContentHeader(
        properties=aio_pika.Message(b"", headers={"x": ""}).properties
    ).marshal()
    return Measured(b"", headers={"x": "a" * (size - len(empty))})


def test_header_frame_limit() -> None:
    """A header frame of 131,064 bytes is sent, one of a byte more refused."""
    framed(MAX_HEADER_FRAME).check()
    with pytest.raises(MalformedMessage, match="131065 bytes: the broker takes 131064"):
        framed(MAX_HEADER_FRAME + 1).check()


def test_measured_when_it_is_sent() -> None:
    """Headers that are added to a message after it was made count as soon as a client asks for its properties."""
    native = framed(MAX_HEADER_FRAME)
    native.headers["traceparent"] = "00"
    with pytest.raises(MalformedMessage, match="the broker takes"):
        _ = native.properties


@pytest.mark.parametrize(
    ("channel", "limit"),
    [
        (SimpleNamespace(max_content_size=16_376), 16_376),
        (SimpleNamespace(max_content_size=-8), MAX_HEADER_FRAME),
        (SimpleNamespace(max_content_size=2**20), MAX_HEADER_FRAME), (object(), MAX_HEADER_FRAME),
    ],
)  # fmt: skip
def test_agreed_size(channel: Any, limit: int) -> None:
    """A broker's smaller frames are kept to; frames without a limit, or larger ones, are not made use of."""
    assert agreed(channel) == limit


def test_a_copy_has_every_property() -> None:
    """What is measured is the message: its copy is sent as the same bytes."""
    native = aio_pika.Message(
        b"x", headers={"a": 1}, content_type="text/plain", content_encoding="gzip", priority=3, expiration=60,
        timestamp=1_700_000_000, delivery_mode=2, user_id="guest", reply_to="r", type="t", app_id="app",
        correlation_id="c", message_id="m",
    )  # fmt: skip
    copied = Measured.of(native)
    assert (copied.properties.marshal(), copied.body) == (
        native.properties.marshal(),
        native.body,
    )


def test_unencodable_frame() -> None:
    """A property pamqp cannot encode is refused, not raised as pamqp's own error."""
    native = Measured(b"", priority=1)
    native.priority = 999
    with pytest.raises(MalformedMessage, match="error"):
        native.check()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", 1.1), ("x", 2**63), ("x", float("nan")), ("k" * 129, 1), ("x", datetime(2024, 1, 1)),
        ("x", datetime(2024, 1, 1, 0, 0, 0, 5, tzinfo=UTC)), ("x", Decimal("1E+2")), ("x", {"k" * 129: 1}),
        ("x", (1, 1.1)), ("x", "\ud800"), ("x", Decimal("-0")),
    ],
)  # fmt: skip
def test_not_carried(name: str, value: Any) -> None:
    """A value that would arrive as another one is not carried as a header of a dead letter."""
    assert carries(name, value) is False


def test_doubles_of_others_are_kept_as_metadata() -> None:
    """A 64-bit float of another client, which aio-pika cannot send, is kept exactly in the letter's metadata."""
    (_, read) = decode.field_table(
        struct.pack(">IB1sc", 11, 1, b"x", b"d") + struct.pack(">d", 1e300)
    )
    message = from_native(incoming(headers=read), queue="q")
    letter = DeadLetter(
        message=message,
        rejection=Rejection(Reason.TOKEN_MISSING),
        scope="q",
        time=0,
        audit="a",
    )
    (metadata,) = letter.whole(carries).occurrences("mqauth-dead-metadata")
    assert '["x",{"float":1e+300}]' in str(metadata)


def test_digest_of_a_letter_that_was_sent() -> None:
    """Digest and id survive sending, which sorts a table and makes the letter persistent: both can be restored."""
    message = from_native(incoming(headers={"b": 1, "a": 2}, cluster_id="c"), queue="q")
    letter = DeadLetter(
        message=message,
        rejection=Rejection(Reason.TOKEN_MISSING),
        scope="q",
        time=0,
        audit="a",
    )
    sent = to_native(letter.whole(carries), message_id="m")
    read = from_native(
        incoming(headers=dict(sorted(sent.headers.items())), delivery_mode=2),
        queue="dead",
    )
    metadata = json.loads(str(read.occurrences("mqauth-dead-metadata")[0]))
    restored = replace(
        read,
        destination=str(read.occurrences("mqauth-dead-destination")[0]),
        properties=metadata["properties"],
        headers=tuple(
            pair for pair in read.headers if not pair[0].startswith("mqauth-dead-")
        ),
    )
    assert (
        content_digest(restored)
        == read.occurrences("mqauth-dead-digest")[0]
        == letter.digest
    )


def test_letter_out() -> None:
    """A dead letter is persistent, under a message id of its own, its other properties kept."""
    message = Message(
        destination="rabbitmq:/q",
        body=b"b",
        properties={
            "content-type": "t",
            "priority": "3",
            "timestamp": "7",
            "message-id": "old",
        },
        headers=(("raw", b"\xff"), ("list", (1, {"a": b"b"}))),
    )
    native = to_native(message, message_id="new")
    assert (native.message_id, native.content_type, native.priority) == ("new", "t", 3)
    assert native.delivery_mode is aio_pika.DeliveryMode.PERSISTENT
    assert native.timestamp == datetime(1970, 1, 1, 0, 0, 7, tzinfo=UTC)
    assert native.headers == {
        "raw": bytearray(b"\xff"),
        "list": [1, {"a": bytearray(b"b")}],
    }


@pytest.mark.parametrize(
    ("why", "size", "may"),
    [
        (
            "PRECONDITION_FAILED - message size 17 is larger than configured max size 16",
            17,
            True,
        ),
        (
            "PRECONDITION_FAILED - message size 17 is larger than configured max size 16",
            16,
            False,
        ),
        ("PRECONDITION_FAILED - message size 17 larger than max size 16", 2, False),
        (
            'PRECONDITION_FAILED - invalid message: {unacceptable_type_in_header,"CC",longstr}',
            2,
            True,
        ),
    ],
)
def test_whose_fault_a_closed_channel_is(why: str, size: int, may: bool) -> None:
    """Where RabbitMQ names the limit of sizes, messages within it are not at fault; else each may be."""
    assert may_be_too_large(why, size) is may
