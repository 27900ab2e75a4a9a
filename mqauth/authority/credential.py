"""Credentials: a JWT of a configured issuer for this authority, or one that a producer's own keystore signed.

One kind serves Kubernetes' projected tokens, client credentials of an OpenID provider, SPIRE's JWT-SVIDs and CI
systems. A producer that has none of these signs a JWT with its own key (``mqauth-enrol+jwt``), and only for the
subjects that this key speaks for: whoever has any key of a set could otherwise ask for any grant.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

from mqauth.authority.dpop import SKEW, Jwt, open_jwt
from mqauth.authority.refusals import Refusal, Refused, grant_only
from mqauth.errors import Rejection, Unavailable, require
from mqauth.wire import claims, jws
from mqauth.wire.enrolment import CREDENTIAL_TYPE
from mqauth.wire.jwk import check_source
from mqauth.wire.keys import Key, KeySource

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


class Credential(NamedTuple):
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
        return f"Credential({self.name!r})"

    def text(self, name: str) -> str | None:
        """Return a claim that is a text, else ``None``."""
        found = self.claims.get(name)
        return found if isinstance(found, str) else None

    @property
    def jkt(self) -> str | None:
        """The thumbprint of the key that it is bound to, if it is bound (RFC 9449, section 6.1)."""
        confirmed = self.claims.get("cnf")
        found = confirmed.get("jkt") if isinstance(confirmed, dict) else None
        return found if isinstance(found, str) else None


class Reading(NamedTuple):
    """A credential that was taken apart, before it is believed.

    Args:
        jwt: its parts.
        said: what it says.
        issuer: whose it is.
    """

    jwt: Jwt
    said: Credential
    issuer: CredentialIssuer


def read(text: str, issuers: Mapping[str, CredentialIssuer]) -> Reading:
    """Take a credential apart, and find its issuer.

    Args:
        text: as it stands in ``Authorization``.
        issuers: by ``iss``.

    Raises:
        Refused: ``credential_malformed`` or ``credential_issuer``.
    """
    try:
        jwt = open_jwt(text)
        require(claims.is_name(jwt.opened.kid), "it has no kid", ValueError)
    except ValueError as error:
        raise Refused(Refusal.CREDENTIAL_MALFORMED, str(error)) from error
    name = jwt.claims.get("iss")
    found = issuers.get(name) if type(name) is str else None
    if found is None:
        raise Refused(Refusal.CREDENTIAL_ISSUER, "its iss is not configured")
    return Reading(jwt, Credential(found.name, found.issuer, jwt.opened.kid, jwt.claims), found)


def verify(reading: Reading, *, audience: str, now: float) -> Credential:
    """Return a credential that may be believed.

    Args:
        reading: of ``read``.
        audience: that ``aud`` has to say, and nothing else.
        now: UTC seconds.

    Raises:
        Refused: the first of the rules that it breaks.
        Unavailable: the issuer's keys are out of reach.
    """
    jwt, said, issuer = reading
    # Its type, and its signature.
    typ: Any = jwt.header.get("typ")
    if issuer.enrolment:
        known = typ == CREDENTIAL_TYPE
    else:
        known = typ is None or (type(typ) is str and typ.lower() in _TYPES)
    grant_only(known, Refusal.CREDENTIAL_MALFORMED, "its typ is of no credential of this issuer")
    key = _key(issuer.keys, said.kid, now)
    try:
        jws.verify(jwt.opened, key)
    except Rejection as error:
        raise Refused(Refusal.CREDENTIAL_SIGNATURE, error.detail) from error
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
    return said._replace(verified=True)


def _key(source: KeySource, kid: str, now: float) -> Key:
    """Return the issuer's key of a kid; one that ended signs no credential, whenever that was signed."""
    key: Any = None
    # A source that was never asked has no set, and its first answer is worth a wait.
    with suppress(Unavailable):
        key = source.key_set().get(kid)
    if key is None:
        try:
            keys: Any = source.refresh(kid, now)
        except Rejection as error:
            raise Refused(Refusal.CREDENTIAL_KEY, "its kid is unknown, and the issuer out of reach") from error
        key = keys.get(kid)
    grant_only(isinstance(key, Key), Refusal.CREDENTIAL_KEY, "its kid is unknown")
    grant_only(key.revocation is None, Refusal.CREDENTIAL_KEY, "its key is revoked")
    grant_only(key.expires is None or now < key.expires, Refusal.CREDENTIAL_KEY, "its key is retired")
    return cast(Key, key)
