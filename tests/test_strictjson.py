"""JSON that two readers cannot read differently."""

from __future__ import annotations

import pytest

from mqauth.wire import strict_json as strictjson
from mqauth.wire.strict_json import StrictJSONError


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


@pytest.mark.parametrize(
    "raw", [str(2**63), str(-(2**63) - 1), "1" * 5000, "-" + "9" * 20]
)
def test_wide_integers_have_no_more_than_64_bits(raw: str) -> None:
    """Beyond them the text is refused, however long."""
    with pytest.raises(StrictJSONError):
        strictjson.loads(raw.encode(), depth=0, wide=True)
