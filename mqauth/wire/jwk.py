"""JWK Sets, read with suspicion: a key that cannot be used is skipped and reported, and the others are used.

A JWK without ``alg`` gets the algorithm of its curve. An RSA key without ``alg`` is skipped, since it fits two.
The end of a key that cannot be read, a malformed ``exp`` or ``revoked``, counts as revoked. Source: RFC 7517.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from operator import itemgetter
from typing import Any, Final, Literal

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from mqauth.errors import ConfigurationError, refusing, require
from mqauth.wire import base64url, claims, strict_json
from mqauth.wire.keys import (
    MAX_KID,
    MAX_RSA_BITS,
    Cutoff,
    Key,
    KeySet,
    PublicKey,
    Revocation,
    jwk_members,
    natural_algorithm,
)

MAX_DOCUMENT: Final = 256 * 1024
MAX_CUTOFFS: Final = 1024
_PRIVATE: Final = frozenset(("d", "p", "q", "dp", "dq", "qi", "oth", "k"))
Svid = Literal["jwt-svid", "wit-svid"]
"""The kinds of SVID whose keys of a SPIFFE bundle may be read: for credentials of an authority, and for WITs."""
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
"""Encodings of Ed25519 points of small order: a signature under such a key proves nothing."""


def dump_key_set(keys: KeySet) -> dict[str, Any]:
    """Return a JWK Set of public keys, ready to publish, with the subjects that are cut off."""
    cut = [
        {"sub": subject, **asdict(cutoff)}
        for subject, cutoff in sorted(keys.cutoffs.items())
    ]
    return {"keys": [jwk_members(key) for key in keys]} | (
        {"mqauth_cutoff": cut} if cut else {}
    )


def load_key_set(
    document: bytes | Mapping[str, Any],
    *,
    name: str = "JWK Set",
    svid: Svid | None = None,
) -> KeySet:
    """Return the usable keys of a JWK Set; ``KeySet.skipped`` says which could not be used, and why.

    Args:
        document: the JSON bytes, at most 256 KiB, or the parsed object.
        name: of the document, in errors.
        svid: it may be a SPIFFE bundle, of which the keys of this use are read.

    Raises:
        ConfigurationError: the document is no JSON object with a list ``keys``.
    """
    parsed: Any = document
    if isinstance(document, bytes):
        require(len(document) <= MAX_DOCUMENT, f"{name}: over {MAX_DOCUMENT} bytes")
        with refusing(strict_json.StrictJSONError, lambda error: f"{name}: {error}"):
            parsed = strict_json.loads(document, depth=8)
    listed: Any = parsed.get("keys") if isinstance(parsed, Mapping) else None
    require(isinstance(listed, list), f"{name}: no JSON object with a list of keys")
    cutoffs = _cutoffs(parsed.get("mqauth_cutoff", []))
    # A kid that stands for two different keys is used for neither.
    keys: dict[str, Key] = {}
    skipped: list[str] = []
    ambiguous: set[str] = set()
    for position, members in enumerate(listed):
        if is_other_svid(members, svid):
            continue
        try:
            key = load_key(members, svid=svid)
        except ConfigurationError as error:
            skipped.append(f"key {position}: {error}")
            continue
        if keys.setdefault(key.kid, key) != key:
            ambiguous.add(key.kid)
    skipped += [f"kid {kid[:MAX_KID]!r} stands for two keys" for kid in sorted(ambiguous)]
    skipped += (
        ["mqauth_cutoff cannot be read; the cut-offs before it stay"]
        if cutoffs is None
        else []
    )
    return KeySet(
        (key for kid, key in keys.items() if kid not in ambiguous), skipped, cutoffs
    )


def _cutoffs(listed: Any) -> Mapping[str, Cutoff] | None:
    """Return the cut-offs of a set, ``None`` if they cannot be read."""
    if (
        type(listed) is not list
        or len(listed) > MAX_CUTOFFS
        or not all(
            isinstance(entry, Mapping)
            and claims.is_name(entry.get("sub"))
            and _is_time(entry.get("before"))
            and claims.is_name(entry.get("reason", ""), 0)
            for entry in listed
        )
    ):
        return None
    # Of a subject that stands there twice the later moment counts.
    return {
        entry["sub"]: Cutoff(before=entry["before"], reason=entry.get("reason", ""))
        for entry in sorted(listed, key=itemgetter("before"))
    }


def is_other_svid(members: Any, svid: Svid | None) -> bool:
    """Tell whether a key of a SPIFFE bundle is there for another kind of SVID: no mistake, and never ours."""
    use = members.get("use") if isinstance(members, Mapping) else None
    return (
        svid is not None and use in ("x509-svid", "jwt-svid", "wit-svid") and use != svid
    )


def check_source(source: object, *taken: Svid) -> None:
    """Refuse what is no source of keys, and one of keys of a SPIFFE bundle which are there for something else.

    Args:
        source: of keys.
        taken: the uses that its reader has.

    Raises:
        ConfigurationError: it has no key set, or reads keys of another use.
    """
    require(
        hasattr(source, "key_set"),
        "keys come from a source: JWKS, JWKSFile or KeySet, not a text or a path",
    )
    svid = getattr(source, "svid", None)
    require(
        svid in (None, *taken),
        f"a source of {svid} keys of a SPIFFE bundle: they are for something else",
    )


def load_key(members: Any, *, svid: Svid | None = None) -> Key:
    """Return one public key of a JWK.

    Args:
        members: of the JWK.
        svid: a use beside ``sig`` that it may have, as in a SPIFFE bundle (WIT-SVID, section 6).

    Raises:
        ConfigurationError: the key is private, symmetric, weak, malformed, or meant for another use.
    """
    require(isinstance(members, Mapping), "no JSON object")
    require(not _PRIVATE & members.keys(), "a private or symmetric key in a public set")
    kid = members.get("kid")
    require(claims.is_name(kid, 1, MAX_KID), f"no kid of 1 to {MAX_KID} characters")
    # RFC 7517, sections 4.2 and 4.3
    use = members.get("use", "sig")
    require(use == "sig" or (svid is not None and use == svid), "its use is not sig")
    operations = members.get("key_ops", ["verify"])
    require(
        isinstance(operations, list) and "verify" in operations,
        "its key_ops do not allow verify",
    )
    public = public_key(members)
    # The algorithm belongs to the key: an RSA key says which one, and Ed25519 is EdDSA (RFC 9864).
    require(
        "alg" in members or not isinstance(public, rsa.RSAPublicKey),
        "an RSA key without alg",
    )
    algorithm = members["alg"] if "alg" in members else natural_algorithm(public)
    require(isinstance(algorithm, str), "its alg is no text")
    subjects = members.get("mqauth_sub", [])
    require(
        isinstance(subjects, list)
        and all(claims.is_name(subject) for subject in subjects),
        "its mqauth_sub is no list of subjects",
    )
    expires, revocation = _end(members)
    return Key(
        kid=str(kid),
        algorithm="EdDSA" if algorithm == "Ed25519" else algorithm,
        public=public,
        subjects=frozenset(subjects) if "mqauth_sub" in members else None,
        expires=expires,
        revocation=revocation,
    )


def public_key(members: Mapping[str, Any]) -> PublicKey:
    """Return the public key of a JWK; ``cryptography`` refuses points that are not on their curve.

    Raises:
        ConfigurationError: its kind is none of this profile, or its numbers are no key.
    """
    kind = (
        "RSA"
        if members.get("kty") == "RSA"
        else f"{members.get('kty')} {members.get('crv')}"
    )
    require(kind in _KINDS, "its kty or crv is not one of this profile")
    with refusing(ValueError, "its public key is malformed"):
        return _KINDS[kind](members)


def _edwards(members: Mapping[str, Any]) -> PublicKey:
    raw = _octets(members, "x")
    require(raw not in _SMALL_ORDER, "a point of small order", ValueError)
    return ed25519.Ed25519PublicKey.from_public_bytes(raw)


def _point(members: Mapping[str, Any], curve: ec.EllipticCurve, size: int) -> PublicKey:
    """Return a point on its curve, whose coordinates have their full length (RFC 7518, section 6.2.1.2)."""
    x, y = _octets(members, "x"), _octets(members, "y")
    require(len(x) == len(y) == size, "coordinates are of full length", ValueError)
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve
    )
    point = numbers.public_key()
    # a coordinate that is not below the prime would be taken for what is left of it
    require(
        point.public_numbers() == numbers,
        "a coordinate is not below the prime",
        ValueError,
    )
    return point


def _rsa(members: Mapping[str, Any]) -> PublicKey:
    """Return an RSA key; ``Key`` checks its size and exponent."""
    modulus, exponent = _octets(members, "n"), _octets(members, "e")
    # numbers without a bound would take their time before ``Key`` could refuse them
    require(
        len(modulus) * 8 <= MAX_RSA_BITS and len(exponent) <= 8, "too large", ValueError
    )
    # one number has one spelling (RFC 7518, section 2, Base64urlUInt)
    require(
        modulus[:1] > b"\0" and exponent[:1] > b"\0",
        "a number that begins with a zero",
        ValueError,
    )
    return rsa.RSAPublicNumbers(
        int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big")
    ).public_key()


_KINDS: Final[dict[str, Callable[[Mapping[str, Any]], PublicKey]]] = {
    "RSA": _rsa,
    "OKP Ed25519": _edwards,
    "EC P-256": lambda members: _point(members, ec.SECP256R1(), 32),
    "EC P-384": lambda members: _point(members, ec.SECP384R1(), 48),
}
"""What reads a public key, by ``kty`` and ``crv``."""


def _octets(members: Mapping[str, Any], name: str) -> bytes:
    value = members.get(name)
    require(isinstance(value, str), f"no {name}", ValueError)
    return base64url.decode(str(value).encode("ascii"))


def _end(members: Mapping[str, Any]) -> tuple[int | None, Revocation | None]:
    """Return when a key retires and whether it is revoked."""
    expires = members.get("exp")
    # an end that cannot be read may have come already, so it counts as revoked
    if "exp" in members and not _is_time(expires):
        return None, Revocation(reason="malformed exp")
    if "revoked" not in members:
        return expires, None
    revoked = members["revoked"]
    at: Any = revoked.get("revoked_at") if isinstance(revoked, Mapping) else None
    if not _is_time(at):
        return expires, Revocation(reason="malformed revoked")
    reason = revoked.get("reason")
    return expires, Revocation(
        revoked_at=at, reason=reason if isinstance(reason, str) else ""
    )


def _is_time(value: Any) -> bool:
    return type(value) is int and value >= 0
