"""A login under way at the provider: its secrets lie sealed in the browser's cookie, and nothing piles up here."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import Final

from cryptography.fernet import Fernet, InvalidToken

from mqauth.clock import SYSTEM_CLOCK, Clock

LIFETIME: Final = 600
"""Seconds within which people come back from the provider."""
MAX_USED: Final = 10_000


def _secret() -> str:
    """Return 256 random bits."""
    return secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One login.

    Args:
        state: comes back in the callback.
        nonce: comes back in the ID token.
        verifier: PKCE's, shown to the token endpoint alone (RFC 7636).
    """

    state: str = field(default_factory=_secret, repr=False)
    nonce: str = field(default_factory=_secret, repr=False)
    verifier: str = field(default_factory=_secret, repr=False)

    @property
    def challenge(self) -> str:
        """PKCE's S256 challenge."""
        digest = hashlib.sha256(self.verifier.encode("ascii")).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


class Attempts:
    """Logins begun by this process, each to be ended once, by the browser that began it.

    Args:
        clock: tells the time.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._seal = Fernet(Fernet.generate_key())
        self._used: OrderedDict[str, float] = OrderedDict()

    def begin(self) -> tuple[Attempt, str]:
        """Return a new login, and the same sealed, for the cookie."""
        attempt = Attempt()
        raw = json.dumps(asdict(attempt)).encode("ascii")
        return attempt, self._seal.encrypt_at_time(raw, int(self._clock.now())).decode("ascii")

    def redeem(self, sealed: str | None, state: str) -> Attempt | None:
        """Return the login that comes back; ``None`` if it is not this browser's, too old, or was used before."""
        attempt = self._open(sealed or "")
        if attempt is None or not hmac.compare_digest(attempt.state.encode(), state.encode("utf-8", "replace")):
            return None
        return attempt if self._use(attempt.state) else None

    def _open(self, sealed: str) -> Attempt | None:
        """Return what a cookie holds that we sealed in time."""
        try:
            raw = self._seal.decrypt_at_time(sealed.encode("ascii"), LIFETIME, int(self._clock.now()))
        except (InvalidToken, ValueError):
            return None
        return Attempt(**json.loads(raw))

    def _use(self, state: str) -> bool:
        """Note that a login has come back; tell whether it is the first time."""
        now = self._clock.monotonic()
        while self._used and (len(self._used) >= MAX_USED or next(iter(self._used.values())) <= now):
            self._used.popitem(last=False)
        if state in self._used:
            return False
        self._used[state] = now + 2 * LIFETIME  # a cookie from a clock set back lives longer
        return True
