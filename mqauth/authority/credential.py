"""Credentials: a JWT of a configured issuer for this authority, or one that a producer's own keystore signed.

One kind serves Kubernetes' projected tokens, client credentials of an OpenID provider, SPIRE's JWT-SVIDs and CI
systems. A producer that has none of these signs a JWT with its own key (``mqauth-enrol+jwt``), and only for the
subjects that this key speaks for: whoever has any key of a set could otherwise ask for any grant.

Beside a credential stands a DPoP proof. JWTs of others have other headers than our tokens, so
``mqauth.wire.jws.take_apart`` does not read them. What is read here is as strict otherwise: one form of
base64url, one reading of JSON, and no ``crit``. A proof is for one method, one URL, one credential and one
minute. Its ``jti`` is not remembered: whoever repeats a request gets a WIT that only the holder of the key can
use. Why none is believed is a closed list for the audit, and few codes for whoever asked.
Sources: RFC 7515, 7519, 8725 and 9449.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from operator import attrgetter
from typing import Any, Final, NamedTuple

from mqauth.errors import Rejection, Unavailable, refusing, require
from mqauth.keystore.identity.request import CREDENTIAL_TYPE, DPOP_HEADER, DPOP_TYPE
from mqauth.wire import base64url, claims, identity, jws, strict_json
from mqauth.wire.jwk import check_source
from mqauth.wire.keys import Key, KeySource


class Refusal(StrEnum):
    """Why a request was refused; the strings stand in audit records."""

    REQUEST_MALFORMED = "request_malformed"
    SUBJECT_AMBIGUOUS = "subject_ambiguous"
    DPOP_INVALID = "dpop_invalid"
    CREDENTIAL_MALFORMED = "credential_malformed"
    CREDENTIAL_ISSUER = "credential_issuer"
    CREDENTIAL_KEY = "credential_key"
    CREDENTIAL_SIGNATURE = "credential_signature"
    CREDENTIAL_AUDIENCE = "credential_audience"
    CREDENTIAL_TIME = "credential_time"
    CREDENTIAL_SUBJECT = "credential_subject"
    CREDENTIAL_BINDING = "credential_binding"
    GRANT_MISSING = "grant_missing"
    SUBJECT_CUT_OFF = "subject_cut_off"
    RATE_EXCEEDED = "rate_exceeded"


class Answer(NamedTuple):
    """What is answered: a status of HTTP and, unless that is 200, ``error`` (RFC 6749, section 5.2)."""

    status: int
    error: str


ISSUED: Final = Answer(200, "issued")
UNAVAILABLE: Final = Answer(503, "temporarily_unavailable")
SLOW_DOWN: Final = Answer(429, "slow_down")
_ANSWERS: Final[Mapping[Refusal, Answer]] = {
    Refusal.REQUEST_MALFORMED: Answer(400, "invalid_request"),
    Refusal.SUBJECT_AMBIGUOUS: Answer(400, "invalid_request"),
    Refusal.DPOP_INVALID: Answer(400, "invalid_dpop_proof"),
    Refusal.GRANT_MISSING: Answer(403, "access_denied"),
    Refusal.SUBJECT_CUT_OFF: Answer(403, "access_denied"),
    Refusal.RATE_EXCEEDED: SLOW_DOWN,
}


class Refused(Exception):
    """A request is refused.

    Args:
        refusal: why.
        detail: one line for the audit, without a token or key; whoever asked does not get it.
        wait: seconds after which to ask again, 0 where that helps nothing.
    """

    def __init__(self, refusal: Refusal, detail: str, wait: int = 0) -> None:
        super().__init__(f"{refusal.value}: {detail}")
        self.refusal = refusal
        self.detail = detail
        self.wait = wait

    @property
    def answer(self) -> Answer:
        """What whoever asked gets: the same for every fault of a credential."""
        return _ANSWERS.get(self.refusal, Answer(401, "invalid_client"))


def grant_only(*rules: tuple[object, Refusal, str]) -> None:
    """Refuse a request by the first rule that does not hold.

    Args:
        rules: a condition each, and the arguments of ``Refused``.

    Raises:
        Refused: one of them does not hold.
    """
    for holds, refusal, detail in rules:
        require(holds, detail, partial(Refused, refusal))


MAX_JWT: Final = 8192
"""Bytes of a credential or of a proof."""


_require: Final = partial(require, error=ValueError)


def open_jwt(text: str) -> tuple[dict[str, Any], dict[str, Any], jws.Opened]:
    """Take a JWT apart: its JOSE header, its claims, and both for ``jws.verify``; nothing in it is believed.

    Raises:
        ValueError: it is too large, in another form, or has an algorithm that is not on the list.
    """
    _require(len(text) <= MAX_JWT, f"over {MAX_JWT} bytes")
    raw = text.encode("ascii")
    segments = raw.split(b".", 3)
    _require(len(segments) == 3, "not three segments")
    first, payload, signature = (base64url.decode(segment) for segment in segments)
    header, members = (strict_json.loads(part, depth=8) for part in (first, payload))
    _require(
        type(header) is dict and type(members) is dict,
        "its header or its claims are no object",
    )
    algorithm, kid = header.get("alg"), header.get("kid", "")
    _require(
        type(algorithm) is str and algorithm in jws.ALLOWED, "its alg is not on the list"
    )
    _require(type(kid) is str, "its kid is no text")
    _require("crit" not in header, "it has a crit")
    return (
        header,
        members,
        jws.Opened(algorithm, kid, raw[: raw.rindex(b".")], payload, signature),
    )


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
    invalid = partial(Refused, Refusal.DPOP_INVALID)
    with (
        refusing(
            Rejection,
            lambda error: error.detail.replace("of the identity", "of the proof"),
            invalid,
        ),
        refusing(ValueError, str, invalid),
    ):
        header, members, opened = open_jwt(proof)
        _require(
            header.keys() == DPOP_HEADER, "its header has not exactly typ, alg and jwk"
        )
        _require(header["typ"] == DPOP_TYPE, f"its typ is not {DPOP_TYPE}")
        _require(type(header["jwk"]) is dict, "its jwk is no object")
        # A JWK in a proof need not have an alg (RFC 9449, section 4.2); if it has one, it is that of the header.
        jwk = identity.read_jwk({"alg": opened.algorithm} | header["jwk"])
        _require(jwk["alg"] == opened.algorithm, "its jwk names another alg")
        jws.verify(opened, identity.key_of(jwk))
        # What it is for: this method, URL, credential and minute.
        issued, ath = members.get("iat"), base64url.digest(credential.encode("ascii"))
        for holds, what in (
            (members.get("htm") == "POST", "its htm is another method"),
            (members.get("htu") == url, "its htu is another URL"),
            (
                type(issued) is int and abs(issued - now) <= SKEW,
                f"its iat is not within {SKEW} s",
            ),
            (claims.is_name(members.get("jti")), "it has no jti"),
            (members.get("ath") == ath, "its ath is of another credential"),
        ):
            _require(holds, what)
    return jwk


MAX_LIFETIME: Final = 86_400
_TYPES: Final = frozenset(
    ("jwt", "jose", "at+jwt", "application/jwt", "application/at+jwt")
)
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


@dataclass(frozen=True, slots=True, repr=False)
class ShownCredential:
    """What a credential says, taken apart by ``open_jwt``.

    Args:
        issuer: whose it is, as ``iss`` says.
        header: its JOSE header.
        claims: all of them.
        opened: both for ``jws.verify``.
        verified: whether its signature held, and all else is right.
    """

    issuer: CredentialIssuer
    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    opened: jws.Opened
    verified: bool = False

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


def read(text: str, issuers: Mapping[str, CredentialIssuer]) -> ShownCredential:
    """Return what a credential says before it is believed.

    Args:
        text: as it stands in ``Authorization``.
        issuers: by ``iss``.

    Raises:
        Refused: ``credential_malformed`` or ``credential_issuer``.
    """
    with refusing(ValueError, str, partial(Refused, Refusal.CREDENTIAL_MALFORMED)):
        header, members, opened = open_jwt(text)
        _require(claims.is_name(opened.kid), "it has no kid")
    name = members.get("iss")
    issuer = require(
        issuers.get(name) if type(name) is str else None,
        "its iss is not configured",
        partial(Refused, Refusal.CREDENTIAL_ISSUER),
    )
    return ShownCredential(issuer, header, members, opened)


def verify(shown: ShownCredential, *, audience: str, now: float) -> ShownCredential:
    """Return a credential that may be believed.

    Args:
        shown: what it says, of ``read``.
        audience: that ``aud`` has to say, and nothing else.
        now: UTC seconds.

    Raises:
        Refused: the first of the rules that it breaks.
        Unavailable: the issuer's keys are out of reach.
    """
    # Its type, and its signature.
    claimed, issuer, kid = shown.claims, shown.issuer, shown.opened.kid
    typ = shown.header.get("typ")
    others = typ is None or (type(typ) is str and typ.lower() in _TYPES)
    known = typ == CREDENTIAL_TYPE if issuer.enrolment else others
    grant_only(
        (
            known,
            Refusal.CREDENTIAL_MALFORMED,
            "its typ is of no credential of this issuer",
        )
    )
    key: Any = None
    # A source that was never asked has no set, and its first answer is worth a wait.
    with suppress(Unavailable):
        key = issuer.keys.key_set().get(kid)
    if key is None:
        with refusing(
            Rejection,
            "its kid is unknown, and the issuer out of reach",
            partial(Refused, Refusal.CREDENTIAL_KEY),
        ):
            keys: Any = issuer.keys.refresh(kid, now)
        key = keys.get(kid)
    # One that ended signs no credential, whenever that was signed.
    grant_only((isinstance(key, Key), Refusal.CREDENTIAL_KEY, "its kid is unknown"))
    grant_only(
        (key.revocation is None, Refusal.CREDENTIAL_KEY, "its key is revoked"),
        (
            key.expires is None or now < key.expires,
            Refusal.CREDENTIAL_KEY,
            "its key is retired",
        ),
    )
    with refusing(
        Rejection, attrgetter("detail"), partial(Refused, Refusal.CREDENTIAL_SIGNATURE)
    ):
        jws.verify(shown.opened, key)
    # For whom it is.
    grant_only(
        (
            claimed.get("aud") in (audience, [audience]),
            Refusal.CREDENTIAL_AUDIENCE,
            "its aud is not ours alone",
        )
    )
    times = {
        "iat": claimed.get("iat"),
        "exp": claimed.get("exp"),
        "nbf": claimed.get("nbf", 0),
    }
    for name, moment in times.items():
        grant_only(
            (
                type(moment) is int and moment >= 0,
                Refusal.CREDENTIAL_MALFORMED,
                f"its {name} is no time",
            )
        )
    issued, ends, begins = (int(moment or 0) for moment in times.values())
    # A binding that cannot be read must not make it a bearer credential. What is no binding is ignored (RFC 7800,
    # section 3.1): Keycloak says ``kc-jkt-type`` beside it.
    cnf = claimed.get("cnf", {"jkt": ""})
    # The other members bind to something that is not checked here (IANA, JWT confirmation methods).
    unchecked = {"jwk", "jwe", "kid", "jku", "x5t#S256", "osc"}
    jkt = cnf.get("jkt") if type(cnf) is dict and not unchecked & cnf.keys() else None
    bound = type(jkt) is str and len(jkt) < 256
    subject = shown.text("sub")
    speaks = not issuer.enrolment if key.subjects is None else subject in key.subjects
    grant_only(
        (now < ends, Refusal.CREDENTIAL_TIME, "it has expired"),
        (
            max(issued, begins) <= now + SKEW,
            Refusal.CREDENTIAL_TIME,
            "it is of the future",
        ),
        (
            0 < ends - issued <= issuer.max_lifetime,
            Refusal.CREDENTIAL_TIME,
            "it lives longer than the limit",
        ),
        (claims.is_name(subject), Refusal.CREDENTIAL_MALFORMED, "it has no sub"),
        (speaks, Refusal.CREDENTIAL_SUBJECT, "its key does not speak for its sub"),
        (bound, Refusal.CREDENTIAL_BINDING, "its cnf is not a jkt alone"),
    )
    return replace(shown, verified=True)
