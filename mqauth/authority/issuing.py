"""How an authority gives an identity: credential, proof, grant, rate, signature, audit, and only then the WIT.

``CredentialDesk`` says whose a credential is and which grant it gets; ``IdentityAuthority`` signs.

Nothing is remembered between requests but the rates, so several authorities may share a keystore. An answer that
was lost is asked for again. A record of each identity is durable before anybody has it.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from mqauth.audit.record import MINUTE, AuditRecord, AuditSink, Window, token_fields
from mqauth.authority import credential
from mqauth.authority.credential import (
    CredentialIssuer,
    Refusal,
    Refused,
    ShownCredential,
    grant_only,
    held_key,
)
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness, uuid7
from mqauth.errors import (
    Cause,
    ConfigurationError,
    KeyChanged,
    Rejection,
    Unavailable,
    refusing,
    require,
)
from mqauth.flow import is_awaitable
from mqauth.logs import harmless
from mqauth.wire import base64url, identity, jws, strict_json
from mqauth.wire.keys import NO_CUTOFFS, Cutoff, SigningKeySource

PATH: Final = "/v1/identity"
LIFETIME: Final = 3600
SHORTEST: Final = 300
LONGEST: Final = 86_400
RATE: Final = 600
"""WITs of one subject a minute: a rollout starts hundreds of instances."""
_UNSIGNED: Final = partial(Unavailable, Cause.KEYS_UNAVAILABLE)
ISSUED: Final = "identity_issued"
REFUSED: Final = "identity_refused"


@dataclass(slots=True)
class Trace:
    """What is known of a request so far; an audit record has it, however the request ends.

    Args:
        address: from which it came; a command names itself.
        subject: that it asked for, or that a grant gives.
        jkt: thumbprint of the key, once it was shown to be held.
        credential: what it showed, verified or not.
    """

    address: str
    subject: str | None = None
    jkt: str | None = None
    credential: ShownCredential | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return who asked: address, key, and credential."""
        asked = {"address": harmless(self.address)} | (
            {} if self.jkt is None else {"jkt": self.jkt}
        )
        if self.credential is None:
            return asked
        shown = self.credential
        texts = {
            "kid": shown.opened.kid,
            "iss": shown.issuer.issuer,
            "sub": shown.text("sub"),
            "jti": shown.text("jti"),
        }
        known = {name: harmless(text) for name, text in texts.items() if text is not None}
        return asked | {
            "credential": {"name": shown.issuer.name, "verified": shown.verified} | known
        }


MAX_CLAIMS: Final = 16
MAX_CLAIM_BYTES: Final = 1536
"""Bytes of all claims as JSON; a WIT has at most 4,096 bytes, and each message carries one."""
MIN_LIFETIME: Final = 60
REGISTERED: Final = frozenset(
    ("iss", "sub", "aud", "exp", "nbf", "iat", "jti", "cnf", "mqa", "wth")
)
"""Claims that are never a grant's to set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A credential with these claims gets this identity.

    Args:
        credential: the name of the credential's issuer.
        match: its claims, by name; each must be this text.
        subject: the identity.
        claims: what the WIT says besides.
        lifetime: seconds that the WIT lives, ``None`` for the authority's.

    Raises:
        ConfigurationError: the claims are too many or too large, or one of them is not a grant's to set.
    """

    credential: str
    match: Mapping[str, str]
    subject: str
    claims: Mapping[str, str] = field(default_factory=dict)
    lifetime: int | None = None

    def __post_init__(self) -> None:
        require(
            not REGISTERED & self.claims.keys(),
            f"claims are none of {', '.join(sorted(REGISTERED))}",
        )
        require(
            len(self.claims) <= MAX_CLAIMS
            and len(strict_json.dumps(dict(self.claims))) <= MAX_CLAIM_BYTES,
            f"claims are at most {MAX_CLAIMS}, and {MAX_CLAIM_BYTES} bytes together",
        )

    def difference(self, credential: ShownCredential) -> str | None:
        """Return in what a credential differs from this grant, ``None`` where it matches."""
        if credential.issuer.name != self.credential:
            return f"is for credentials of {self.credential}"
        other = [
            name for name, text in self.match.items() if credential.text(name) != text
        ]
        return f"wants another {', '.join(other)}" if other else None


class CredentialDesk:
    """Reads credentials of its issuers, and looks their grants up; it needs no key, and writes no audit.

    Args:
        issuers: of credentials; names and issuers differ.
        grants: which credential gets which identity.
        audience: what ``aud`` of a credential has to say: the authority's URL.
        clock: tells the time.
    """

    def __init__(
        self,
        *,
        issuers: Iterable[CredentialIssuer],
        grants: Iterable[Grant],
        audience: str,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.grants = tuple(grants)
        self.audience = audience
        self._clock = clock
        self._by_iss = {each.issuer: each for each in issuers}

    def holder(self, text: str) -> str:
        """Return whose credential a text claims to be, as a digest; empty where it is none of a configured issuer.

        It is for counting alone: nothing of the text is believed.
        """
        try:
            shown = credential.read(text, self._by_iss)
        except (Refused, UnicodeError):
            return ""
        return hashlib.sha256(
            repr((shown.issuer.name, shown.claims.get("sub"))).encode("utf-8", "replace")
        ).hexdigest()

    def read(self, text: str, trace: Trace) -> ShownCredential:
        """Return a credential that may be believed.

        Args:
            text: as it stands in ``Authorization``.
            trace: gets what the credential says, whether or not it is believed.

        Raises:
            Refused: the first of the rules that it breaks.
            Unavailable: the keys of its issuer are out of reach.
        """
        trace.credential = shown = credential.read(text, self._by_iss)
        trace.credential = credential.verify(
            shown, audience=self.audience, now=self._clock.now()
        )
        return trace.credential

    def grant(self, credential: ShownCredential, subject: str | None) -> Grant:
        """Return the grant that a credential gets; of several for one subject the first decides.

        Args:
            credential: the credential, verified.
            subject: that was asked for, ``None`` where none was named.

        Raises:
            Refused: ``grant_missing``, or ``subject_ambiguous`` where none was named and several subjects match.
        """
        matching = [
            grant for grant in self.grants if grant.difference(credential) is None
        ]
        wanted = [grant for grant in matching if subject in (None, grant.subject)]
        grant_only(
            (
                not (subject is None and len({grant.subject for grant in matching}) > 1),
                Refusal.SUBJECT_AMBIGUOUS,
                "several grants match, and no sub was asked for",
            ),
            (
                wanted,
                Refusal.GRANT_MISSING,
                "no grant for the sub asked for" if matching else "no grant matches",
            ),
        )
        return wanted[0]


@dataclass
class Rate:
    """Says how many of one kind there may be in a minute.

    Args:
        limit: how many; 0 for any number.
        clock: tells the time.
    """

    limit: int
    clock: Clock
    _window: Window = field(
        default_factory=partial(Window, seconds=MINUTE, capacity=4096), init=False
    )
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def take(self, key: str, *, counts: bool = True) -> int:
        """Count one more of a key if there may be another now; return the seconds after which there may be.

        Args:
            key: what is counted.
            counts: ``False`` only looks.

        Returns:
            0 where there may be one now.
        """
        with self._lock:
            now = self.clock.monotonic()
            if 0 < self.limit <= self._window.peek((key,), now):
                return max(1, math.ceil(self._window.ends - now))
            if counts:
                self._window.add((key,), now)
            return 0


class IdentityAuthority:
    """Says whose a workload's key is.

    Args:
        trust_domain: of all subjects.
        desk: reads credentials and knows the grants; its audience is the authority's URL, and ``PATH`` behind that
            is a proof's ``htu``.
        keys: the key that signs; consumers know it.
        audit: where records go, plain and not asynchronous; one that fails stops the issuing.
        lifetime: seconds that a WIT lives.
        rate: WITs of one subject a minute, 0 for any number.
        cutoffs: returns the subjects that are cut off.
        clock: tells the time.
        randomness: makes ids.
    """

    def __init__(
        self,
        *,
        trust_domain: str,
        desk: CredentialDesk,
        keys: SigningKeySource,
        audit: AuditSink,
        lifetime: int = LIFETIME,
        rate: int = RATE,
        cutoffs: Callable[[], Mapping[str, Cutoff]] = lambda: NO_CUTOFFS,
        clock: Clock = SYSTEM_CLOCK,
        randomness: Randomness = SYSTEM_RANDOMNESS,
    ) -> None:
        self.trust_domain = trust_domain
        self.desk = desk
        self.lifetime = lifetime
        self._keys = keys
        self._audit: Any = audit
        self._rates = Rate(rate, clock)
        self._cutoffs = cutoffs
        self._clock = clock
        self._randomness = randomness

    def issue(
        self, shown: str, *, proof: str, subject: str | None, bound: bool, trace: Trace
    ) -> tuple[str, int]:
        """Return an identity for whoever asks, once its record is durable.

        Args:
            shown: the credential, of ``Authorization``.
            proof: of ``DPoP``.
            subject: the identity that is wanted, ``None`` for the only one.
            bound: whether the credential came as one that is bound to a key, by the scheme DPoP.
            trace: is filled in with what becomes known; for ``refuse``.

        Raises:
            Refused: the request is wrong, or nobody granted it.
            Unavailable: the issuer's keys, the signing key or the audit is out of reach.
        """
        trace.subject = subject
        jwk = held_key(
            proof, url=self.desk.audience + PATH, credential=shown, now=self._clock.now()
        )
        trace.jkt = identity.jkt_of(jwk)
        verified = self.desk.read(shown, trace)
        grant_only(
            (
                verified.jkt in (None, trace.jkt),
                Refusal.CREDENTIAL_BINDING,
                "it is bound to another key",
            ),
            # RFC 9449, sections 7.1 and 7.2
            (
                bound is (verified.jkt is not None),
                Refusal.CREDENTIAL_BINDING,
                "it is shown as Bearer where it is bound, or else as DPoP",
            ),
        )
        grant = self.desk.grant(verified, subject)
        trace.subject = grant.subject
        return self.vouch(grant, jwk, trace)

    def vouch(
        self, grant: Grant, jwk: Mapping[str, str], trace: Trace
    ) -> tuple[str, int]:
        """Return a WIT for a key that is known to be the subject's, and its seconds, once its record is durable.

        Raises:
            Refused: ``subject_cut_off`` or ``rate_exceeded``.
            Unavailable: the signing key or the audit is out of reach.
        """
        now = int(self._clock.now())
        with refusing(ConfigurationError, str, _UNSIGNED):
            cutoff = self._cutoffs().get(grant.subject)
        grant_only(
            (
                cutoff is None or now >= cutoff.before,
                Refusal.SUBJECT_CUT_OFF,
                "the subject is cut off until later",
            )
        )
        if wait := self._rates.take(grant.subject):
            raise Refused(
                Refusal.RATE_EXCEEDED,
                "too many identities of the subject in a minute",
                wait,
            )
        lifetime = grant.lifetime or self.lifetime
        payload = strict_json.dumps(
            {
                "sub": grant.subject,
                "iat": now,
                "exp": now + lifetime,
                "jti": base64url.encode(self._randomness(16)).decode("ascii"),
                "cnf": {"jwk": dict(jwk)},
            }
            | dict(grant.claims)
        )
        with refusing((ConfigurationError, KeyChanged), str, _UNSIGNED):
            key = self._keys.signing_key()
            require(
                getattr(key, "subjects", None) is None,
                "the authority's key has mqauth_sub: make it with mqauth keys new --pinned",
            )
            text = jws.compact(payload, key, typ=identity.WIT_TYPE)
        # It is read as a consumer does: nobody gets one that every consumer would refuse.
        with refusing(
            Rejection, lambda error: f"consumers would not take it: {error}", _UNSIGNED
        ):
            wit = identity.parse_wit(text.encode("ascii"))
        who = wit.identity
        token = token_fields(
            wit.text, who.kid, wit.opened.algorithm, None, verified=True, identity=who
        )
        token["verified"] |= {
            "iss": self.trust_domain,
            "sub": who.subject,
            "jti": who.jti,
            "iat": who.issued,
            "exp": who.expires,
        }
        self._write(ISSUED, None, f"for {lifetime} s", token, trace)
        return wit.text.decode("ascii"), lifetime

    def refuse(self, refused: Refused, trace: Trace) -> None:
        """Make the record of a refusal durable.

        Raises:
            Unavailable: ``audit_unavailable``.
        """
        # What nobody proved stands under ``claimed``.
        self._write(
            REFUSED,
            refused.refusal.value,
            refused.detail,
            {
                "claimed": {"iss": self.trust_domain}
                | ({} if trace.subject is None else {"sub": harmless(trace.subject)}),
                "thumbprint": None,
            },
            trace,
        )

    def _write(
        self,
        verdict: str,
        reason: str | None,
        detail: str,
        token: dict[str, Any],
        trace: Trace,
    ) -> None:
        written = self._audit.write(
            AuditRecord(
                id=uuid7(self._clock, self._randomness),
                time=self._clock.now(),
                verdict=verdict,
                reason=reason,
                detail=detail,
                scope=self.trust_domain,
                broker={},
                token=token,
                body_sha256=None,
                body_size=None,
                key_set=None,
                policy=None,
                dead_letter=None,
                instance=os.uname().nodename,
                extra={"asked": trace.as_dict()},
            )
        )
        require(
            not is_awaitable(written),
            "the audit sink of an authority is asynchronous",
            RuntimeError,
        )
