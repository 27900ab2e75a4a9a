"""Audit records of an authority: which identity was given or refused, to whom, and by which credential."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from mqauth.audit.record import AuditRecord, sha256, token_fields
from mqauth.authority.credential import Credential
from mqauth.authority.refusals import Refused
from mqauth.clock import Clock, Randomness, uuid7
from mqauth.logs import harmless
from mqauth.wire.identity import Wit

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
    credential: Credential | None = None


class Answered(NamedTuple):
    """One answer, as observers are told of it; every text is of a closed list, or configured.

    Args:
        answer: ``issued``, or the code of RFC 6749 in the answer.
        refusal: a ``Refusal``, a ``Cause``, or ``unread``; empty where an identity was given.
        credential: the name of what was shown, empty where its issuer is not configured.
        subject: whose identity was given, empty where none was.
        seconds: how long it took.
    """

    answer: str
    refusal: str
    credential: str
    subject: str
    seconds: float


class Records:
    """Makes the records of one authority.

    Args:
        trust_domain: stands as ``scope`` and as issuer.
        clock: tells the time.
        randomness: makes ids.
    """

    def __init__(self, trust_domain: str, clock: Clock, randomness: Randomness) -> None:
        self._trust_domain = trust_domain
        self._clock = clock
        self._randomness = randomness

    def issued(self, trace: Trace, wit: Wit, lifetime: int) -> AuditRecord:
        """Return the record of a WIT."""
        who = wit.identity
        said = token_fields(None, who.kid, wit.opened.algorithm, None, verified=True, identity=who)
        said["verified"] |= {
            "iss": self._trust_domain,
            "sub": who.subject,
            "jti": who.jti,
            "iat": who.issued,
            "exp": who.expires,
        }
        said["thumbprint"] = sha256(wit.text)
        return self._record(ISSUED, None, f"for {lifetime} s", said, trace)

    def refused(self, trace: Trace, refused: Refused) -> AuditRecord:
        """Return the record of a refusal; what nobody proved stands under ``claimed``."""
        said = {"iss": self._trust_domain, **({} if trace.subject is None else {"sub": harmless(trace.subject)})}
        return self._record(
            REFUSED, refused.refusal.value, refused.detail, {"claimed": said, "thumbprint": None}, trace
        )

    def _record(
        self, verdict: str, reason: str | None, detail: str, token: dict[str, Any], trace: Trace
    ) -> AuditRecord:
        return AuditRecord(
            id=uuid7(self._clock, self._randomness),
            time=self._clock.now(),
            verdict=verdict,
            reason=reason,
            detail=detail,
            scope=self._trust_domain,
            broker={},
            token=token,
            body_sha256=None,
            body_size=None,
            key_set=None,
            policy=None,
            dead_letter=None,
            instance=os.uname().nodename,
            extra={"asked": asked(trace)},
        )


def asked(trace: Trace) -> dict[str, Any]:
    """Return who asked: address, key, and credential."""
    found: dict[str, Any] = {"address": harmless(trace.address)}
    if trace.jkt is not None:
        found["jkt"] = trace.jkt
    if trace.credential is not None:
        said = trace.credential
        texts = {"kid": said.kid, "iss": said.issuer, "sub": said.text("sub"), "jti": said.text("jti")}
        found["credential"] = {"name": said.name, "verified": said.verified} | {
            name: harmless(text) for name, text in texts.items() if text is not None
        }
    return found
