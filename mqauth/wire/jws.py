"""The compact JWS: how a token is made, taken apart strictly, and how its signature is checked.

This is the only module that imports PyJWT. Its algorithm objects sign and verify with prepared keys. Its
``decode`` is not used, for it lets duplicate names, any ``typ`` and a padded signature pass. Sources: RFC 7515
sections 3.1 and 7.1, RFC 8725.

Ed25519 is done by libsodium, in half the time, if PyNaCl is installed (extra ``fast``). libsodium refuses what
OpenSSL refuses, and points of small order besides. So what it accepts is accepted, and what it refuses is asked
of OpenSSL: no verdict depends on what is installed (decision 1).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple, cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from jwt.algorithms import (
    Algorithm,
    ECAlgorithm,
    OKPAlgorithm,
    RSAAlgorithm,
    RSAPSSAlgorithm,
)

from mqauth.errors import Reason, Rejection, require
from mqauth.wire import base64url, claims, keys, memo, strict_json

_Sodium = Callable[[bytes, bytes], bytes]
TOKEN_TYPE: Final = "mqauth+jwt"
MAX_TOKEN: Final = 8192
_TUPLE: Final = tuple.__new__
SEGMENTS: Final = 3
_SIGNATURE: Final = 64
ALLOWED: Final = frozenset(("EdDSA", "Ed25519", "ES256", "ES384", "PS256", "RS256"))
_PYJWT: Final[dict[str, Algorithm]] = {
    "EdDSA": OKPAlgorithm(),
    "ES256": ECAlgorithm(ECAlgorithm.SHA256),
    "ES384": ECAlgorithm(ECAlgorithm.SHA384),
    "PS256": RSAPSSAlgorithm(RSAPSSAlgorithm.SHA256),
    "RS256": RSAAlgorithm(RSAAlgorithm.SHA256),
}


class Opened(NamedTuple):
    """A token taken apart. Nothing in it is verified yet, and ``repr`` shows nothing that could be replayed."""

    algorithm: str
    kid: str
    signing_input: bytes
    payload: bytes
    signature: bytes

    def __repr__(self) -> str:
        return f"Opened(algorithm={self.algorithm!r}, kid={self.kid!r})"


class LocalSigningKey:
    """A private ``Key`` as a ``SigningKey``.

    Raises:
        ConfigurationError: the key has no private half.
    """

    __slots__ = ("_sign", "algorithm", "kid", "subjects")

    def __init__(self, key: keys.Key) -> None:
        private = require(key.private, "a public key cannot sign")
        self.kid = key.kid
        self.algorithm = key.algorithm
        self.subjects = key.subjects
        self._sign: Callable[[bytes], bytes] = (
            ed25519_signer(private)
            if isinstance(private, Ed25519PrivateKey)
            else partial(_PYJWT[key.algorithm].sign, key=private)
        )

    def sign(self, data: bytes, /) -> bytes:
        """Return the raw JWS signature over ``data``."""
        return self._sign(data)


def compact(payload: bytes, key: keys.SigningKey, *, typ: str = TOKEN_TYPE) -> str:
    """Return a signed compact JWS.

    Args:
        payload: the bytes of the claim set.
        key: signs, and decides ``alg`` and ``kid``.
        typ: the type of the token.
    """
    signing_input = _HEADER_SEGMENTS[key.algorithm, typ, key.kid] + base64url.encode(
        payload
    )
    return (signing_input + b"." + base64url.encode(key.sign(signing_input))).decode(
        "ascii"
    )


def take_apart(token: bytes, *, typ: str = TOKEN_TYPE) -> Opened:
    """Split, bound and parse a token: steps 2 and 3 of the verdict.

    Raises:
        Rejection: ``token_oversize``, ``token_malformed``, ``token_type``, ``header_forbidden`` or
            ``algorithm_forbidden``.
    """
    if len(token) > MAX_TOKEN:
        raise Rejection(Reason.TOKEN_OVERSIZE, f"over {MAX_TOKEN} bytes")
    segments = token.split(b".", SEGMENTS)
    if len(segments) != SEGMENTS:
        raise malformed("not three segments")
    try:
        payload, signature = base64url.decode(segments[1]), base64url.decode(segments[2])
        algorithm, kid = _HEADERS[segments[0], typ]
    except ValueError as error:
        raise malformed(
            "a segment is not canonical base64url, or the header no JSON"
        ) from error
    return _TUPLE(
        Opened, (algorithm, kid, token[: token.rindex(b".")], payload, signature)
    )


def verify(opened: Opened, key: keys.Key) -> None:
    """Check the signature with the algorithm of the key: the end of step 6, and step 7 of the verdict.

    Raises:
        Rejection: ``algorithm_forbidden`` or ``signature_invalid``.
    """
    if not key.allows(opened.algorithm):
        raise Rejection(
            Reason.ALGORITHM_FORBIDDEN,
            "the token names another algorithm than its key has",
        )
    data, public, signature = opened.signing_input, key.public, opened.signature
    try:
        if key.algorithm == "EdDSA":  # ``Key`` takes no other key for this algorithm
            good = ed25519_holds(data, cast(Ed25519PublicKey, public), signature)
        else:
            good = _PYJWT[key.algorithm].verify(data, public, signature)
    except Exception:  # hostile signatures raise more than PyJWTError, and whatever they raise, they are bad
        good = False
    if good is not True:
        raise Rejection(Reason.SIGNATURE_INVALID, "the signature does not hold")


def ed25519_signer(private: Ed25519PrivateKey) -> Callable[[bytes], bytes]:
    """Return what signs with a key; its signatures of 64 bytes are the same whichever library makes them.

    Source: RFC 8032, section 5.1.6.
    """
    if _SIGN is None:
        return private.sign
    # libsodium takes the seed with a public half, and with the half of another key it would give the seed away: so
    # the half is computed from the seed here
    sign, secret = (
        _SIGN,
        private.private_bytes_raw() + private.public_key().public_bytes_raw(),
    )
    return lambda data: sign(data, secret)[:_SIGNATURE]


def ed25519_holds(data: bytes, public: Ed25519PublicKey, signature: bytes) -> bool:
    """Tell whether a signature is one over ``data`` (RFC 8032, section 5.1.7)."""
    try:
        whole = len(signature) == _SIGNATURE
        accepted = (
            _OPEN is not None
            and whole
            and _OPEN(signature + data, public.public_bytes_raw()) == data
        )
    except Exception:
        accepted = False  # OpenSSL decides
    if accepted:
        return True
    try:
        public.verify(signature, data)
    except InvalidSignature:
        return False
    return True


# ``crypto_sign_open`` and ``crypto_sign`` of libsodium, ``None`` if PyNaCl is not installed
_OPEN: _Sodium | None = None
_SIGN: _Sodium | None = None
with suppress(ImportError):
    from nacl.bindings import crypto_sign as _SIGN
    from nacl.bindings import crypto_sign_open as _OPEN


def _check_header(header: tuple[bytes, str]) -> tuple[str, str]:
    """Return ``alg`` and ``kid`` of a token's first segment, whose ``typ`` must be the given one."""
    segment, typ = header
    parameters = strict_json.loads(base64url.decode(segment), depth=4)
    require(type(parameters) is dict, "the header is no object", malformed)
    kid = parameters.get("kid")
    require(
        claims.is_name(kid, 1, keys.MAX_KID),
        f"no kid of 1 to {keys.MAX_KID} characters",
        malformed,
    )
    if parameters.get("typ") != typ:
        raise Rejection(Reason.TOKEN_TYPE, f"typ is not {typ}")
    if parameters.keys() - {"alg", "typ", "kid"}:
        raise Rejection(Reason.HEADER_FORBIDDEN, "a parameter besides alg, typ and kid")
    algorithm = parameters.get("alg")
    if type(algorithm) is not str or algorithm not in ALLOWED:
        raise Rejection(Reason.ALGORITHM_FORBIDDEN, "alg is missing or not on the list")
    return algorithm, str(kid)


# the header of a producer is the same for every message that a key signs
_HEADERS: Final = memo.Memo(_check_header)
# the first segment of a token and its dot, by ``alg``, ``typ`` and ``kid``
_HEADER_SEGMENTS: Final = memo.Memo[tuple[str, str, str], bytes](
    lambda header: (
        base64url.encode(
            strict_json.dumps(dict(zip(("alg", "typ", "kid"), header, strict=True)))
        )
        + b"."
    )
)


def malformed(detail: str) -> Rejection:
    """Return the rejection of a token, or of an identity or its proof, that is not in its form."""
    return Rejection(Reason.TOKEN_MALFORMED, detail)
