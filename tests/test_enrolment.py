"""What a producer shows an authority: a DPoP proof of its new key, and a credential by its own."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest

from mqauth.errors import ConfigurationError, Rejection
from mqauth.testing import FakeClock
from mqauth.wire import dpop, enrolment, jws
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import Key

NOW = 1_900_000_000
JKT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
URL = "https://authority.prod.example/v1/identity"
ALGORITHMS = ("EdDSA", "ES256", "ES384")


def seen(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims of a JWS, read by PyJWT."""
    return jwt.get_unverified_header(token), jwt.decode(token, options={"verify_signature": False})


def proof(key: Key, *, url: str = URL, credential: str = "token") -> str:
    """Return a proof made at a fixed moment."""
    return dpop.proof(
        key,
        method="POST",
        url=url,
        credential=credential,
        clock=FakeClock(NOW),
        randomness=lambda size: b"r" * size,
    )


def credential(key: Key, **changes: Any) -> str:
    """Return a credential made at a fixed moment."""
    said: dict[str, Any] = {
        "issuer": "https://orders.example", "subject": "orders-api", "authority": "https://authority.prod.example",
        "jkt": JKT, "clock": FakeClock(NOW), "randomness": lambda size: b"r" * size,
    }  # fmt: skip
    return enrolment.credential(LocalSigningKey(key), **(said | changes))


def test_a_proof_shows_no_private_half() -> None:
    """The key in the header has public members only."""
    header, _ = seen(proof(Key.generate("ES256")))
    assert header["jwk"].keys() == {"kty", "crv", "x", "y"}


def test_a_public_key_proves_nothing() -> None:
    """Without the private half there is no proof."""
    with pytest.raises(ConfigurationError, match="proves nothing"):
        proof(Key.generate().public_only)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "RS256", "PS256"])
def test_a_credential_is_a_jws_by_the_producers_key(algorithm: str) -> None:
    """Another library verifies a credential; its header is exactly typ, alg and kid, its audience one text."""
    key = Key.generate(algorithm)
    token = credential(key)
    said = jwt.decode(
        token, key.public, algorithms=[algorithm], audience="https://authority.prod.example",
        options={"verify_exp": False, "verify_iat": False},
    )  # fmt: skip
    assert jwt.get_unverified_header(token) == {"typ": "mqauth-enrol+jwt", "alg": algorithm, "kid": key.kid}
    assert json.loads(json.dumps(said)) == {
        "iss": "https://orders.example", "sub": "orders-api", "aud": "https://authority.prod.example", "iat": NOW,
        "exp": NOW + 60, "jti": said["jti"], "cnf": {"jkt": JKT},
    }  # fmt: skip


@pytest.mark.parametrize("lifetime", [0, 301, -1])
def test_a_credential_lives_for_minutes(lifetime: int) -> None:
    """A credential of no time, or of more than 300 s, is refused where it would be made."""
    with pytest.raises(ConfigurationError, match="1 to 300"):
        credential(Key.generate(), lifetime=lifetime)


def test_a_key_enrols_for_its_own_subjects_only() -> None:
    """A key that names its subjects makes no credential for another one."""
    key = Key.generate(subjects=["orders-api"])
    assert seen(credential(key))[1]["sub"] == "orders-api"
    with pytest.raises(ConfigurationError, match="does not speak"):
        credential(key, subject="stock-api")


@pytest.mark.parametrize("name", ["issuer", "subject", "authority"])
@pytest.mark.parametrize("text", ["", "a" * 257, "line\nbreak"])
def test_names_have_their_limits(name: str, text: str) -> None:
    """Names that an authority would refuse are refused here."""
    with pytest.raises(ConfigurationError, match="names"):
        credential(Key.generate(), **{name: text})


def test_a_credential_is_no_message_token() -> None:
    """A consumer refuses a credential by its type."""
    with pytest.raises(Rejection) as caught:
        jws.take_apart(credential(Key.generate()).encode())
    assert caught.value.reason == "token_type"
