"""Where credentials are shown: whose they are, whether they may be believed, and what they get."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from mqauth.authority import credential, grants
from mqauth.authority.credential import Credential, CredentialIssuer
from mqauth.authority.grants import Grant
from mqauth.authority.records import Trace
from mqauth.authority.refusals import Refused
from mqauth.clock import SYSTEM_CLOCK, Clock


class CredentialDesk:
    """Reads credentials of its issuers, and looks their grants up; it needs no key, and writes no audit.

    Args:
        issuers: of credentials; names and issuers differ.
        grants: which credential gets which identity.
        audience: what ``aud`` of a credential has to say: the authority's URL.
        clock: tells the time.
    """

    def __init__(
        self, *, issuers: Iterable[CredentialIssuer], grants: Iterable[Grant], audience: str,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:  # fmt: skip
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
            said = credential.read(text, self._by_iss).said
        except (Refused, UnicodeError):
            return ""
        return hashlib.sha256(repr((said.name, said.claims.get("sub"))).encode("utf-8", "replace")).hexdigest()

    def read(self, text: str, trace: Trace) -> Credential:
        """Return a credential that may be believed.

        Args:
            text: as it stands in ``Authorization``.
            trace: gets what the credential says, whether or not it is believed.

        Raises:
            Refused: the first of the rules that it breaks.
            Unavailable: the keys of its issuer are out of reach.
        """
        reading = credential.read(text, self._by_iss)
        trace.credential = reading.said
        trace.credential = credential.verify(reading, audience=self.audience, now=self._clock.now())
        return trace.credential

    def grant(self, found: Credential, subject: str | None) -> Grant:
        """Return the grant that a credential gets.

        Raises:
            Refused: ``grant_missing`` or ``subject_ambiguous``.
        """
        return grants.choose(self.grants, found, subject)
