"""JWTs of others, taken apart strictly: credentials, and DPoP proofs. Sources: RFC 7515, 7519, 8725 and 9449.

Their headers are not those of our tokens, so ``mqauth.wire.jws.take_apart`` does not read them. What is read here
is as strict otherwise: one form of base64url, one reading of JSON, and no ``crit``. A proof is for one method, one
URL, one credential and one minute. Its ``jti`` is not remembered: whoever repeats a request gets a WIT that only
the holder of the key can use.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from mqauth.authority.refusals import Refusal, Refused
from mqauth.errors import Rejection, require
from mqauth.wire import base64url, claims, identity, jws, strict_json
from mqauth.wire.dpop import HEADER, PROOF_TYPE
from mqauth.wire.jws import ALLOWED, Opened

MAX_JWT: Final = 8192
"""Bytes of a credential or of a proof."""
_DEPTH: Final = 8
_SEGMENTS: Final = 3


class Jwt(NamedTuple):
    """A JWT taken apart; nothing in it is believed.

    Args:
        header: its JOSE header.
        claims: its claims.
        opened: the same for ``jws.verify``.
    """

    header: dict[str, Any]
    claims: dict[str, Any]
    opened: Opened

    def __repr__(self) -> str:
        return f"Jwt({self.header.get('typ')!r})"


def open_jwt(text: str) -> Jwt:
    """Take a JWT apart.

    Raises:
        ValueError: it is too large, in another form, or has an algorithm that is not on the list.
    """
    require(len(text) <= MAX_JWT, f"over {MAX_JWT} bytes", ValueError)
    raw = text.encode("ascii")
    segments = raw.split(b".", _SEGMENTS)
    require(len(segments) == _SEGMENTS, "not three segments", ValueError)
    header, payload, signature = (base64url.decode(segment) for segment in segments)
    found, claims = (strict_json.loads(part, depth=_DEPTH) for part in (header, payload))
    require(type(found) is dict and type(claims) is dict, "its header or its claims are no object", ValueError)
    algorithm, kid = found.get("alg"), found.get("kid", "")
    require(type(algorithm) is str and algorithm in ALLOWED, "its alg is not on the list", ValueError)
    require(type(kid) is str, "its kid is no text", ValueError)
    require("crit" not in found, "it has a crit", ValueError)
    return Jwt(found, claims, Opened(algorithm, kid, raw[: raw.rindex(b".")], payload, signature))


_require: Final = partial(require, error=ValueError)
SKEW: Final = 60
"""Seconds by which the clock of whoever asks may differ, either way."""


def verify(proof: str, *, url: str, credential: str, now: float) -> Mapping[str, str]:
    """Return the public key, as it goes into a WIT, that a proof shows to be held.

    Args:
        proof: the one header ``DPoP``.
        url: that ``htu`` has to say.
        credential: that ``ath`` has to be the digest of.
        now: UTC seconds.

    Raises:
        Refused: ``dpop_invalid``.
    """
    try:
        header, said, opened = open_jwt(proof)
        _require(header.keys() == HEADER, "its header has not exactly typ, alg and jwk")
        _require(header["typ"] == PROOF_TYPE, f"its typ is not {PROOF_TYPE}")
        _require(type(header["jwk"]) is dict, "its jwk is no object")
        # A JWK in a proof need not have an alg (RFC 9449, section 4.2); if it has one, it is that of the header.
        jwk = identity.read_jwk({"alg": opened.algorithm} | header["jwk"])
        _require(jwk["alg"] == opened.algorithm, "its jwk names another alg")
        jws.verify(opened, identity.key_of(jwk))
        # What it is for: this method, URL, credential and minute.
        issued = said.get("iat")
        _require(said.get("htm") == "POST", "its htm is another method")
        _require(said.get("htu") == url, "its htu is another URL")
        _require(type(issued) is int and abs(issued - now) <= SKEW, f"its iat is not within {SKEW} s")
        _require(claims.is_name(said.get("jti")), "it has no jti")
        ath = base64url.digest(credential.encode("ascii"))
        _require(said.get("ath") == ath, "its ath is of another credential")
    except Rejection as error:
        raise Refused(Refusal.DPOP_INVALID, error.detail.replace("of the identity", "of the proof")) from error
    except ValueError as error:
        raise Refused(Refusal.DPOP_INVALID, str(error)) from error
    return jwk
