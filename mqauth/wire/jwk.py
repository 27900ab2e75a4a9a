"""JWK Sets read with suspicion: a bad key is skipped and reported, the others go on (RFC 7517, section 5).

A JWK without ``alg`` is decided by its curve; RSA without ``alg`` is skipped, since its key fits two
algorithms. A malformed ``exp`` or ``revoked`` counts as revoked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from mqauth.errors import ConfigurationError
from mqauth.wire import base64url
from mqauth.wire import strict_json as strictjson
from mqauth.wire.claims import is_name
from mqauth.wire.keys import MAX_KID, MAX_RSA_BITS, Key, KeySet, PublicKey, Revocation, jwk_members

MAX_DOCUMENT: Final = 256 * 1024
_DEPTH: Final = 8
_PRIVATE: Final = frozenset(("d", "p", "q", "dp", "dq", "qi", "oth", "k"))
_SMALL_ORDER: Final = frozenset(
    bytes.fromhex(point)
    for point in (
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    )
)
"""Encodings of Ed25519 points of small order, under which a signature proves nothing."""


def dump_key_set(keys: KeySet) -> dict[str, Any]:
    """Return a JWK Set of public keys, ready to publish."""
    return {"keys": [jwk_members(key) for key in keys]}


def load_key_set(document: bytes | Mapping[str, Any], *, name: str = "JWK Set") -> KeySet:
    """Return the usable keys of a JWK Set; what was skipped stands in ``KeySet.skipped``.

    Args:
        document: the JSON bytes, at most 256 KiB, or the parsed object.
        name: stands in errors.

    Raises:
        ConfigurationError: no JSON object with a list ``keys``.
    """
    found = _parse(document, name) if isinstance(document, bytes) else document
    listed = found.get("keys") if isinstance(found, Mapping) else None
    if not isinstance(listed, list):
        raise ConfigurationError(f"{name}: no JSON object with a list of keys")
    return _collect(listed)


def _parse(raw: bytes, name: str) -> Any:
    """Return the parsed document, bounded."""
    if len(raw) > MAX_DOCUMENT:
        raise ConfigurationError(f"{name}: over {MAX_DOCUMENT} bytes")
    try:
        return strictjson.loads(raw, depth=_DEPTH)
    except strictjson.StrictJSONError as error:
        raise ConfigurationError(f"{name}: {error}") from error


def _collect(listed: list[Any]) -> KeySet:
    """Return the keys that can be used; a kid that stands for two different keys is used for neither."""
    keys: dict[str, Key] = {}
    skipped: list[str] = []
    ambiguous: set[str] = set()
    for position, members in enumerate(listed):
        try:
            key = load_key(members)
        except ConfigurationError as error:
            skipped.append(f"key {position}: {error}")
            continue
        if keys.setdefault(key.kid, key) != key:
            ambiguous.add(key.kid)
    skipped += [f"kid {kid[:MAX_KID]!r} stands for two keys" for kid in sorted(ambiguous)]
    return KeySet((key for kid, key in keys.items() if kid not in ambiguous), skipped)


def load_key(members: Any) -> Key:
    """Return one public key of a JWK.

    Raises:
        ConfigurationError: the key is private, symmetric, weak, malformed, or meant for another use.
    """
    if not isinstance(members, Mapping):
        raise ConfigurationError("no JSON object")
    if _PRIVATE & members.keys():
        raise ConfigurationError("a private or symmetric key in a public set")
    kid = members.get("kid")
    if not is_name(kid, 1, MAX_KID):
        raise ConfigurationError(f"no kid of 1 to {MAX_KID} characters")
    _check_use(members)
    public = _public(members)
    expires, revocation = _end(members)
    return Key(
        kid=str(kid),
        algorithm=_algorithm(members, public),
        public=public,
        subjects=_subjects(members),
        expires=expires,
        revocation=revocation,
    )


def _check_use(members: Mapping[str, Any]) -> None:
    """Honour ``use`` and ``key_ops`` (RFC 7517, sections 4.2 and 4.3)."""
    if members.get("use", "sig") != "sig":
        raise ConfigurationError("its use is not sig")
    operations = members.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise ConfigurationError("its key_ops do not allow verify")


def _public(members: Mapping[str, Any]) -> PublicKey:
    """Return the public key; ``cryptography`` refuses points off their curve."""
    kind = (members.get("kty"), members.get("crv"))
    try:
        if kind == ("OKP", "Ed25519"):
            return _edwards(_octets(members, "x"))
        if kind == ("EC", "P-256"):
            return _point(members, ec.SECP256R1(), 32)
        if kind == ("EC", "P-384"):
            return _point(members, ec.SECP384R1(), 48)
        if members.get("kty") == "RSA":
            return _rsa(members)
    except ValueError as error:
        raise ConfigurationError("its public key is malformed") from error
    raise ConfigurationError("its kty or crv is not one of this profile")


def _edwards(raw: bytes) -> ed25519.Ed25519PublicKey:
    """Return an Ed25519 key that is not of small order."""
    if raw in _SMALL_ORDER:
        raise ValueError("a point of small order")
    return ed25519.Ed25519PublicKey.from_public_bytes(raw)


def _point(members: Mapping[str, Any], curve: ec.EllipticCurve, size: int) -> PublicKey:
    """Return a point on its curve, coordinates of full length (RFC 7518, section 6.2.1.2)."""
    x, y = _octets(members, "x"), _octets(members, "y")
    if len(x) != size or len(y) != size:
        raise ValueError("coordinates are of full length")
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve)
    return numbers.public_key()


def _rsa(members: Mapping[str, Any]) -> rsa.RSAPublicKey:
    """Return an RSA key; size and exponent are checked by ``Key``."""
    modulus, exponent = _octets(members, "n"), _octets(members, "e")
    if len(modulus) * 8 > MAX_RSA_BITS or len(exponent) > 8:
        raise ValueError("too large")
    numbers = rsa.RSAPublicNumbers(int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big"))
    return numbers.public_key()


def _octets(members: Mapping[str, Any], name: str) -> bytes:
    """Return the bytes of a base64url member."""
    value = members.get(name)
    if not isinstance(value, str):
        raise ValueError(f"no {name}")
    return base64url.decode(value.encode("ascii"))


def _algorithm(members: Mapping[str, Any], public: PublicKey) -> str:
    """Return the algorithm a JWK names, or that its curve decides."""
    named = members.get("alg")
    if named is None:
        if isinstance(public, rsa.RSAPublicKey):
            raise ConfigurationError("an RSA key without alg")
        return "EdDSA" if isinstance(public, ed25519.Ed25519PublicKey) else _curve_algorithm(public)
    if not isinstance(named, str):
        raise ConfigurationError("its alg is no text")
    return "EdDSA" if named == "Ed25519" else named


def _curve_algorithm(public: ec.EllipticCurvePublicKey) -> str:
    """Return the algorithm of an elliptic curve."""
    return "ES256" if isinstance(public.curve, ec.SECP256R1) else "ES384"


def _subjects(members: Mapping[str, Any]) -> frozenset[str] | None:
    """Return the producers a key may speak for, where it says."""
    listed = members.get("mqauth_sub")
    if listed is None and "mqauth_sub" not in members:
        return None
    if not isinstance(listed, list) or not all(is_name(subject) for subject in listed):
        raise ConfigurationError("its mqauth_sub is no list of subjects")
    return frozenset(listed)


def _end(members: Mapping[str, Any]) -> tuple[int | None, Revocation | None]:
    """Return when a key retires and whether it is revoked; what cannot be read counts as revoked."""
    expires = members.get("exp")
    if "exp" in members and (type(expires) is not int or expires < 0):
        return None, Revocation(reason="malformed exp")
    if "revoked" not in members:
        return expires, None
    revoked = members["revoked"]
    at = revoked.get("revoked_at") if isinstance(revoked, Mapping) else None
    if type(at) is not int or at < 0:
        return expires, Revocation(reason="malformed revoked")
    reason = revoked.get("reason")
    return expires, Revocation(revoked_at=at, reason=reason if isinstance(reason, str) else "")
