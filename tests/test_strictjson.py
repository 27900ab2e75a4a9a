"""JSON that two readers cannot read differently."""

from __future__ import annotations

import pytest

from mqauth.wire import strict_json as strictjson
from mqauth.wire.strict_json import StrictJSONError


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"a":1}', {"a": 1}),
        (b' [1, 2.5, true, false, null, "\\u00e9"] ', [1, 2.5, True, False, None, "\u00e9"]),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b"9007199254740992", 2**53),
        (b"-9007199254740992", -(2**53)),
        (b"-0", 0),
        (b"1e3", 1000.0),
        (b"1e-999", 0.0),
    ],
)
def test_plain_json_is_read(raw: bytes, value: object) -> None:
    """What every reader understands alike is accepted."""
    assert strictjson.loads(raw, depth=2) == value


@pytest.mark.parametrize(
    "raw",
    [
        b"", b" ", b"{", b"{}x", b"{} {}", b"\xff", b"\xef\xbb\xbf{}", b'"\xed\xa0\x80"', b"'a'", b"{a:1}",
        b"[1,]", b"01",
        b"+1", b"1.", b".5", b"0x1", b'"\x00"', b'"\n"', b"NaN", b"Infinity", b"-Infinity", b"[NaN]", b"1e999",
        b"-1e999", b"9007199254740993", b"-9007199254740993", b"1" * 5000, b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":2}', b'{"x":{"a":1,"a":2}}', b'"\\ud800"', b'"\\udc00\\ud800"', b'{"\\ud800":1}',
        b'["\\ud83d"]', b"[" * 100_000, b'{"a":' * 100_000, b"\x00", b"nul", b'{"a":1}\x00',
        "\u0661".encode(),
    ],
    ids=lambda raw: repr(raw[:24]),
)  # fmt: skip
def test_everything_ambiguous_is_refused(raw: bytes) -> None:
    """Duplicates, NaN, rounding integers, overflow, surrogates, junk: one error type, whatever is wrong."""
    with pytest.raises(StrictJSONError):
        strictjson.loads(raw, depth=8)


@pytest.mark.parametrize("depth", [1, 4, 8])
def test_nesting_is_bounded_exactly(depth: int) -> None:
    """As many containers as asked for pass, lists and objects counted alike; one more does not."""
    inside, outside = b"[" * depth + b"]" * depth, b"[" * depth + b"{}" + b"]" * depth
    assert strictjson.loads(inside, depth=depth) is not None
    with pytest.raises(StrictJSONError, match="nested too deep"):
        strictjson.loads(outside, depth=depth)


def test_a_scalar_nests_in_nothing() -> None:
    """A text or number at the top has depth 0."""
    assert strictjson.loads(b'"a"', depth=0) == "a"


def test_the_error_does_not_repeat_the_text() -> None:
    """What was parsed does not appear in the error."""
    with pytest.raises(StrictJSONError) as caught:
        strictjson.loads(b'{"secret":}', depth=2)
    assert "secret" not in str(caught.value)


def test_dumps_is_compact_utf8() -> None:
    """Written JSON has no spaces and no escapes it does not need."""
    assert strictjson.dumps({"a": ["é", 1]}) == '{"a":["é",1]}'.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_dumps_refuses_what_loads_refuses(value: object) -> None:
    """NaN and infinities are not written."""
    with pytest.raises(ValueError, match="JSON compliant"):
        strictjson.dumps(value)


@pytest.mark.parametrize("number", [2**53 + 1, 2**63 - 1, -(2**63), 0])
def test_wide_integers_have_64_bits(number: int) -> None:
    """Where asked for, integers as AMQP has them are read exactly."""
    assert strictjson.loads(str(number).encode(), depth=0, wide=True) == number


@pytest.mark.parametrize("raw", [str(2**63), str(-(2**63) - 1), "1" * 5000, "-" + "9" * 20])
def test_wide_integers_have_no_more_than_64_bits(raw: str) -> None:
    """Beyond them the text is refused, however long."""
    with pytest.raises(StrictJSONError):
        strictjson.loads(raw.encode(), depth=0, wide=True)
