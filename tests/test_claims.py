"""The claim set: every limit at its edge, every member strict."""

from __future__ import annotations

from typing import Any

import pytest

from mqauth.errors import Rejection
from mqauth.wire import claims
from mqauth.wire import strict_json as strictjson

DIGEST = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"
BINDING: dict[str, Any] = {
    "v": 1,
    "dst": "kafka:orders",
    "bod": DIGEST,
    "key": None,
    "hdr": ["a", "b"],
    "hds": DIGEST,
}
CLAIMS: dict[str, Any] = {
    "iss": "i", "sub": "s", "aud": "a", "iat": 1, "exp": 2, "jti": "j" * 16, "mqa": BINDING,
}  # fmt: skip


def parse(changes: dict[str, Any] | None = None, binding: dict[str, Any] | None = None) -> claims.Claims:
    """Parse honest claims with changes."""
    found = CLAIMS | {"mqa": BINDING | (binding or {})} | (changes or {})
    return claims.parse(strictjson.dumps(found))


def test_parsed_claims_round_trip() -> None:
    """What is built is what is parsed, unknown claims and nbf included."""
    found = parse({"nbf": 0, "role": {"x": [1]}})
    assert found.nbf == 0
    assert found.extra == {"role": {"x": [1]}}
    assert claims.parse(claims.build(found)) == found


def test_no_value_of_a_bad_claim_is_repeated() -> None:
    """The detail names the claim and never its value."""
    with pytest.raises(Rejection) as caught:
        parse({"sub": "secret" * 100})
    assert "secret" not in str(caught.value)
