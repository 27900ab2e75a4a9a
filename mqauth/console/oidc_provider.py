"""The OpenID provider, asked over bounded HTTPS, and the logins under way at it.

The secrets of a login lie sealed in the cookie of the browser that began it. So nothing piles up here, however
many logins are begun and never ended.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final
from urllib.parse import quote_plus, urlencode

from cryptography.fernet import Fernet, InvalidToken

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.console.oidc import ALGORITHMS, OIDCSettings, check
from mqauth.errors import ConfigurationError, refusing, require
from mqauth.http.connection import Deadline, Dial, Endpoint, FetchFailed, tls_context
from mqauth.http.exchange import request
from mqauth.keystore.remote.fetch import REDISCOVER, WELL_KNOWN
from mqauth.wire import base64url, memo

LIFETIME: Final = 600
"""Seconds within which people must come back from the provider."""
MAX_USED: Final = 10_000
TIMEOUT: Final = 10.0
"""Seconds for all questions to the provider that one page asks."""
_BASIC: Final = "client_secret_basic"
_WAYS: Final = "token_endpoint_auth_methods_supported"
_SIGNS: Final = "id_token_signing_alg_values_supported"
_secret: Final = partial(secrets.token_urlsafe, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The secrets of one login, of 256 random bits each.

    Args:
        state: comes back in the callback.
        nonce: comes back in the ID token.
        verifier: of PKCE; only the token endpoint sees it (RFC 7636).
    """

    state: str = field(default_factory=_secret, repr=False)
    nonce: str = field(default_factory=_secret, repr=False)
    verifier: str = field(default_factory=_secret, repr=False)


@dataclass
class Attempts:
    """The logins that this process began. Each can be ended once, by the browser that began it.

    Args:
        clock: tells the time.
    """

    clock: Clock = SYSTEM_CLOCK
    _seal: Fernet = field(
        default_factory=lambda: Fernet(Fernet.generate_key()), init=False, repr=False
    )
    # The states of those that were used, far more than people log in within the life of a cookie.
    _used: memo.Recent[str, None] = field(
        default_factory=lambda: memo.Recent(MAX_USED), init=False
    )

    def begin(self) -> tuple[Attempt, str]:
        """Return a new login, and the same sealed, for the cookie."""
        attempt = Attempt()
        return attempt, self._seal.encrypt_at_time(
            json.dumps(asdict(attempt)).encode("ascii"), int(self.clock.now())
        ).decode("ascii")

    def redeem(self, sealed: str | None, state: str) -> Attempt | None:
        """Return the login that comes back; ``None`` if it is not this browser's, too old, or was used before."""
        try:
            raw = self._seal.decrypt_at_time(
                (sealed or "").encode("ascii"), LIFETIME, int(self.clock.now())
            )
        except (InvalidToken, ValueError):
            return None
        attempt = Attempt(**json.loads(raw))
        if (
            not hmac.compare_digest(
                attempt.state.encode(), state.encode("utf-8", "replace")
            )
            or attempt.state in self._used
        ):
            return None
        self._used.keep(attempt.state, None)
        return attempt


class Provider:
    """One OpenID provider, whose client the console is.

    Args:
        settings: of the provider, and of us as its client.
        clock: tells the time.
        dial: opens connections; for tests.

    Raises:
        ConfigurationError: the issuer is no https URL without query, or the CA file holds no certificate.
    """

    def __init__(
        self,
        settings: OIDCSettings,
        *,
        clock: Clock = SYSTEM_CLOCK,
        dial: Dial | None = None,
    ) -> None:
        require("?" not in settings.issuer, "issuer: must be a URL without query")
        self.settings = settings
        self._configuration = self._endpoint(
            settings.issuer.removesuffix("/") + WELL_KNOWN, "issuer"
        )
        self._context, self._clock, self._dial = tls_context(settings.ca), clock, dial
        self.known: Mapping[str, Any] = {}
        """What it published of itself when it was asked last (OpenID Connect Discovery 1.0, section 3)."""
        self._asked_at = 0.0

    def metadata(self, deadline: Deadline | None = None) -> Mapping[str, Any]:
        """Return what the provider publishes of itself, asked again every hour; its URLs may be used.

        Raises:
            FetchFailed: it gave no good answer.
            ConfigurationError: what it publishes cannot be used.
        """
        now = self._clock.monotonic()
        if not self.known or now - self._asked_at >= REDISCOVER:
            document = self._get(
                self._configuration, deadline or Deadline(self._clock, TIMEOUT)
            )
            for holds, what in (
                (
                    document.get("issuer") == self.settings.issuer,
                    "'s configuration is another issuer's",
                ),
                (
                    "S256"
                    in _listed(document, "code_challenge_methods_supported", "S256"),
                    " does not support PKCE with S256",
                ),
                (
                    ALGORITHMS & _listed(document, _SIGNS, "RS256"),
                    " signs ID tokens with none of the algorithms that we allow",
                ),
                (
                    self.settings.secret is None
                    or {_BASIC, "client_secret_post"} & _listed(document, _WAYS, _BASIC),
                    " accepts no client secret",
                ),
            ):
                require(holds, f"the identity provider{what}")
            end = (
                ["end_session_endpoint"]
                if document.get("end_session_endpoint") is not None
                else []
            )
            for name in ("authorization_endpoint", "token_endpoint", "jwks_uri", *end):
                self._endpoint(document.get(name), name)
            self.known, self._asked_at = document, now
        return self.known

    def authorization_url(self, attempt: Attempt, redirect_uri: str) -> str:
        """Return where a person's login begins (OpenID Connect Core 1.0, section 3.1.2.1; RFC 7636).

        Raises:
            FetchFailed, ConfigurationError: as for ``metadata``.
        """
        where = str(self.metadata()["authorization_endpoint"])
        return (
            where
            + ("&" if "?" in where else "?")
            + urlencode(
                {
                    "response_type": "code",
                    "client_id": self.settings.client_id,
                    "redirect_uri": redirect_uri,
                    "scope": " ".join(self.settings.scopes),
                    "state": attempt.state,
                    "nonce": attempt.nonce,
                    "code_challenge": base64url.digest(attempt.verifier.encode("ascii")),
                    "code_challenge_method": "S256",
                }
            )
        )

    def claims(self, code: str, attempt: Attempt, redirect_uri: str) -> dict[str, Any]:
        """Exchange a code, and return the claims of the ID token for this login.

        Raises:
            FetchFailed, ConfigurationError: the provider gave no good answer.
            IDTokenError: the ID token is not what it must be.
        """
        deadline = Deadline(self._clock, TIMEOUT)
        metadata = self.metadata(deadline)
        # The code is exchanged for the ID token (OpenID Connect Core 1.0, section 3.1.3); the client authenticates
        # itself in the form, or in the header (RFC 6749, section 2.3.1).
        require(1 <= len(code) <= 4096, "no code", FetchFailed)
        id, secret, authorization = self.settings.client_id, self.settings.secret, None
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": attempt.verifier,
        }
        if secret is not None and _BASIC in _listed(metadata, _WAYS, _BASIC):
            pair = f"{quote_plus(id)}:{quote_plus(secret)}".encode("ascii")
            authorization = f"Basic {base64.b64encode(pair).decode('ascii')}"
        else:
            form |= {"client_id": id} | (
                {} if secret is None else {"client_secret": secret}
            )
        answer = request(
            self._endpoint(metadata["token_endpoint"], "token_endpoint"),
            deadline=deadline,
            context=self._context,
            form=form,
            headers={"Authorization": authorization},
            dial=self._dial,
        )
        token: Any = (answer.document or {}).get("id_token")
        require(isinstance(token, str), "the answer holds no ID token", FetchFailed)
        # The keys are read for each login: a rotation is seen at once, and a withdrawn key is no key any more.
        return check(
            token,
            self._get(self._endpoint(metadata["jwks_uri"], "jwks_uri"), deadline),
            self.settings,
            nonce=attempt.nonce,
            now=self._clock.now(),
            algorithms=_listed(metadata, _SIGNS, "RS256"),
        )

    def _endpoint(self, url: Any, name: str) -> Endpoint:
        """Return where to ask: https, or http to this machine where the settings allow that by name."""
        with refusing(
            ConfigurationError,
            f"{name}: must be an https URL with a host, without user, password and fragment",
        ):
            require(isinstance(url, str) and len(url) <= 2048, "no URL")
            return Endpoint.parse(
                url, unsafe_http_loopback=self.settings.unsafe_http_loopback
            )

    def _get(self, endpoint: Endpoint, deadline: Deadline) -> Mapping[str, Any]:
        return (
            request(
                endpoint, deadline=deadline, context=self._context, dial=self._dial
            ).document
            or {}
        )


def _listed(document: Mapping[str, Any], name: str, default: str) -> set[str]:
    listed = document.get(name, [default])
    return (
        {text for text in listed if isinstance(text, str)}
        if isinstance(listed, list)
        else set()
    )
