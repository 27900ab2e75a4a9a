"""How an authority gives an identity: credential, proof, grant, rate, signature, audit, and only then the WIT.

Nothing is remembered between requests but the rates, so several authorities may share a keystore. An answer that
was lost is asked for again. A record of each identity is durable before anybody has it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from mqauth.audit.record import AuditRecord, AuditSink, sha256, token_fields
from mqauth.authority.credential import held_key
from mqauth.authority.desk import ISSUED, REFUSED, CredentialDesk, Grant, Trace
from mqauth.authority.refusals import Rate, Refusal, Refused, grant_only
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness, uuid7
from mqauth.errors import Cause, ConfigurationError, KeyChanged, Rejection, Unavailable, refusing, require
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


class IssueRequest(NamedTuple):
    """What somebody asks with.

    Args:
        credential: of ``Authorization``.
        proof: of ``DPoP``.
        subject: the identity that is wanted, ``None`` for the only one.
        bound: whether the credential came as one that is bound to a key, by the scheme DPoP.
    """

    credential: str
    proof: str
    subject: str | None = None
    bound: bool = False

    def __repr__(self) -> str:
        return f"IssueRequest(subject={self.subject!r})"


class Issued(NamedTuple):
    """An identity.

    Args:
        wit: the WIT.
        subject: whose the key is.
        lifetime: seconds from now on.
    """

    wit: str
    subject: str
    lifetime: int

    def __repr__(self) -> str:
        return f"Issued({self.subject!r})"


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

    def __repr__(self) -> str:
        return f"IdentityAuthority({self.trust_domain!r})"

    def issue(self, asked: IssueRequest, trace: Trace) -> Issued:
        """Return an identity for whoever asks, once its record is durable.

        Args:
            asked: credential, proof and subject.
            trace: is filled in with what becomes known; for ``refuse``.

        Raises:
            Refused: the request is wrong, or nobody granted it.
            Unavailable: the issuer's keys, the signing key or the audit is out of reach.
        """
        trace.subject = asked.subject
        jwk = held_key(
            asked.proof, url=self.desk.audience + PATH, credential=asked.credential, now=self._clock.now()
        )
        trace.jkt = identity.jkt_of(jwk)
        credential = self.desk.read(asked.credential, trace)
        binding, is_bound = Refusal.CREDENTIAL_BINDING, credential.jkt is not None
        grant_only(credential.jkt in (None, trace.jkt), binding, "it is bound to another key")
        # RFC 9449, sections 7.1 and 7.2
        grant_only(asked.bound is is_bound, binding, "it is shown as Bearer where it is bound, or else as DPoP")
        grant = self.desk.grant(credential, asked.subject)
        trace.subject = grant.subject
        return self.vouch(grant, jwk, trace)

    def vouch(self, grant: Grant, jwk: Mapping[str, str], trace: Trace) -> Issued:
        """Return a WIT for a key that is known to be the subject's, once its record is durable.

        Raises:
            Refused: ``subject_cut_off`` or ``rate_exceeded``.
            Unavailable: the signing key or the audit is out of reach.
        """
        now = int(self._clock.now())
        with refusing(ConfigurationError, str, _UNSIGNED):
            cutoff = self._cutoffs().get(grant.subject)
        alive = cutoff is None or now >= cutoff.before
        grant_only(alive, Refusal.SUBJECT_CUT_OFF, "the subject is cut off until later")
        wait = self._rates.take(grant.subject)
        grant_only(not wait, Refusal.RATE_EXCEEDED, "too many identities of the subject in a minute", wait)
        lifetime = grant.lifetime or self.lifetime
        claims = {
            "sub": grant.subject,
            "iat": now,
            "exp": now + lifetime,
            "jti": base64url.encode(self._randomness(16)).decode("ascii"),
            "cnf": {"jwk": dict(jwk)},
        }
        payload = strict_json.dumps(claims | dict(grant.claims))
        with refusing((ConfigurationError, KeyChanged), str, _UNSIGNED):
            key = self._keys.signing_key()
            limited = getattr(key, "subjects", None)
            require(limited is None, "the authority's key has mqauth_sub: make it with mqauth keys new --pinned")
            text = jws.compact(payload, key, typ=identity.WIT_TYPE)
        # It is read as a consumer does: nobody gets one that every consumer would refuse.
        with refusing(Rejection, lambda error: f"consumers would not take it: {error}", _UNSIGNED):
            wit = identity.parse_wit(text.encode("ascii"))
        who = wit.identity
        token = token_fields(None, who.kid, wit.opened.algorithm, None, verified=True, identity=who)
        times = {"iat": who.issued, "exp": who.expires}
        token["verified"] |= {"iss": self.trust_domain, "sub": who.subject, "jti": who.jti} | times
        token["thumbprint"] = sha256(wit.text)
        self._write(ISSUED, None, f"for {lifetime} s", token, trace)
        return Issued(wit.text.decode("ascii"), grant.subject, lifetime)

    def refuse(self, refused: Refused, trace: Trace) -> None:
        """Make the record of a refusal durable.

        Raises:
            Unavailable: ``audit_unavailable``.
        """
        # What nobody proved stands under ``claimed``.
        subject = {} if trace.subject is None else {"sub": harmless(trace.subject)}
        token = {"claimed": {"iss": self.trust_domain, **subject}, "thumbprint": None}
        self._write(REFUSED, refused.refusal.value, refused.detail, token, trace)

    def _write(self, verdict: str, reason: str | None, detail: str, token: dict[str, Any], trace: Trace) -> None:
        record = AuditRecord(
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
        written = self._audit.write(record)
        require(not is_awaitable(written), "the audit sink of an authority is asynchronous", RuntimeError)
