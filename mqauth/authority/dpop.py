"""DPoP proofs, read strictly: whoever asks holds the key that is to be vouched for. Source: RFC 9449, section 4.3.

A proof is for one method, one URL, one credential and one minute. Its ``jti`` is not remembered: whoever repeats a
request gets a WIT that only the holder of the key can use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from mqauth.authority.jose import open_jwt
from mqauth.authority.refusals import Refusal, Refused
from mqauth.errors import Rejection, require
from mqauth.wire import base64url, claims, identity, jws
from mqauth.wire.dpop import HEADER, PROOF_TYPE

SKEW: Final = 60
"""Seconds by which the clock of whoever asks may differ, either way."""


class HeldKey(NamedTuple):
    """A key whose holder is asking.

    Args:
        jwk: its public half, as it goes into a WIT.
        jkt: its RFC 7638 thumbprint.
    """

    jwk: Mapping[str, str]
    jkt: str


def verify(proof: str, *, url: str, credential: str, now: float) -> HeldKey:
    """Return the key that a proof shows to be held.

    Args:
        proof: the one header ``DPoP``.
        url: that ``htu`` has to say.
        credential: that ``ath`` has to be the digest of.
        now: UTC seconds.

    Raises:
        Refused: ``dpop_invalid``.
    """
    try:
        return _verified(proof, url, credential, now)
    except Rejection as error:
        raise Refused(Refusal.DPOP_INVALID, error.detail.replace("of the identity", "of the proof")) from error
    except ValueError as error:
        raise Refused(Refusal.DPOP_INVALID, str(error)) from error


def _verified(proof: str, url: str, credential: str, now: float) -> HeldKey:
    header, said, opened = open_jwt(proof)
    _require(header.keys() == HEADER, "its header has not exactly typ, alg and jwk")
    _require(header["typ"] == PROOF_TYPE, f"its typ is not {PROOF_TYPE}")
    _require(type(header["jwk"]) is dict, "its jwk is no object")
    # A JWK in a proof need not have an alg (RFC 9449, section 4.2); one that it has must be that of the header.
    found = identity.read_jwk({"alg": opened.algorithm} | header["jwk"])
    _require(found["alg"] == opened.algorithm, "its jwk names another alg")
    jws.verify(opened, identity.key_of(found))
    _check(said, url, base64url.digest(credential.encode("ascii")), now)
    return HeldKey(found, identity.jkt_of(found))


def _check(said: Mapping[str, Any], url: str, ath: str, now: float) -> None:
    issued = said.get("iat")
    _require(said.get("htm") == "POST", "its htm is another method")
    _require(said.get("htu") == url, "its htu is another URL")
    _require(type(issued) is int and abs(issued - now) <= SKEW, f"its iat is not within {SKEW} s")
    _require(claims.is_name(said.get("jti")), "it has no jti")
    _require(said.get("ath") == ath, "its ath is of another credential")


def _require(condition: object, refusal: str) -> None:
    require(condition, refusal, ValueError)
