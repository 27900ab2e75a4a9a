"""Checks an ID token against one login (OpenID Connect Core 1.0, section 3.1.3.7), and reads who it is about."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from joserfc import jws
from joserfc.jwk import JWKRegistry, Key, RSAKey
from joserfc.jwt import JWTClaimsRegistry

from mqauth.console.access import ROLES
from mqauth.console.oidc_settings import OIDCSettings
from mqauth.errors import MqauthError, require
from mqauth.wire import strict_json
from mqauth.wire.claims import is_name

ALGORITHMS: Final = frozenset(
    ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519")
)
"""Signatures by a key that only the provider has: not ``none``, and not HMAC, whose key the client has too."""
LEEWAY: Final = 30
"""Seconds of difference between the clocks that are allowed."""
MAX_AGE: Final = 600
"""Seconds since the token was issued; it comes straight from the token endpoint."""
MAX_VALUES: Final = 1000
_KEY_TYPES: Final = ("RSA", "EC", "OKP")
_MIN_RSA_BITS: Final = 2048
_DEPTH: Final = 8
_MAX_SUB: Final = 255


class IDTokenError(MqauthError):
    """The ID token is not one for this login. The text shows nothing of the token."""

    code = "id_token"


class NoNameError(MqauthError):
    """The person cannot be named. The text may be shown to them."""

    code = "nobody"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the ID token of one login must say.

    Args:
        issuer: ``iss``.
        client_id: ``aud``, and no other audience.
        nonce: of the login.
        now: UTC seconds.
        algorithms: of ``ALGORITHMS``, those with which the provider signs.
    """

    issuer: str
    client_id: str
    nonce: str
    now: float
    algorithms: Collection[str] = ALGORITHMS


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A person who logged in.

    Args:
        subject: the provider's own name for them, which does not change.
        name: for releases and audit records.
        role: ``viewer`` or ``reviewer``; whoever has ``None`` may not come in.
    """

    subject: str
    name: str
    role: str | None


def check(token: str, jwks: Mapping[str, Any], expected: Expected) -> dict[str, Any]:
    """Return the claims of an ID token that is what it must be.

    Args:
        token: the compact JWS.
        jwks: the provider's JWK Set.
        expected: what the token must say.

    Raises:
        IDTokenError: it is not.
    """
    claims = _signed_claims(token, jwks, frozenset(expected.algorithms) & ALGORITHMS)
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


def _signed_claims(token: str, jwks: Mapping[str, Any], algorithms: frozenset[str]) -> dict[str, Any]:
    """Return the claims of a token whose signature holds by the key that it names."""
    try:
        found = jws.extract_compact(token.encode("ascii"))
        header = found.headers()
        require(header.get("alg") in algorithms, "the ID token's algorithm is not allowed", IDTokenError)
        good = jws.validate_compact(found, _key(jwks, header), algorithms)
        claims = strict_json.loads(found.payload or b"", depth=_DEPTH)
    except IDTokenError:
        raise
    # Hostile text can make the library raise more than its own errors.
    except Exception as error:
        raise IDTokenError(f"the ID token cannot be verified: {type(error).__name__}") from None
    require(good is True, "the ID token's signature does not hold", IDTokenError)
    if not isinstance(claims, dict):
        raise IDTokenError("the ID token holds no claims")
    return claims


def _key(jwks: Mapping[str, Any], header: Mapping[str, Any]) -> Key:
    """Return the one key that the header means. Of two with one name neither is used."""
    listed = jwks.get("keys")
    fit = [members for members in listed if _fits(members, header)] if isinstance(listed, list) else []
    require(len(fit) == 1, "the provider has no key, or several, for the ID token", IDTokenError)
    key = JWKRegistry.import_key(fit[0])
    require(
        not isinstance(key, RSAKey) or key.public_key.key_size >= _MIN_RSA_BITS,
        f"the provider's RSA key has fewer than {_MIN_RSA_BITS} bits",
        IDTokenError,
    )
    return key


def _fits(members: Any, header: Mapping[str, Any]) -> bool:
    """Tell whether a JWK is an asymmetric key for signatures, with the name and algorithm of the header."""
    return (
        isinstance(members, dict)
        and members.get("kty") in _KEY_TYPES
        and members.get("use", "sig") == "sig"
        and members.get("alg", header["alg"]) == header["alg"]
        and header.get("kid") in (None, members.get("kid"))
    )


def _check_login(claims: Mapping[str, Any], expected: Expected) -> None:
    """Check the claims that bind the token to this client and this login."""
    require(
        claims["aud"] in (expected.client_id, [expected.client_id]), "the ID token is for others too", IDTokenError
    )
    require(
        claims.get("azp", expected.client_id) == expected.client_id,
        "the ID token was issued to another client",
        IDTokenError,
    )
    nonce = claims["nonce"]
    require(
        isinstance(nonce, str) and hmac.compare_digest(_raw(nonce), _raw(expected.nonce)),
        "the ID token belongs to another login",
        IDTokenError,
    )
    require(claims["iat"] >= expected.now - MAX_AGE, "the ID token is old", IDTokenError)
    require(is_name(claims["sub"], 1, _MAX_SUB), "the ID token names nobody", IDTokenError)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def person(claims: Mapping[str, Any], settings: OIDCSettings) -> Person:
    """Return the person that a checked ID token is about.

    Raises:
        NoNameError: the claim that names people is missing or no name, or an e-mail address was not verified.
    """
    return Person(
        subject=str(claims["sub"]), name=_name(claims, settings.name_claim), role=_role(claims, settings)
    )


def _name(claims: Mapping[str, Any], claim: str) -> str:
    name = claims.get(claim)
    require(
        is_name(name) and str(name) == str(name).strip(),
        f"The identity provider sent no {claim} for you",
        NoNameError,
    )
    # Without this, whoever registers a reviewer's address with the provider would act under it (section 5.1).
    require(
        claim != "email" or claims.get("email_verified") is True,
        "The identity provider has not verified your e-mail address",
        NoNameError,
    )
    return str(name)


def _role(claims: Mapping[str, Any], settings: OIDCSettings) -> str | None:
    """Return the highest role that a value of the role claim stands for."""
    found: Any = claims
    for step in settings.role_claim:
        found = found.get(step) if isinstance(found, Mapping) else None
    values = [found] if isinstance(found, str) else found
    if not isinstance(values, list) or len(values) > MAX_VALUES:
        return None
    mine = {settings.roles.get(value) for value in values if isinstance(value, str)}
    return next((role for role in ROLES if role in mine), None)
