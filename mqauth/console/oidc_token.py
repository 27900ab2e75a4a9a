"""An ID token, checked against one login (OpenID Connect Core 1.0, section 3.1.3.7), with joserfc."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from joserfc import jws
from joserfc.jwk import JWKRegistry, Key, RSAKey
from joserfc.jwt import JWTClaimsRegistry

from mqauth.errors import MqauthError
from mqauth.wire import strict_json as strictjson
from mqauth.wire.claims import is_name

ALGORITHMS: Final = frozenset(
    ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519")
)
"""Signatures by a key that only the provider has; never ``none``, never HMAC."""
LEEWAY: Final = 30
"""Seconds of clock difference allowed."""
MAX_AGE: Final = 600
"""Seconds since it was issued: it comes fresh from the token endpoint."""
_KEY_TYPES: Final = ("RSA", "EC", "OKP")
_MIN_RSA_BITS: Final = 2048
_DEPTH: Final = 8
_MAX_SUB: Final = 255


class IDTokenError(MqauthError):
    """The ID token is not one for this login; the text shows nothing of it."""

    code = "id_token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the ID token of one login must say.

    Args:
        issuer: of whom.
        client_id: for whom, and nobody else.
        nonce: for which login.
        now: UTC seconds.
        algorithms: of ``ALGORITHMS``, those the provider signs with.
    """

    issuer: str
    client_id: str
    nonce: str
    now: float
    algorithms: Collection[str] = ALGORITHMS


def check(token: str, jwks: Mapping[str, Any], expected: Expected) -> dict[str, Any]:
    """Return the claims of an ID token that is what it must be.

    Args:
        token: the compact JWS.
        jwks: the provider's JWK Set.
        expected: what it must say.

    Raises:
        IDTokenError: it is not.
    """
    claims = _signed(token, jwks, frozenset(expected.algorithms) & ALGORITHMS)
    option: Any = {"essential": True}
    registry = JWTClaimsRegistry(
        now=int(expected.now), leeway=LEEWAY, iss=option | {"value": expected.issuer}, sub=option,
        aud=option | {"value": expected.client_id}, exp=option, iat=option, nonce=option,
    )  # fmt: skip
    try:
        registry.validate(claims)
    except Exception as error:
        raise IDTokenError(f"a claim of the ID token is wrong: {getattr(error, 'claim', None) or 'one'}") from None
    _check_login(claims, expected)
    return claims


def _signed(token: str, jwks: Mapping[str, Any], algorithms: frozenset[str]) -> dict[str, Any]:
    """Return the claims, signed by the key that the token names."""
    try:
        found = jws.extract_compact(token.encode("ascii"))
        header = found.headers()
        if header.get("alg") not in algorithms:
            raise IDTokenError("the ID token's algorithm is not allowed")
        good = jws.validate_compact(found, _key(jwks, header), algorithms)
        claims = strictjson.loads(found.payload or b"", depth=_DEPTH)
    except IDTokenError:
        raise
    except Exception as error:  # hostile text may raise more than the library's own errors
        raise IDTokenError(f"the ID token cannot be verified: {type(error).__name__}") from None
    if good is not True:
        raise IDTokenError("the ID token's signature does not hold")
    if not isinstance(claims, dict):
        raise IDTokenError("the ID token holds no claims")
    return claims


def _key(jwks: Mapping[str, Any], header: Mapping[str, Any]) -> Key:
    """Return the one key that the header means; two with one name are none."""
    listed = jwks.get("keys")
    fit = [members for members in listed if _fits(members, header)] if isinstance(listed, list) else []
    if len(fit) != 1:
        raise IDTokenError("the provider has no key, or several, for the ID token")
    key = JWKRegistry.import_key(fit[0])
    if isinstance(key, RSAKey) and key.public_key.key_size < _MIN_RSA_BITS:
        raise IDTokenError(f"the provider's RSA key has fewer than {_MIN_RSA_BITS} bits")
    return key


def _fits(members: Any, header: Mapping[str, Any]) -> bool:
    """Tell whether a JWK is public, for signatures, and the one that is named."""
    return (
        isinstance(members, dict)
        and members.get("kty") in _KEY_TYPES
        and members.get("use", "sig") == "sig"
        and members.get("alg", header["alg"]) == header["alg"]
        and header.get("kid") in (None, members.get("kid"))
    )


def _check_login(claims: Mapping[str, Any], expected: Expected) -> None:
    """Check what binds the token to this client and this login."""
    if claims["aud"] not in (expected.client_id, [expected.client_id]):
        raise IDTokenError("the ID token is for others too")
    if claims.get("azp", expected.client_id) != expected.client_id:
        raise IDTokenError("the ID token was issued to another client")
    nonce = claims["nonce"]
    if not isinstance(nonce, str) or not hmac.compare_digest(_raw(nonce), _raw(expected.nonce)):
        raise IDTokenError("the ID token is of another login")
    if claims["iat"] < expected.now - MAX_AGE:
        raise IDTokenError("the ID token is old")
    if not is_name(claims["sub"], 1, _MAX_SUB):
        raise IDTokenError("the ID token names nobody")


def _raw(text: str) -> bytes:
    """Return bytes to compare in constant time."""
    return text.encode("utf-8", "surrogatepass")
