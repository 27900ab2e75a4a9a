"""The JSON form: writing never raises. What is written, and what is read, state the vectors."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from mqauth.wire import json_form as jsonform
from mqauth.wire import strict_json as strictjson
from mqauth.wire.message import Message


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
    assert jsonform.value_to_form(datetime(2030, 1, 2)) == {
        "time": "2030-01-02T00:00:00Z"
    }


def test_hostile_names_are_written_as_escapes() -> None:
    """A message an adapter carried over byte for byte is still valid JSON."""
    message = Message(
        destination="rabbitmq:/q",
        body=b"",
        properties={"type": "\ud800"},
        headers=(("\ud800", 1),),
    )
    assert b"\\\\ud800" in strictjson.dumps(jsonform.to_form(message))
