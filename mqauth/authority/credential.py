"""Credentials: a JWT of a configured issuer for this authority, or one that a producer's own keystore signed.

One kind serves Kubernetes' projected tokens, client credentials of an OpenID provider, SPIRE's JWT-SVIDs and CI
systems. A producer that has none of these signs a JWT with its own key (``mqauth-enrol+jwt``), and only for the
subjects that this key speaks for: whoever has any key of a set could otherwise ask for any grant.

Beside a credential stands a DPoP proof. JWTs of others have other headers than our tokens, so
``mqauth.wire.jws.take_apart`` does not read them. What is read here is as strict otherwise: one form of
base64url, one reading of JSON, and no ``crit``. A proof is for one method, one URL, one credential and one
minute. Its ``jti`` is not remembered: whoever repeats a request gets a WIT that only the holder of the key can
use. Sources: RFC 7515, 7519, 8725 and 9449.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, Final, NamedTuple

from mqauth.authority.refusals import Refusal, Refused, grant_only
from mqauth.errors import Rejection, Unavailable, refusing, require
from mqauth.wire import base64url, claims, identity, jws, strict_json
from mqauth.wire.dpop import HEADER, PROOF_TYPE
from mqauth.wire.enrolment import CREDENTIAL_TYPE
from mqauth.wire.jwk import check_source
from mqauth.wire.jws import ALLOWED, Opened
from mqauth.wire.keys import Key, KeySource

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
    parameters, claims = (strict_json.loads(part, depth=_DEPTH) for part in (header, payload))
    require(
        type(parameters) is dict and type(claims) is dict, "its header or its claims are no object", ValueError
    )
    algorithm, kid = parameters.get("alg"), parameters.get("kid", "")
    require(type(algorithm) is str and algorithm in ALLOWED, "its alg is not on the list", ValueError)
    require(type(kid) is str, "its kid is no text", ValueError)
    require("crit" not in parameters, "it has a crit", ValueError)
    return Jwt(parameters, claims, Opened(algorithm, kid, raw[: raw.rindex(b".")], payload, signature))


_require: Final = partial(require, error=ValueError)
SKEW: Final = 60
"""Seconds by which the clock of whoever asks may differ, either way."""


def held_key(proof: str, *, url: str, credential: str, now: float) -> Mapping[str, str]:
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
        header, members, opened = open_jwt(proof)
        _require(header.keys() == HEADER, "its header has not exactly typ, alg and jwk")
        _require(header["typ"] == PROOF_TYPE, f"its typ is not {PROOF_TYPE}")
        _require(type(header["jwk"]) is dict, "its jwk is no object")
        # A JWK in a proof need not have an alg (RFC 9449, section 4.2); if it has one, it is that of the header.
        jwk = identity.read_jwk({"alg": opened.algorithm} | header["jwk"])
        _require(jwk["alg"] == opened.algorithm, "its jwk names another alg")
        jws.verify(opened, identity.key_of(jwk))
        # What it is for: this method, URL, credential and minute.
        issued = members.get("iat")
        _require(members.get("htm") == "POST", "its htm is another method")
        _require(members.get("htu") == url, "its htu is another URL")
        _require(type(issued) is int and abs(issued - now) <= SKEW, f"its iat is not within {SKEW} s")
        _require(claims.is_name(members.get("jti")), "it has no jti")
        ath = base64url.digest(credential.encode("ascii"))
        _require(members.get("ath") == ath, "its ath is of another credential")
    except Rejection as error:
        raise Refused(Refusal.DPOP_INVALID, error.detail.replace("of the identity", "of the proof")) from error
    except ValueError as error:
        raise Refused(Refusal.DPOP_INVALID, str(error)) from error
    return jwk


MAX_LIFETIME: Final = 86_400
_TYPES: Final = frozenset(("jwt", "jose", "at+jwt", "application/jwt", "application/at+jwt"))
"""``typ`` of others' JWTs, in lower case; it may also be left out (RFC 7519, section 5.1; RFC 9068)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialIssuer:
    """An issuer of credentials.

    Args:
        name: what grants call it.
        issuer: ``iss`` of its credentials.
        keys: the source of its keys.
        max_lifetime: seconds between ``iat`` and ``exp``, at most.
        enrolment: its keys are those of producers, each for its own subjects.

    Raises:
        ConfigurationError: the keys are for something else.
    """

    name: str
    issuer: str
    keys: KeySource
    max_lifetime: int
    enrolment: bool = False

    def __post_init__(self) -> None:
        check_source(self.keys, *(() if self.enrolment else ("jwt-svid",)))


class ShownCredential(NamedTuple):
    """What a credential says.

    Args:
        name: of its issuer here.
        issuer: ``iss``.
        kid: of the key that signed it.
        claims: all of them.
        verified: whether its signature held, and all else is right.
    """

    name: str
    issuer: str
    kid: str
    claims: Mapping[str, Any]
    verified: bool = False

    def __repr__(self) -> str:
        return f"ShownCredential({self.name!r})"

    def text(self, name: str) -> str | None:
        """Return a claim that is a text, else ``None``."""
        value = self.claims.get(name)
        return value if isinstance(value, str) else None

    @property
    def jkt(self) -> str | None:
        """The thumbprint of the key that it is bound to, if it is bound (RFC 9449, section 6.1)."""
        confirmed = self.claims.get("cnf")
        thumbprint = confirmed.get("jkt") if isinstance(confirmed, dict) else None
        return thumbprint if isinstance(thumbprint, str) else None


def read(text: str, issuers: Mapping[str, CredentialIssuer]) -> tuple[ShownCredential, Jwt, CredentialIssuer]:
    """Return what a credential says before it is believed, its parts, and whose it is.

    Args:
        text: as it stands in ``Authorization``.
        issuers: by ``iss``.

    Raises:
        Refused: ``credential_malformed`` or ``credential_issuer``.
    """
    with refusing(ValueError, str, partial(Refused, Refusal.CREDENTIAL_MALFORMED)):
        jwt = open_jwt(text)
        require(claims.is_name(jwt.opened.kid), "it has no kid", ValueError)
    name = jwt.claims.get("iss")
    issuer = issuers.get(name) if type(name) is str else None
    if issuer is None:
        raise Refused(Refusal.CREDENTIAL_ISSUER, "its iss is not configured")
    return ShownCredential(issuer.name, issuer.issuer, jwt.opened.kid, jwt.claims), jwt, issuer


def verify(
    shown: ShownCredential, jwt: Jwt, issuer: CredentialIssuer, *, audience: str, now: float
) -> ShownCredential:
    """Return a credential that may be believed.

    Args:
        shown: what it says, of ``read``.
        jwt: its parts.
        issuer: whose it is.
        audience: that ``aud`` has to say, and nothing else.
        now: UTC seconds.

    Raises:
        Refused: the first of the rules that it breaks.
        Unavailable: the issuer's keys are out of reach.
    """
    # Its type, and its signature.
    typ: Any = jwt.header.get("typ")
    if issuer.enrolment:
        known = typ == CREDENTIAL_TYPE
    else:
        known = typ is None or (type(typ) is str and typ.lower() in _TYPES)
    grant_only(known, Refusal.CREDENTIAL_MALFORMED, "its typ is of no credential of this issuer")
    key: Any = None
    # A source that was never asked has no set, and its first answer is worth a wait.
    with suppress(Unavailable):
        key = issuer.keys.key_set().get(shown.kid)
    if key is None:
        with refusing(
            Rejection, "its kid is unknown, and the issuer out of reach", partial(Refused, Refusal.CREDENTIAL_KEY)
        ):
            keys: Any = issuer.keys.refresh(shown.kid, now)
        key = keys.get(shown.kid)
    # One that ended signs no credential, whenever that was signed.
    grant_only(isinstance(key, Key), Refusal.CREDENTIAL_KEY, "its kid is unknown")
    grant_only(key.revocation is None, Refusal.CREDENTIAL_KEY, "its key is revoked")
    grant_only(key.expires is None or now < key.expires, Refusal.CREDENTIAL_KEY, "its key is retired")
    with refusing(Rejection, attrgetter("detail"), partial(Refused, Refusal.CREDENTIAL_SIGNATURE)):
        jws.verify(jwt.opened, key)
    # For whom it is, and when.
    ours = jwt.claims.get("aud") in (audience, [audience])
    grant_only(ours, Refusal.CREDENTIAL_AUDIENCE, "its aud is not ours alone")
    times = {"iat": jwt.claims.get("iat"), "exp": jwt.claims.get("exp"), "nbf": jwt.claims.get("nbf", 0)}
    for name, moment in times.items():
        grant_only(type(moment) is int and moment >= 0, Refusal.CREDENTIAL_MALFORMED, f"its {name} is no time")
    issued, ends, begins = (int(moment or 0) for moment in times.values())
    grant_only(now < ends, Refusal.CREDENTIAL_TIME, "it has expired")
    grant_only(max(issued, begins) <= now + SKEW, Refusal.CREDENTIAL_TIME, "it is of the future")
    grant_only(0 < ends - issued <= issuer.max_lifetime, Refusal.CREDENTIAL_TIME, "it lives longer than the limit")
    # Whose it is: its key has to speak for its sub.
    subject = jwt.claims.get("sub")
    grant_only(claims.is_name(subject), Refusal.CREDENTIAL_MALFORMED, "it has no sub")
    speaks = not issuer.enrolment if key.subjects is None else subject in key.subjects
    grant_only(speaks, Refusal.CREDENTIAL_SUBJECT, "its key does not speak for its sub")
    # A binding that cannot be read must not make it a bearer credential. What is no binding is ignored (RFC 7800,
    # section 3.1): Keycloak says ``kc-jkt-type`` beside it.
    cnf = jwt.claims.get("cnf", {"jkt": ""})
    # The other members bind to something that is not checked here (IANA, JWT confirmation methods).
    unchecked = {"jwk", "jwe", "kid", "jku", "x5t#S256", "osc"}
    jkt = cnf.get("jkt") if type(cnf) is dict and not unchecked & cnf.keys() else None
    bound = type(jkt) is str and len(jkt) < 256
    grant_only(bound, Refusal.CREDENTIAL_BINDING, "its cnf is not a jkt alone")
    return shown._replace(verified=True)
