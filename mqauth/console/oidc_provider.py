"""The OpenID provider, asked over bounded HTTPS, and the logins under way at it.

The secrets of a login lie sealed in the cookie of the browser that began it. So nothing piles up here, however
many logins are begun and never ended.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final
from urllib.parse import quote_plus, urlencode

from cryptography.fernet import Fernet, InvalidToken

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.console.oidc import ALGORITHMS, OIDCSettings, check
from mqauth.errors import ConfigurationError, require
from mqauth.http.connection import Deadline, Dial, Endpoint, FetchFailed, tls_context
from mqauth.http.exchange import request
from mqauth.keystore.remote.fetch import WELL_KNOWN

LIFETIME: Final = 600
"""Seconds within which people must come back from the provider."""
MAX_USED: Final = 10_000
TIMEOUT: Final = 10.0
"""Seconds for all questions to the provider that one page asks."""
REDISCOVER: Final = 3600.0
_BASIC: Final = "client_secret_basic"
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

    @property
    def challenge(self) -> str:
        """The S256 challenge of PKCE."""
        digest = hashlib.sha256(self.verifier.encode("ascii")).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


class Attempts:
    """The logins that this process began. Each can be ended once, by the browser that began it.

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
        try:
            raw = self._seal.decrypt_at_time((sealed or "").encode("ascii"), LIFETIME, int(self._clock.now()))
        except (InvalidToken, ValueError):
            return None
        attempt, now = Attempt(**json.loads(raw)), self._clock.monotonic()
        same = hmac.compare_digest(attempt.state.encode(), state.encode("utf-8", "replace"))
        while self._used and (len(self._used) >= MAX_USED or next(iter(self._used.values())) <= now):
            self._used.popitem(last=False)
        if not same or attempt.state in self._used:
            return None
        # Twice as long as the cookie is valid by the wall clock, which may be set back.
        self._used[attempt.state] = now + 2 * LIFETIME
        return attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What the provider publishes of itself (OpenID Connect Discovery 1.0, section 3).

    Args:
        authorization: URL where people log in.
        token: where codes are exchanged.
        jwks: where its keys are.
        end_session: URL where people log out there.
        algorithms: with which it signs ID tokens, of those we allow.
        names_itself: whether its answers have ``iss`` (RFC 9207).
        basic: whether the secret is sent in the header rather than in the form.
    """

    authorization: str
    token: Endpoint
    jwks: Endpoint
    end_session: str | None
    algorithms: frozenset[str]
    names_itself: bool
    basic: bool


class Provider:
    """One OpenID provider, whose client the console is.

    Args:
        settings: of the provider, and of us as its client.
        clock: tells the time.
        dial: opens connections; for tests.

    Raises:
        ConfigurationError: the issuer is no https URL without query, or the CA file holds no certificate.
    """

    def __init__(self, settings: OIDCSettings, *, clock: Clock = SYSTEM_CLOCK, dial: Dial | None = None) -> None:
        require("?" not in settings.issuer, "issuer: must be a URL without query")
        self.settings = settings
        self._configuration = self._endpoint(settings.issuer.removesuffix("/") + WELL_KNOWN, "issuer")
        self._context, self._clock, self._dial = tls_context(settings.ca), clock, dial
        self.known: Metadata | None = None
        """What it published of itself when it was asked last."""
        self._asked_at = 0.0

    def metadata(self, deadline: Deadline | None = None) -> Metadata:
        """Return what the provider publishes of itself, asked again every hour.

        Raises:
            FetchFailed: it gave no good answer.
            ConfigurationError: what it publishes cannot be used.
        """
        now = self._clock.monotonic()
        if self.known is None or now - self._asked_at >= REDISCOVER:
            document = self._get(self._configuration, deadline or Deadline(self._clock, TIMEOUT))
            require(
                document.get("issuer") == self.settings.issuer,
                "the identity provider's configuration is another issuer's",
            )
            require(
                "S256" in _listed(document, "code_challenge_methods_supported", ("S256",)),
                "the identity provider does not support PKCE with S256",
            )
            algorithms = ALGORITHMS & set(_listed(document, "id_token_signing_alg_values_supported", ("RS256",)))
            require(algorithms, "the identity provider signs ID tokens with none of the algorithms that we allow")
            ways = _listed(document, "token_endpoint_auth_methods_supported", (_BASIC,))
            require(
                self.settings.secret is None or {_BASIC, "client_secret_post"} & set(ways),
                "the identity provider accepts no client secret",
            )
            leave = document.get("end_session_endpoint")
            self.known = Metadata(
                authorization=self._url(document.get("authorization_endpoint"), "authorization_endpoint"),
                token=self._endpoint(document.get("token_endpoint"), "token_endpoint"),
                jwks=self._endpoint(document.get("jwks_uri"), "jwks_uri"),
                end_session=None if leave is None else self._url(leave, "end_session_endpoint"),
                algorithms=algorithms,
                basic=_BASIC in ways,
                names_itself=document.get("authorization_response_iss_parameter_supported") is True,
            )
            self._asked_at = now
        return self.known

    def authorization_url(self, attempt: Attempt, redirect_uri: str) -> str:
        """Return where a person's login begins (OpenID Connect Core 1.0, section 3.1.2.1; RFC 7636).

        Raises:
            FetchFailed, ConfigurationError: as for ``metadata``.
        """
        where = self.metadata().authorization
        query = urlencode(
            {
                "response_type": "code",
                "client_id": self.settings.client_id,
                "redirect_uri": redirect_uri,
                "scope": " ".join(self.settings.scopes),
                "state": attempt.state,
                "nonce": attempt.nonce,
                "code_challenge": attempt.challenge,
                "code_challenge_method": "S256",
            }
        )
        return f"{where}{'&' if '?' in where else '?'}{query}"

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
        if secret is not None and metadata.basic:
            pair = f"{quote_plus(id)}:{quote_plus(secret)}".encode("ascii")
            authorization = f"Basic {base64.b64encode(pair).decode('ascii')}"
        else:
            form |= {"client_id": id} | ({} if secret is None else {"client_secret": secret})
        answer = request(
            metadata.token,
            deadline=deadline,
            context=self._context,
            form=form,
            headers={"Authorization": authorization},
            dial=self._dial,
        )
        token = (answer.document or {}).get("id_token")
        if not isinstance(token, str):
            raise FetchFailed("the answer holds no ID token")
        # The keys are read for each login: a rotation is seen at once, and a withdrawn key is no key any more.
        return check(
            token,
            self._get(metadata.jwks, deadline),
            self.settings,
            nonce=attempt.nonce,
            now=self._clock.now(),
            algorithms=metadata.algorithms,
        )

    def _url(self, url: Any, name: str) -> str:
        """Return a URL that people may be sent to."""
        self._endpoint(url, name)
        return str(url)

    def _endpoint(self, url: Any, name: str) -> Endpoint:
        """Return where to ask: https, or http to this machine where the settings allow that by name."""
        try:
            require(isinstance(url, str) and len(url) <= 2048, "no URL")
            return Endpoint.parse(url, unsafe_http_loopback=self.settings.unsafe_http_loopback)
        except ConfigurationError:
            raise ConfigurationError(
                f"{name}: must be an https URL with a host, without user, password and fragment"
            ) from None

    def _get(self, endpoint: Endpoint, deadline: Deadline) -> Mapping[str, Any]:
        return request(endpoint, deadline=deadline, context=self._context, dial=self._dial).document or {}


def _listed(document: Mapping[str, Any], name: str, default: Iterable[str]) -> list[str]:
    listed = document.get(name, [*default])
    return [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []
