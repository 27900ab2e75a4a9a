"""JSON that two readers cannot read differently."""

from __future__ import annotations

import pytest

from mqauth.wire import strict_json as strictjson
from mqauth.wire.strict_json import StrictJSONError


@pytest.mark.parametrize("depth", [1, 4, 8])
def test_nesting_is_bounded_exactly(depth: int) -> None:
    """As many containers as asked for pass, lists and objects counted alike; one more does not."""
    inside, outside = b"[" * depth + b"]" * depth, b"[" * depth + b"{}" + b"]" * depth
    assert strictjson.loads(inside, depth=depth) is not None
    with pytest.raises(StrictJSONError, match="nested too deep"):
        strictjson.loads(outside, depth=depth)


def test_the_error_does_not_repeat_the_text() -> None:
    """What was parsed does not appear in the error."""
    with pytest.raises(StrictJSONError) as caught:
        strictjson.loads(b'{"secret":}', depth=2)
    assert "secret" not in str(caught.value)
