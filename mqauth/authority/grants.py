"""Grants: which credential gets which identity. They are exact; there are no patterns and no templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from mqauth.authority.credential import Credential
from mqauth.authority.refusals import Refusal, Refused
from mqauth.errors import require
from mqauth.wire import strict_json

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

    def difference(self, credential: Credential) -> str | None:
        """Return in what a credential differs from this grant, ``None`` where it matches."""
        if credential.name != self.credential:
            return f"is for credentials of {self.credential}"
        other = [name for name, text in self.match.items() if credential.text(name) != text]
        return f"wants another {', '.join(other)}" if other else None


def choose(grants: Iterable[Grant], credential: Credential, subject: str | None) -> Grant:
    """Return the grant that a credential gets; of several for one subject the first decides.

    Args:
        grants: all of them.
        credential: verified.
        subject: that was asked for, ``None`` where none was named.

    Raises:
        Refused: ``grant_missing``, or ``subject_ambiguous`` where none was named and several subjects match.
    """
    found = [grant for grant in grants if grant.difference(credential) is None]
    if subject is None and len({grant.subject for grant in found}) > 1:
        raise Refused(Refusal.SUBJECT_AMBIGUOUS, "several grants match, and no sub was asked for")
    wanted = [grant for grant in found if subject in (None, grant.subject)]
    if not wanted:
        raise Refused(Refusal.GRANT_MISSING, "no grant matches" if not found else "no grant for the sub asked for")
    return wanted[0]
