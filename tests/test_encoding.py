"""The encoding under hds: no two lists of headers share their bytes, and nothing but our error comes out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from mqauth.errors import MalformedMessage
from mqauth.wire.envelope import MAX_DEPTH, add_named


def encoded(*values: Any, name: str = "n") -> bytes:
    """Return the encoding of a name with its values."""
    parts: list[bytes] = []
    add_named(parts, name, values)
    return b"".join(parts)


def test_no_two_meanings_share_their_bytes() -> None:
    """Absent, null, empty, repeated, and every type that prints alike are all different."""
    values: list[tuple[Any, ...]] = [
        (), (None,), ("",), (b"",), ((),), ({},), (False,), (0,), (0.0,), (-0.0,), ("0",), (b"0",), (Decimal(0),),
        (Decimal("0.0"),), (datetime(1970, 1, 1, tzinfo=UTC),), (True,), (1,), ("1",), ("1", "1"), (("1", "1"),),
        (("1",), ("1",)), ({"1": "1"},), ("11",), (None, None),
    ]  # fmt: skip
    assert len({encoded(*found) for found in values}) == len(values)


def test_a_table_is_ordered_by_the_bytes_of_its_names() -> None:
    """Brokers may reorder a table, so its order means nothing."""
    assert encoded({"b": 1, "a": 2, "é": 3}) == encoded({"é": 3, "a": 2, "b": 1})


@pytest.mark.parametrize(
    "value",
    [
        -(2**63) - 1, 2**63, 10**5000, Decimal(2**31), Decimal(-(2**31) - 1), Decimal("-0.0"), Decimal("1e10"),
        datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2106, 2, 7, 6, 28, 16, tzinfo=UTC), datetime.max,
        datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
        Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Decimal("1e256"),
        Decimal("1e-256"), Decimal("1e999999"), object(), 1j, [1], bytearray(b"x"), {1: 2}, {None: 1}, "\ud800",
        {"\udfff": 1}, ("\ud800",),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_no_broker_carries_is_malformed(value: Any) -> None:
    """A value without a form on the wire is our own error, never another, and costs no memory."""
    with pytest.raises(MalformedMessage):
        encoded(value)


@pytest.mark.parametrize(
    "wrap", [lambda value: (value,), lambda value: {"a": value}], ids=["list", "table"]
)
def test_nesting_is_32_and_no_more(wrap: Any) -> None:
    """32 containers encode; 33, and a hundred thousand, are malformed."""
    value: Any = "x"
    for _ in range(MAX_DEPTH):
        value = wrap(value)
    assert encoded(value)
    for _ in range(100_000):
        value = wrap(value)
        if _ == 0:
            with pytest.raises(MalformedMessage):
                encoded(value)
    with pytest.raises(MalformedMessage):
        encoded(value)


def test_a_name_without_utf8_form_is_malformed() -> None:
    """A header name with a lone surrogate is refused like a value."""
    with pytest.raises(MalformedMessage):
        encoded(1, name="\ud800")
