"""The JSON form: what is written is what is read, reading is strict, and writing never raises."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from mqauth.wire import json_form as jsonform
from mqauth.wire import strict_json as strictjson
from mqauth.wire.message import Message, Origin


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


def test_hostile_names_are_written_as_escapes() -> None:
    """A message an adapter carried over byte for byte is still valid JSON."""
    message = replace(MESSAGES[2], properties={"type": "\ud800"}, headers=(("\ud800", 1),))
    assert b"\\\\ud800" in strictjson.dumps(jsonform.to_form(message))
