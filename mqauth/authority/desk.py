"""Where credentials are shown: whose they are, whether they may be believed, and which grant they get."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from mqauth.authority import credential
from mqauth.authority.credential import CredentialIssuer, ShownCredential
from mqauth.authority.refusals import Refusal, Refused, grant_only
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import require
from mqauth.logs import harmless
from mqauth.wire import strict_json

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
        asked: dict[str, Any] = {"address": harmless(self.address)}
        if self.jkt is not None:
            asked["jkt"] = self.jkt
        if self.credential is not None:
            shown = self.credential
            texts = {"kid": shown.kid, "iss": shown.issuer, "sub": shown.text("sub"), "jti": shown.text("jti")}
            asked["credential"] = {"name": shown.name, "verified": shown.verified} | {
                name: harmless(text) for name, text in texts.items() if text is not None
            }
        return asked


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


MAX_CLAIMS: Final = 16
MAX_CLAIM_BYTES: Final = 1536
"""Bytes of all claims as JSON; a WIT has at most 4,096 bytes, and each message carries one."""
MIN_LIFETIME: Final = 60
REGISTERED: Final = frozenset(("iss", "sub", "aud", "exp", "nbf", "iat", "jti", "cnf", "mqa", "wth"))
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
        require(not REGISTERED & self.claims.keys(), f"claims are none of {', '.join(sorted(REGISTERED))}")
        require(
            len(self.claims) <= MAX_CLAIMS and len(strict_json.dumps(dict(self.claims))) <= MAX_CLAIM_BYTES,
            f"claims are at most {MAX_CLAIMS}, and {MAX_CLAIM_BYTES} bytes together",
        )

    def difference(self, credential: ShownCredential) -> str | None:
        """Return in what a credential differs from this grant, ``None`` where it matches."""
        if credential.name != self.credential:
            return f"is for credentials of {self.credential}"
        other = [name for name, text in self.match.items() if credential.text(name) != text]
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
        self.issuers = tuple(issuers)
        self.grants = tuple(grants)
        self.audience = audience
        self._clock = clock
        self._by_iss = {each.issuer: each for each in self.issuers}

    def holder(self, text: str) -> str:
        """Return whose credential a text claims to be, as a digest; empty where it is none of a configured issuer.

        It is for counting alone: nothing of the text is believed.
        """
        try:
            shown, _, _ = credential.read(text, self._by_iss)
        except (Refused, UnicodeError):
            return ""
        return hashlib.sha256(repr((shown.name, shown.claims.get("sub"))).encode("utf-8", "replace")).hexdigest()

    def read(self, text: str, trace: Trace) -> ShownCredential:
        """Return a credential that may be believed.

        Args:
            text: as it stands in ``Authorization``.
            trace: gets what the credential says, whether or not it is believed.

        Raises:
            Refused: the first of the rules that it breaks.
            Unavailable: the keys of its issuer are out of reach.
        """
        parts = credential.read(text, self._by_iss)
        trace.credential = parts[0]
        trace.credential = credential.verify(*parts, audience=self.audience, now=self._clock.now())
        return trace.credential

    def grant(self, credential: ShownCredential, subject: str | None) -> Grant:
        """Return the grant that a credential gets; of several for one subject the first decides.

        Args:
            credential: the credential, verified.
            subject: that was asked for, ``None`` where none was named.

        Raises:
            Refused: ``grant_missing``, or ``subject_ambiguous`` where none was named and several subjects match.
        """
        matching = [grant for grant in self.grants if grant.difference(credential) is None]
        ambiguous = subject is None and len({grant.subject for grant in matching}) > 1
        grant_only(not ambiguous, Refusal.SUBJECT_AMBIGUOUS, "several grants match, and no sub was asked for")
        wanted = [grant for grant in matching if subject in (None, grant.subject)]
        missing = "no grant for the sub asked for" if matching else "no grant matches"
        grant_only(wanted, Refusal.GRANT_MISSING, missing)
        return wanted[0]
