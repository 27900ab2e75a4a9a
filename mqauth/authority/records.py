"""What is known of a request to an authority, for its audit records and for observers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from mqauth.authority.credential import Credential
from mqauth.logs import harmless

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
