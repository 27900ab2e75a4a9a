"""The compact JWS: strictly three segments, exactly three parameters, and the key's own algorithm."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mqauth.errors import ConfigurationError, Reason, Rejection
from mqauth.wire import base64url, jws
from mqauth.wire import strict_json as strictjson
from mqauth.wire.keys import ALGORITHMS, Key
from tests.conftest import said

ReasonOf = Callable[[Callable[[], object]], Reason]
KEYS = {algorithm: Key.generate(algorithm) for algorithm in ALGORITHMS}
KEY = KEYS["EdDSA"]
HEADER = {"alg": "EdDSA", "typ": "mqauth+jwt", "kid": KEY.kid}
GONE = object()


def token(key: Key = KEY, payload: bytes = b"{}", **changes: Any) -> bytes:
    """Return a signed token whose header has changes."""
    members = {
        name: value
        for name, value in (HEADER | {"alg": key.algorithm} | changes).items()
        if value is not GONE
    }
    return signed(strictjson.dumps(members), payload, key)


def signed(header: bytes, payload: bytes = b"{}", key: Key = KEY) -> bytes:
    """Return a token with exactly these header bytes."""
    data = base64url.encode(header) + b"." + base64url.encode(payload)
    return data + b"." + base64url.encode(jws.LocalSigningKey(key).sign(data))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("other", ALGORITHMS)
def test_the_key_decides_the_algorithm(
    algorithm: str, other: str, reason_of: ReasonOf
) -> None:
    """A token that names another algorithm than its key has is refused, even RS256 for a PS256 key."""
    opened = jws.take_apart(token(KEYS[algorithm], alg=other))
    if other != algorithm:
        assert (
            reason_of(lambda: jws.verify(opened, KEYS[algorithm]))
            is Reason.ALGORITHM_FORBIDDEN
        )


def test_hmac_keyed_with_the_public_key_is_no_way_in(reason_of: ReasonOf) -> None:
    """The classic confusion fails at the list of algorithms, and once more at the key."""
    public = KEY.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    data = base64url.encode(strictjson.dumps(HEADER | {"alg": "HS256"})) + b".e30"
    mac = hmac.digest(public, data, hashlib.sha256)
    assert (
        reason_of(lambda: jws.take_apart(data + b"." + base64url.encode(mac)))
        is Reason.ALGORITHM_FORBIDDEN
    )
    opened = jws.take_apart(token())._replace(
        algorithm="HS256", signature=mac, signing_input=data
    )
    assert reason_of(lambda: jws.verify(opened, KEY)) is Reason.ALGORITHM_FORBIDDEN


def test_the_size_of_a_token_is_bounded_exactly(reason_of: ReasonOf) -> None:
    """8,192 bytes are looked at; one more is token_oversize, unseen."""
    assert (
        reason_of(lambda: jws.take_apart(b"A" * jws.MAX_TOKEN)) is Reason.TOKEN_MALFORMED
    )
    assert (
        reason_of(lambda: jws.take_apart(b"A" * (jws.MAX_TOKEN + 1)))
        is Reason.TOKEN_OVERSIZE
    )


def test_a_public_key_cannot_sign() -> None:
    """Signing needs the private half."""
    with pytest.raises(ConfigurationError):
        jws.LocalSigningKey(KEY.public_only)


def test_an_opened_token_does_not_show_itself() -> None:
    """What is replayable of a token is in no repr, and so in no log line."""
    raw = token(payload=b'{"a":"secret"}')
    shown = repr(jws.take_apart(raw))
    assert not any(segment.decode() in shown for segment in raw.split(b"."))
    assert "secret" not in shown


def test_a_rejection_does_not_repeat_the_token() -> None:
    """No segment of a bad token stands in the error."""
    with pytest.raises(Rejection) as caught:
        jws.take_apart(b"c2VjcmV0LXRva2Vu.!.")
    assert "c2VjcmV0" not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        1,
        "yes",
        object(),
        [True],
        ValueError(),
        TypeError(),
        RuntimeError(),
        MemoryError(),
    ],
)
def test_only_true_itself_is_a_good_signature(
    answer: object, monkeypatch: pytest.MonkeyPatch, reason_of: ReasonOf
) -> None:
    """What a library answers is not taken by its truthiness, and what it raises is an invalid signature."""

    def verify(*_: object) -> object:
        return said(answer)

    tokens = [(key, jws.take_apart(token(key))) for key in (KEYS["EdDSA"], KEYS["ES256"])]
    monkeypatch.setattr(jws, "ed25519_holds", verify)
    monkeypatch.setattr(type(jws._PYJWT["ES256"]), "verify", verify)
    for key, opened in tokens:
        assert (
            reason_of(lambda key=key, opened=opened: jws.verify(opened, key))
            is Reason.SIGNATURE_INVALID
        )
