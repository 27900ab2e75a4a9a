"""The identity form of a token: ``wit~proof``, or ``wit~proof~index.path`` of a batch. Experimental.

A *WIT* (Workload Identity Token) is an authority's word: whoever has the private half of this key is this
workload, until then. The *proof* binds one message, or a batch, as a token of the direct form does, and is signed
with that key. Nothing here is believed; ``mqauth.judging.identities`` checks signatures. Sources: wire profile,
section 16; draft-ietf-wimse-workload-creds-02 (WIT), draft-ietf-wimse-wpt-02 (``wth``), RFC 7800 (``cnf``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from mqauth.errors import ConfigurationError, Reason, Rejection, refusing, require
from mqauth.wire import base64url, claims, jwk, jws, memo, strict_json
from mqauth.wire.claims import MAX_JTI, MAX_NAME, MIN_JTI, Claims
from mqauth.wire.keys import MAX_KID, Key

WIT_TYPE: Final = "wit+jwt"
PROOF_TYPE: Final = "mqauth-pop+jwt"
MAX_WIT: Final = 4096
"""Bytes of a WIT."""
SEPARATOR: Final = b"~"
ALGORITHMS: Final = ("EdDSA", "Ed25519", "ES256", "ES384")
"""Of a workload's key; RSA would be 340 bytes more in each message."""
_DOMAIN: Final = r"(?:wimse|spiffe)://[a-z0-9._-]+"
_TRUST_DOMAIN: Final = re.compile(_DOMAIN)
_SUBJECT: Final = re.compile(rf"({_DOMAIN})(?:/(?!\.\.?(?:/|\Z))[A-Za-z0-9._-]+)+")
_WIT_REQUIRED: Final = ("sub", "exp", "cnf")
_WIT_REGISTERED: Final = frozenset((*_WIT_REQUIRED, "iat", "nbf", "jti", "iss", "aud"))
_PROOF_REQUIRED: Final = ("aud", "iat", "exp", "jti", "mqa", "wth")
_PROOF_REGISTERED: Final = frozenset((*_PROOF_REQUIRED, "nbf"))
_KINDS: Final[Mapping[tuple[str, str], tuple[frozenset[str], tuple[str, ...], int]]] = {
    ("OKP", "Ed25519"): (frozenset(("EdDSA", "Ed25519")), ("x",), 32),
    ("EC", "P-256"): (frozenset(("ES256",)), ("x", "y"), 32),
    ("EC", "P-384"): (frozenset(("ES384",)), ("x", "y"), 48),
}
"""By ``kty`` and ``crv`` of a workload's key: its algorithms, its numbers, and their length in bytes."""


class Identity(NamedTuple):
    """What the authority says of a producer: the identity behind a verified message.

    Args:
        subject: the workload, ``sub`` of the WIT.
        trust_domain: scheme and authority of the subject.
        kid: of the authority's key.
        expires: ``exp``, UTC seconds.
        issued: ``iat``, UTC seconds, if the WIT has one.
        jti: the WIT's own id, if it has one; it counts for nothing.
        iss: who issued it, if the WIT says; for audit only.
        jkt: the RFC 7638 thumbprint of the workload's key.
        claims: what else the authority says.
    """

    subject: str
    trust_domain: str
    kid: str
    expires: int
    issued: int | None
    jti: str | None
    iss: str | None
    jkt: str
    claims: Mapping[str, Any]


class Wit(NamedTuple):
    """A WIT taken apart; nothing in it is believed.

    Args:
        text: its bytes.
        opened: the same taken apart; its ``kid`` is the authority's key.
        identity: what it says.
        begins: ``nbf``, UTC seconds.
        jwk: of the workload's key, whose numbers are not checked yet.
        digest: of its bytes: ``wth`` of each proof.
    """

    text: bytes
    opened: jws.Opened
    identity: Identity
    begins: int | None
    jwk: Mapping[str, str]
    digest: str

    def __repr__(self) -> str:
        return f"Wit({self.identity.subject!r})"


class Proof(NamedTuple):
    """A proof taken apart; nothing in it is believed.

    Args:
        opened: taken apart; a proof names no key, so its ``kid`` is empty.
        claims: without ``iss`` and ``sub``, which stand in the WIT alone.
        wth: the digest of the WIT it belongs to.
    """

    opened: jws.Opened
    claims: Claims
    wth: str


def is_trust_domain(value: object) -> bool:
    """Tell whether a value is a trust domain, such as ``wimse://prod.example``."""
    return (
        isinstance(value, str)
        and len(value) < MAX_NAME
        and _TRUST_DOMAIN.fullmatch(value) is not None
    )


def trust_domain_of(subject: str) -> str | None:
    """Return the trust domain of a workload's identifier, ``None`` if it is not in its form."""
    match = _SUBJECT.fullmatch(subject) if len(subject) <= MAX_NAME else None
    return None if match is None else match[1]


def is_wit(text: bytes) -> bool:
    """Tell whether a text begins as a WIT does: its ``typ`` says so, and it names a key."""
    segment = text.partition(b".")[0]
    return len(segment) <= MAX_WIT and _IS_WIT[segment]


def parse_wit(text: bytes) -> Wit:
    """Return a WIT that ``is_wit``, parsed strictly.

    Raises:
        Rejection: ``token_oversize``, ``token_malformed`` or ``identity_invalid``.
    """
    if len(text) > MAX_WIT:
        raise Rejection(Reason.TOKEN_OVERSIZE, f"an identity over {MAX_WIT} bytes")
    segment, opened = take_apart(text)
    header = _parameters(segment)
    algorithm = header.get("alg")
    _require(
        header.keys() == {"typ", "alg", "kid"},
        "its header has not exactly typ, alg and kid",
    )
    _require(
        type(algorithm) is str and algorithm in jws.ALLOWED, "its alg is not on the list"
    )
    opened = opened._replace(algorithm=str(algorithm), kid=str(header["kid"]))
    try:
        wit_claims = claims.load(opened.payload, _WIT_REQUIRED)
        subject = wit_claims["sub"]
        domain = trust_domain_of(subject) if type(subject) is str else None
        _require(domain is not None, "its sub is no identifier of a workload")
        _require("aud" not in wit_claims, "it has an aud")
        confirmed = wit_claims["cnf"]
        _require(
            type(confirmed) is dict and confirmed.keys() == {"jwk"},
            "its cnf is not exactly a jwk",
        )
        members = read_jwk(confirmed["jwk"])
        issued, begins = (
            claims.time_claim(wit_claims, name) if name in wit_claims else None
            for name in ("iat", "nbf")
        )
        who = Identity(
            subject=subject,
            trust_domain=str(domain),
            kid=opened.kid,
            expires=claims.time_claim(wit_claims, "exp"),
            issued=issued,
            jti=claims.text_claim(wit_claims, "jti", 1, MAX_JTI)
            if "jti" in wit_claims
            else None,
            iss=claims.text_claim(wit_claims, "iss") if "iss" in wit_claims else None,
            jkt=jkt_of(members),
            claims=MappingProxyType(
                dict(claims.extra_claims(wit_claims, _WIT_REGISTERED))
            ),
        )
    except Rejection as error:
        raise _invalid(error.detail) from error
    return Wit(text, opened, who, begins, members, base64url.digest(text))


def take_apart(text: bytes) -> tuple[bytes, jws.Opened]:
    """Return the first segment of a JWS, and the rest decoded; its header is not read.

    Raises:
        Rejection: ``token_malformed``.
    """
    segments = text.split(b".", jws.SEGMENTS)
    if len(segments) != jws.SEGMENTS:
        raise jws.malformed("not three segments")
    try:
        payload, signature = base64url.decode(segments[1]), base64url.decode(segments[2])
    except ValueError as error:
        raise jws.malformed("a segment is not canonical base64url") from error
    return segments[0], jws.Opened("", "", text[: text.rindex(b".")], payload, signature)


def open_proof(text: bytes) -> jws.Opened:
    """Return a proof taken apart: its part of the steps 2 and 3.

    Raises:
        Rejection: ``token_malformed``, ``token_type``, ``header_forbidden`` or ``algorithm_forbidden``.
    """
    segment, opened = take_apart(text)
    return opened._replace(algorithm=_PROOF_HEADERS[segment])


def parse_proof(opened: jws.Opened) -> Proof:
    """Return a proof, parsed strictly: its part of step 4.

    Raises:
        Rejection: ``claims_malformed`` or ``claim_missing``.
    """
    members = claims.load(opened.payload, _PROOF_REQUIRED)
    require(
        "iss" not in members and "sub" not in members,
        "who speaks stands in the WIT alone",
        partial(Rejection, Reason.CLAIMS_MALFORMED),
    )
    proof_claims = Claims(
        "",
        "",
        claims.text_claim(members, "aud"),
        claims.time_claim(members, "iat"),
        claims.time_claim(members, "exp"),
        claims.text_claim(members, "jti", MIN_JTI, MAX_JTI),
        claims.mqa_claim(members["mqa"]),
        claims.time_claim(members, "nbf") if "nbf" in members else None,
        claims.extra_claims(members, _PROOF_REGISTERED),
    )
    return Proof(opened, proof_claims, claims.digest_claim(members["wth"], "wth"))


def workload_key(wit: Wit) -> Key:
    """Return the workload's key of a WIT whose signature holds: on its curve, not of small order.

    Raises:
        Rejection: ``identity_invalid``.
    """
    return key_of(wit.jwk, wit.identity.subject)


def key_of(members: Mapping[str, str], *subjects: str) -> Key:
    """Return the key of a JWK that ``read_jwk`` returned; its kid is its thumbprint.

    Raises:
        Rejection: ``identity_invalid``, it is not on its curve, or of small order.
    """
    with refusing(ConfigurationError, "its key is none", _invalid):
        public = jwk.public_key(members)
    algorithm = members["alg"]
    return Key(
        kid=jkt_of(members),
        algorithm="EdDSA" if algorithm == "Ed25519" else algorithm,
        public=public,
        subjects=frozenset(subjects),
    )


def opened_token(token: bytes) -> tuple[jws.Opened, Claims]:
    """Return a token of either form, taken apart and not judged: for showing what it claims.

    Args:
        token: as it stands in its header, a proof included.

    Raises:
        Rejection: it cannot be parsed.
    """
    first, _, rest = token.partition(SEPARATOR)
    if not rest or not is_wit(first):
        opened = jws.take_apart(first)
        return opened, claims.parse(opened.payload)
    proof, wit = parse_proof(open_proof(rest.partition(SEPARATOR)[0])), parse_wit(first)
    who = wit.identity
    return proof.opened._replace(kid=who.kid), proof.claims._replace(
        iss=who.trust_domain, sub=who.subject
    )


def read_jwk(jwk: Any) -> dict[str, str]:
    """Return the members of a workload's JWK that mean something, its point unchecked.

    Raises:
        Rejection: ``identity_invalid``.
    """
    _require(
        type(jwk) is dict and all(type(value) is str for value in jwk.values()),
        "its jwk has no texts",
    )
    kind = _KINDS.get((jwk.get("kty", ""), jwk.get("crv", "")))
    if kind is None:
        raise _invalid("its jwk is of no kind that a workload may have")
    algorithms, numbers, size = kind
    members = {name: value for name, value in jwk.items() if name not in ("kid", "use")}
    _require(
        members.keys() == {"kty", "crv", "alg", *numbers},
        "its jwk has not exactly its members",
    )
    _require(members["alg"] in algorithms, "the alg of its jwk is not one of its kind")
    _require(jwk.get("use", "sig") == "sig", "the use of its jwk is not sig")
    _require(
        claims.is_name(jwk.get("kid", "-"), 1, MAX_KID),
        "the kid of its jwk is out of its limits",
    )
    _require(
        all(_size(members[name]) == size for name in numbers),
        "a number of its jwk is not in its form",
    )
    return members


def _size(number: str) -> int | None:
    """Return the bytes of a number in canonical base64url, ``None`` if it is none."""
    try:
        return len(base64url.decode(number.encode("ascii")))
    except ValueError:
        return None


def jkt_of(members: Mapping[str, str]) -> str:
    """Return the RFC 7638 thumbprint of a JWK, whether or not its point is on its curve."""
    needed = {name: value for name, value in sorted(members.items()) if name != "alg"}
    return base64url.digest(json.dumps(needed, separators=(",", ":")).encode("ascii"))


def _parameters(segment: bytes) -> dict[str, Any]:
    """Return the JOSE header of a first segment."""
    with refusing(
        ValueError, "the header is no JSON in canonical base64url", jws.malformed
    ):
        parameters = strict_json.loads(base64url.decode(segment), depth=4)
    require(type(parameters) is dict, "the header is no object", jws.malformed)
    return dict(parameters)


def _begins_as_wit(segment: bytes) -> bool:
    try:
        header = _parameters(segment)
    except Rejection:
        return False
    return header.get("typ") == WIT_TYPE and claims.is_name(header.get("kid"), 1, MAX_KID)


def _proof_header(segment: bytes) -> str:
    """Return ``alg`` of a proof's first segment."""
    header = _parameters(segment)
    if header.get("typ") != PROOF_TYPE:
        raise Rejection(Reason.TOKEN_TYPE, f"typ behind an identity is not {PROOF_TYPE}")
    if header.keys() - {"alg", "typ"}:
        raise Rejection(
            Reason.HEADER_FORBIDDEN, "a parameter besides alg and typ in a proof"
        )
    algorithm = header.get("alg")
    if type(algorithm) is not str or algorithm not in ALGORITHMS:
        raise Rejection(
            Reason.ALGORITHM_FORBIDDEN, "the alg of a proof is missing or not on the list"
        )
    return algorithm


_IS_WIT: Final = memo.Memo(_begins_as_wit)
_PROOF_HEADERS: Final = memo.Memo(_proof_header)


def _invalid(detail: str) -> Rejection:
    return Rejection(
        Reason.IDENTITY_INVALID, f"{detail}, of the identity" if detail else ""
    )


_require: Final = partial(require, error=_invalid)
