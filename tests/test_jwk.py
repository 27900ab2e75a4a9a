"""JWK Sets: a bad key is skipped and reported, a good one beside it goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mqauth.errors import ConfigurationError
from mqauth.wire import base64url, jwk
from mqauth.wire.keys import ALGORITHMS, Key, KeySet, Revocation, jwk_members

KEYS = {algorithm: Key.generate(algorithm, subjects=["a"]) for algorithm in ALGORITHMS}
GOOD = {algorithm: jwk_members(key) for algorithm, key in KEYS.items()}
GONE = object()


def bent(algorithm: str = "EdDSA", **changes: Any) -> dict[str, Any]:
    """Return a good JWK with changes."""
    return {name: value for name, value in (GOOD[algorithm] | changes).items() if value is not GONE}


def octets(raw: bytes) -> str:
    """Return base64url text."""
    return base64url.encode(raw).decode()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_published_key_is_read_back(algorithm: str) -> None:
    """What is dumped loads to the same keys."""
    keys = KeySet([KEYS[algorithm]])
    raw = json.dumps(jwk.dump_key_set(keys)).encode()
    assert jwk.load_key_set(raw).keys == keys.keys


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ("x", "no JSON object"), (None, "no JSON object"), ([], "no JSON object"),
        (bent(d="AA"), "private"), (bent(k="AA"), "private"), (bent("RS256", p="AA"), "private"),
        ({"kty": "oct", "kid": "a", "k": "AA"}, "symmetric"),
        (bent(kid=GONE), "kid"), (bent(kid=""), "kid"), (bent(kid="x" * 129), "kid"), (bent(kid=1), "kid"),
        (bent(kid="a\x1b"), "kid"), (bent(kid=["a"]), "kid"),
        (bent(use="enc"), "use"), (bent(use=None), "use"), (bent(key_ops=["sign"]), "key_ops"),
        (bent(key_ops="verify"), "key_ops"), (bent(key_ops=[]), "key_ops"),
        (bent(kty="oct"), "kty"), (bent(kty=["OKP"]), "kty"), (bent(crv="X25519"), "kty"),
        (bent(crv="Ed448"), "kty"),
        (bent("ES256", crv="secp256k1"), "kty"), (bent(kty=GONE), "kty"),
        (bent(x=GONE), "malformed"), (bent(x=1), "malformed"), (bent(x="é"), "malformed"),
        (bent(x="AA"), "malformed"),
        (bent(x=GOOD["EdDSA"]["x"] + "="), "malformed"),
        (bent("ES256", x=octets(bytes(32))), "malformed"), (bent("ES256", y=octets(bytes(31))), "malformed"),
        (bent("ES384", x=octets(b"\xff" * 48)), "malformed"), (bent("ES256", x=octets(bytes(33))), "malformed"),
        (bent("RS256", n=octets(b"\xff" * 1025)), "malformed"),
        (bent("RS256", e=octets(b"\x01" * 9)), "malformed"),
        (bent("RS256", n=octets(b"\xff" * 128)), "RSA keys have"), (bent("RS256", e=octets(b"\x03")), "exponent"),
        (bent("RS256", e=octets(b"\x02")), "malformed"), (bent("RS256", n=""), "malformed"),
        (bent("RS256", alg=GONE), "without alg"), (bent(alg=1), "alg is no text"),
        (bent(alg="HS256"), "algorithm"),
        (bent(alg="none"), "algorithm"), (bent(alg="ES256"), "algorithm"),
        (bent("RS256", alg="RS512"), "algorithm"),
        (bent(mqauth_sub="orders"), "mqauth_sub"), (bent(mqauth_sub=None), "mqauth_sub"),
        (bent(mqauth_sub=[1]), "mqauth_sub"), (bent(mqauth_sub=[""]), "mqauth_sub"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_a_bad_key_is_skipped_with_its_position(members: object, what: str) -> None:
    """A key that cannot be used is left out and reported; the next one is used."""
    found = jwk.load_key_set({"keys": [members, GOOD["ES384"]]})
    assert [key.algorithm for key in found] == ["ES384"]
    assert found.skipped[0].startswith("key 0: ")
    assert what in found.skipped[0]


@pytest.mark.parametrize("point", sorted(jwk._SMALL_ORDER))
def test_points_of_small_order_are_skipped(point: bytes) -> None:
    """Under such a key one signature fits many messages."""
    found = jwk.load_key_set({"keys": [bent(x=octets(point))]})
    assert len(found.keys) == 0
    assert len(found.skipped) == 1


@pytest.mark.parametrize("expires", [None, "5", 5.0, True, -1, []])
def test_a_malformed_exp_counts_as_revoked(expires: object) -> None:
    """An end that cannot be read must not mean no end."""
    assert jwk.load_key(bent(exp=expires)).revocation == Revocation(reason="malformed exp")


@pytest.mark.parametrize(
    "revoked", [None, True, 5, "x", [], {}, {"revoked_at": None}, {"revoked_at": "5"}, {"revoked_at": True},
                {"revoked_at": -1}, {"revoked_at": 1.5}]
)  # fmt: skip
def test_a_malformed_revocation_counts_as_wholly_revoked(revoked: object) -> None:
    """A revocation that cannot be read revokes from the beginning."""
    key = jwk.load_key(bent(revoked=revoked, exp=9))
    assert key.revocation == Revocation(revoked_at=0, reason="malformed revoked")
    assert key.expires == 9


def test_a_revocation_is_read_with_its_time_and_reason() -> None:
    """A reason that is no text is dropped, the revocation is not."""
    assert jwk.load_key(bent(revoked={"revoked_at": 7, "reason": "lost"})).revocation == Revocation(
        revoked_at=7, reason="lost"
    )
    assert jwk.load_key(bent(revoked={"revoked_at": 7, "reason": 1})).revocation == Revocation(revoked_at=7)


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":null}', b'{"keys":[],"keys":[]}', b"\xff",
    b" " * (256 * 1024 + 1),
     b'{"keys":' + b"[" * 10_000, {"keys": "x"}, {}, []],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_a_document_that_is_no_key_set_is_a_configuration_error(document: Any) -> None:
    """Anything but a bounded JSON object with a list of keys is refused, with its name."""
    with pytest.raises(ConfigurationError, match=r"^jwks\.json: "):
        jwk.load_key_set(document, name="jwks.json")


def test_the_size_limit_is_inclusive() -> None:
    """256 KiB pass."""
    document = b'{"keys":[]}'
    assert jwk.load_key_set(document + b" " * (jwk.MAX_DOCUMENT - len(document))).keys == ()
