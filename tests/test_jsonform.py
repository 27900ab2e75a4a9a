"""The JSON form: what is written is what is read, reading is strict, and writing never raises."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from mqauth.errors import MalformedMessage
from mqauth.wire import json_form as jsonform
from mqauth.wire import strict_json as strictjson
from mqauth.wire.envelope import MAX_DEPTH
from mqauth.wire.message import NO_ORIGIN, Message, Origin

RABBIT: dict[str, Any] = {"destination": "rabbitmq:shop/orders", "body": "aGk="}
KAFKA: dict[str, Any] = {"destination": "kafka:orders", "body": "aGk="}


def short(value: object) -> str:
    """Return a test id; huge integers have no decimal text."""
    try:
        return str(value)[-40:]
    except ValueError:
        return "huge"


VALUES: list[tuple[Any, dict[str, Any]]] = [
    ("é", {"str": "é"}), (b"\x00", {"b64": "AA=="}), (3, {"int": 3}), (True, {"bool": True}),
    (None, {"null": None}),
    (0.5, {"float": 0.5}), (2**53, {"int": 2**53}), (2**53 + 1, {"int": "9007199254740993"}),
    (-(2**63), {"int": "-9223372036854775808"}), (2**63 - 1, {"int": "9223372036854775807"}),
    (float("inf"), {"float": "inf"}), (float("-inf"), {"float": "-inf"}),
    (datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC), {"time": "2030-01-02T03:04:05Z"}),
    (datetime(1, 1, 1, tzinfo=UTC), {"time": "0001-01-01T00:00:00Z"}),
    (Decimal("12.50"), {"decimal": "12.50"}), (Decimal("-0.001"), {"decimal": "-0.001"}),
    ((1, (b"", "x")), {"list": [{"int": 1}, {"list": [{"b64": ""}, {"str": "x"}]}]}),
    ({"a": 1, "b": {}}, {"table": [["a", {"int": 1}], ["b", {"table": []}]]}),
]  # fmt: skip


@pytest.mark.parametrize(("value", "form"), VALUES, ids=short)
def test_each_value_has_one_tag_and_comes_back(value: Any, form: dict[str, Any]) -> None:
    """Every AMQP value type survives strict JSON."""
    assert jsonform.value_to_form(value) == form
    again = jsonform.value_from_form(strictjson.loads(strictjson.dumps(form), depth=8))
    assert again == value
    assert type(again) is type(value)


def test_nan_comes_back() -> None:
    """A float that is no number is written by name."""
    assert jsonform.value_to_form(float("nan")) == {"float": "nan"}
    assert str(jsonform.value_from_form({"float": "nan"})) == "nan"


def test_a_table_may_be_an_object_too() -> None:
    """People write tables as objects."""
    assert jsonform.value_from_form({"table": {"a": {"int": 1}}}) == {"a": 1}


@pytest.mark.parametrize(
    "tagged",
    [
        None, 1, "x", [], {}, {"str": "a", "int": 1}, {"text": "a"}, {"str": 1}, {"str": None}, {"b64": "é"},
        {"b64": "A"},
        {"b64": "AA"}, {"b64": "AA==\n"}, {"b64": 1}, {"int": 1.0}, {"int": True}, {"int": "x"}, {"int": 2**63},
        {"int": "007"}, {"int": "-0"}, {"int": "9223372036854775808"},
        {"int": -(2**63) - 1}, {"int": "1" * 21}, {"int": "99999999999999999999"}, {"int": "\u0661"},
        {"int": 1 << 9000},
        {"float": "x"}, {"float": True}, {"float": None}, {"float": 10**400}, {"float": {}}, {"bool": 1},
        {"bool": "true"},
        {"null": 0}, {"null": False}, {"time": 0}, {"time": "2030-01-02"}, {"time": "2030-13-02T03:04:05Z"},
        {"time": "2030-01-02T03:04:05+00:00"}, {"time": "2030-01-02T03:04:05.5Z"},
        {"time": "\u0662030-01-02T03:04:05Z"},
        {"decimal": 1}, {"decimal": "1e9"}, {"decimal": "NaN"}, {"decimal": "1."}, {"decimal": "\u0661"},
        {"decimal": "1" * 301}, {"list": {}}, {"list": None}, {"list": [1]}, {"table": []} | {"x": 1},
        {"table": 1},
        {"table": [["a"]]}, {"table": [[1, {"int": 1}]]}, {"table": [["a", {"int": 1}], ["a", {"int": 2}]]},
        {"table": ["ab"]}, {"table": [["a", {"int": 1}, 3]]},
    ],
    ids=short,
)  # fmt: skip
def test_a_value_out_of_form_is_malformed(tagged: Any) -> None:
    """No coercion, no second spelling, and no error but ours."""
    with pytest.raises(MalformedMessage):
        jsonform.value_from_form(tagged)


@pytest.mark.parametrize("tag", ["list", "table"])
def test_nesting_is_that_of_the_encoding(tag: str) -> None:
    """What can be signed can be written and read: 32 containers, and not one more."""
    value: Any = "x"
    for _ in range(32):
        value = (value,) if tag == "list" else {"a": value}
    form = jsonform.value_to_form(value)
    assert jsonform.value_from_form(form) == value
    with pytest.raises(MalformedMessage):
        jsonform.value_from_form({"list": [form]})


@pytest.mark.parametrize(
    "value",
    [10**5000, Decimal("1e999999999"), Decimal("NaN"), object(), [1], 1j, "\ud800", {"\ud800": 1}, {1: 2},
     datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
     datetime.max.replace(tzinfo=timezone(timedelta(hours=-14)))],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_writing_what_no_broker_carries_names_it(value: Any) -> None:
    """A dead letter can be written whatever a sender put in it, at once and as valid JSON."""
    assert len(strictjson.dumps(jsonform.value_to_form(value))) < 200


def test_writing_a_bottomless_value_cuts_it() -> None:
    """A hundred thousand tables in each other are cut at 32."""
    value: Any = "x"
    for _ in range(100_000):
        value = {"a": value}
    assert b"(nested too deep)" in strictjson.dumps(jsonform.value_to_form(value))


@pytest.mark.parametrize("depth", [1, 22, 23, MAX_DEPTH])
def test_json_depth_is_what_the_deepest_form_takes(depth: int) -> None:
    """The bound for readers is what tables of 32 levels take, and less is too little."""
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    message = Message(destination="rabbitmq:/q", body=b"", headers=(("deep", value),))
    raw = strictjson.dumps(jsonform.to_form(message))
    assert jsonform.from_form(strictjson.loads(raw, depth=jsonform.JSON_DEPTH)) == message
    needed = jsonform.JSON_DEPTH - 3 * (MAX_DEPTH - depth)
    with pytest.raises(strictjson.StrictJSONError, match="too deep"):
        strictjson.loads(raw, depth=needed - 1)


@pytest.mark.parametrize("tag", ["table", "list"])
def test_a_form_beyond_the_depth_is_malformed(tag: str) -> None:
    """A value of 33 levels, which no consumer accepts, is not read from a form either."""
    form: Any = {"int": 1}
    for _ in range(MAX_DEPTH + 1):
        form = {tag: [["a", form]] if tag == "table" else [form]}
    with pytest.raises(MalformedMessage, match="deeper than 32"):
        jsonform.value_from_form(form)


@pytest.mark.usefixtures("other_zone")
def test_a_time_without_zone_is_written_as_utc() -> None:
    """As the clients mean it, wherever the machine stands."""
    assert jsonform.value_to_form(datetime(2030, 1, 2)) == {"time": "2030-01-02T00:00:00Z"}


MESSAGES = [
    Message(destination="kafka:orders", body=None, key=b"\xff", headers=(("a", b"1"), ("a", None), ("é", b""))),
    Message(destination="kafka:orders", body=b"", origin=Origin(
        scope="s", cluster="c", topic="orders", topic_id="i" * 22, partition=0, offset=0, timestamp_ms=0,
        timestamp_type="append")),
    Message(destination="rabbitmq:/q", body=b"\x00",
    properties={"content-type": "a", "user-id": "u", "priority": "5"},
            headers=tuple((str(number), value) for number, (value, _) in enumerate(VALUES)),
            origin=Origin(scope="s", queue="q", exchange="", routing_key="q", redelivered=True)),
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.destination)
def test_a_message_comes_back_from_its_form(message: Message) -> None:
    """Form and back is the identity, through JSON text."""
    assert jsonform.from_form(json.loads(json.dumps(jsonform.to_form(message)))) == message


def test_without_origin_a_message_is_a_delivery_of_its_own() -> None:
    """No origin, or null, says nothing."""
    assert jsonform.from_form(RABBIT).origin == jsonform.from_form(RABBIT | {"origin": None}).origin == NO_ORIGIN
    assert "origin" not in jsonform.to_form(jsonform.from_form(RABBIT))


def test_on_kafka_text_and_properties_are_headers_of_bytes() -> None:
    """A str is its UTF-8 bytes, a property a header of its hyphenated name."""
    form = KAFKA | {"properties": {"content_type": "é", "app_id": None}, "headers": [["a", {"str": "é"}]]}
    assert jsonform.from_form(form).headers == (("content-type", "é".encode()), ("a", "é".encode()))


def test_number_properties_are_text() -> None:
    """Properties that AMQP has as numbers are kept as their digits."""
    assert jsonform.from_form(RABBIT | {"properties": {"priority": 5}}).properties == {"priority": "5"}


@pytest.mark.parametrize(
    "form",
    [
        None, [], "x", {}, {"destination": "kafka:a"}, {"body": None}, RABBIT | {"extra": 1},
        RABBIT | {"destination": 1}, RABBIT | {"destination": "orders"}, RABBIT | {"destination": "kafka:%61"},
        RABBIT | {"key": "AA=="}, RABBIT | {"body": None}, RABBIT | {"body": "x"}, RABBIT | {"body": 1},
        KAFKA | {"key": 1},
        RABBIT | {"properties": []}, RABBIT | {"properties": {"content-type": "a"}},
        RABBIT | {"properties": {"x": "a"}},
        RABBIT | {"properties": {"type": True}}, RABBIT | {"properties": {"type": 1.5}},
        RABBIT | {"properties": {"type": "\ud800"}}, RABBIT | {"properties": {"priority": 1 << 9000}},
        RABBIT | {"headers": {}}, RABBIT | {"headers": [["a"]]}, RABBIT | {"headers": [[1, {"int": 1}]]},
        RABBIT | {"headers": ["ab"]}, RABBIT | {"headers": [["a", 1]]},
        RABBIT | {"headers": [["a", {"int": 1}], ["a", {"int": 1}]]},
        KAFKA | {"headers": [["a", {"int": 1}]]}, KAFKA | {"headers": [["a", {"list": []}]]},
        KAFKA | {"headers": [["a", {"str": "\ud800"}]]}, KAFKA | {"properties": {"type": "\ud800"}},
        *[KAFKA | {"origin": origin} for origin in (
            [], "x", {"place": 1}, {"topic": 1}, {"topic": "other"}, {"partition": "0"}, {"offset": True},
            {"offset": -1}, {"timestamp_ms": 1.5}, {"timestamp_type": "log"}, {"timestamp_type": ["append"]},
            {"redelivered": 1}, {"redelivered": True}, {"queue": "q"}, {"exchange": ""}, {"scope": []},
            {"topic_id": 1})],
        *[RABBIT | {"origin": origin} for origin in (
            {"exchange": "other"}, {"routing_key": "other"}, {"topic": "t"}, {"partition": 0}, {"offset": 0},
            {"cluster": "c"}, {"topic_id": "i"})],
    ],
    ids=short,
)  # fmt: skip
def test_a_message_out_of_form_is_malformed(form: Any) -> None:
    """Unknown members, wrong types, doubled names and contradictions are refused with one error type."""
    with pytest.raises(MalformedMessage) as caught:
        jsonform.from_form(form)
    assert len(str(caught.value)) < 100


def test_hostile_names_are_written_as_escapes() -> None:
    """A message an adapter carried over byte for byte is still valid JSON."""
    message = replace(MESSAGES[2], properties={"type": "\ud800"}, headers=(("\ud800", 1),))
    assert b"\\\\ud800" in strictjson.dumps(jsonform.to_form(message))
