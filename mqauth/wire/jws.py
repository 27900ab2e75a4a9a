"""The compact JWS, taken apart strictly; the only module that imports PyJWT.

PyJWT's algorithm objects sign and verify with prepared keys. Its ``decode`` is not used: it lets duplicate
names, any ``typ`` and a padded signature pass. Sources: RFC 7515 sections 3.1 and 7.1, RFC 8725.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, cast

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from jwt.algorithms import Algorithm, ECAlgorithm, OKPAlgorithm, RSAAlgorithm, RSAPSSAlgorithm

from mqauth.errors import ConfigurationError, Reason, Rejection
from mqauth.wire import base64url, ed25519
from mqauth.wire import strict_json as strictjson
from mqauth.wire.claims import is_name
from mqauth.wire.keys import MAX_KID, Key, SigningKey
from mqauth.wire.memo import Memo

TOKEN_TYPE: Final = "mqauth+jwt"
MAX_TOKEN: Final = 8192
_HEADER_DEPTH: Final = 4
_TUPLE: Final = tuple.__new__
_SEGMENTS: Final = 3
_ALLOWED: Final = frozenset(("EdDSA", "Ed25519", "ES256", "ES384", "PS256", "RS256"))
_PARAMETERS: Final = frozenset(("alg", "typ", "kid"))
_PYJWT: Final[dict[str, Algorithm]] = {
    "EdDSA": OKPAlgorithm(),
    "ES256": ECAlgorithm(ECAlgorithm.SHA256, ec.SECP256R1),
    "ES384": ECAlgorithm(ECAlgorithm.SHA384, ec.SECP384R1),
    "PS256": RSAPSSAlgorithm(RSAPSSAlgorithm.SHA256),
    "RS256": RSAAlgorithm(RSAAlgorithm.SHA256),
}


class Opened(NamedTuple):
    """A token taken apart; nothing in it is verified yet, and ``repr`` shows nothing to replay."""

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

    def __init__(self, key: Key) -> None:
        if key.private is None:
            raise ConfigurationError("a public key cannot sign")
        self.kid = key.kid
        self.algorithm = key.algorithm
        self.subjects = key.subjects
        self._sign: Callable[[bytes], bytes]
        if isinstance(key.private, Ed25519PrivateKey):
            self._sign = ed25519.signing(key.private)
        else:
            self._sign = partial(_PYJWT[key.algorithm].sign, key=key.private)

    def sign(self, data: bytes, /) -> bytes:
        """Return the raw JWS signature over ``data``."""
        return self._sign(data)


def compact(payload: bytes, key: SigningKey, *, typ: str = TOKEN_TYPE) -> str:
    """Return a signed compact JWS.

    Args:
        payload: the claim set's bytes.
        key: signs, and decides ``alg`` and ``kid``.
        typ: the token's type.
    """
    signing_input = _HEADER_SEGMENTS[key.algorithm, typ, key.kid] + base64url.encode(payload)
    return (signing_input + b"." + base64url.encode(key.sign(signing_input))).decode("ascii")


def _header_segment(header: tuple[str, str, str]) -> bytes:
    """Return the first segment of a token and its dot, of ``alg``, ``typ`` and ``kid``."""
    algorithm, typ, kid = header
    return base64url.encode(strictjson.dumps({"alg": algorithm, "typ": typ, "kid": kid})) + b"."


def take_apart(token: bytes, *, typ: str = TOKEN_TYPE) -> Opened:
    """Split, bound and parse a token; steps 2 and 3 of the verdict.

    Raises:
        Rejection: ``token_oversize``, ``token_malformed``, ``token_type``, ``header_forbidden`` or
            ``algorithm_forbidden``.
    """
    if len(token) > MAX_TOKEN:
        raise Rejection(Reason.TOKEN_OVERSIZE, f"over {MAX_TOKEN} bytes")
    segments = token.split(b".", _SEGMENTS)
    if len(segments) != _SEGMENTS:
        raise _malformed("not three segments")
    try:
        payload, signature = base64url.decode(segments[1]), base64url.decode(segments[2])
        algorithm, kid = _HEADERS[segments[0], typ]
    except ValueError as error:
        raise _malformed("a segment is not canonical base64url, or the header no JSON") from error
    return _TUPLE(Opened, (algorithm, kid, token[: token.rindex(b".")], payload, signature))


def verify(opened: Opened, key: Key) -> None:
    """Check the signature with the key's own algorithm; steps 6 (its last part) and 7 of the verdict.

    Raises:
        Rejection: ``algorithm_forbidden`` or ``signature_invalid``.
    """
    if not key.allows(opened.algorithm):
        raise Rejection(Reason.ALGORITHM_FORBIDDEN, "the token names another algorithm than its key has")
    data, public, signature = opened.signing_input, key.public, opened.signature
    try:
        if key.algorithm == "EdDSA":  # of this algorithm ``Key`` takes no other key
            good = ed25519.holds(data, cast(Ed25519PublicKey, public), signature)
        else:
            good = _PYJWT[key.algorithm].verify(data, public, signature)
    except Exception:  # hostile signatures can raise more than PyJWTError; all of it is a bad signature
        good = False
    if good is not True:
        raise Rejection(Reason.SIGNATURE_INVALID, "the signature does not hold")


def _check_header(header: tuple[bytes, str]) -> tuple[str, str]:
    """Return ``alg`` and ``kid`` of a token's first segment, of which ``typ`` is wanted."""
    segment, typ = header
    parameters = strictjson.loads(base64url.decode(segment), depth=_HEADER_DEPTH)
    if type(parameters) is not dict:
        raise _malformed("the header is no object")
    kid = parameters.get("kid")
    if not is_name(kid, 1, MAX_KID):
        raise _malformed(f"no kid of 1 to {MAX_KID} characters")
    if parameters.get("typ") != typ:
        raise Rejection(Reason.TOKEN_TYPE, f"typ is not {typ}")
    if parameters.keys() - _PARAMETERS:
        raise Rejection(Reason.HEADER_FORBIDDEN, "a parameter besides alg, typ and kid")
    algorithm = parameters.get("alg")
    if type(algorithm) is not str or algorithm not in _ALLOWED:
        raise Rejection(Reason.ALGORITHM_FORBIDDEN, "alg is missing or not on the list")
    return algorithm, str(kid)


# a producer's header is the same for every message of a key
_HEADERS: Final = Memo(_check_header)
_HEADER_SEGMENTS: Final = Memo(_header_segment)


def _malformed(detail: str) -> Rejection:
    """Return the rejection of a token that is no strict compact JWS."""
    return Rejection(Reason.TOKEN_MALFORMED, detail)
