"""The OpenID provider, asked over bounded HTTPS: its configuration, its keys, and an ID token for a code."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote_plus, urlencode

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.console.oidc_attempt import Attempt
from mqauth.console.oidc_settings import OIDCSettings
from mqauth.console.oidc_token import ALGORITHMS, Expected, check
from mqauth.errors import ConfigurationError
from mqauth.keystore.remote.connection import Deadline, Dial, Endpoint, FetchFailed, trust
from mqauth.keystore.remote.fetch import WELL_KNOWN
from mqauth.keystore.remote.http import get, post

TIMEOUT: Final = 10.0
"""Seconds for all that one page asks of the provider."""
REDISCOVER: Final = 3600.0
_MAX_URL: Final = 2048
_MAX_CODE: Final = 4096
_BASIC: Final = "client_secret_basic"
_POST: Final = "client_secret_post"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What the provider says of itself (OpenID Connect Discovery 1.0, section 3).

    Args:
        authorization: where people go, a URL.
        token: where codes are exchanged.
        jwks: where its keys are.
        end_session: where people log out there, a URL.
        algorithms: it signs ID tokens with, of those we allow.
        names_itself: whether its answers carry ``iss`` (RFC 9207).
        basic: whether the secret goes in the header rather than the form.
    """

    authorization: str
    token: Endpoint
    jwks: Endpoint
    end_session: str | None
    algorithms: frozenset[str]
    names_itself: bool
    basic: bool


class Provider:
    """One OpenID provider, and we its client.

    Args:
        settings: whose, and who we are.
        clock: tells the time.
        dial: opens connections; for tests.

    Raises:
        ConfigurationError: the issuer is no https URL without query, or the CA file holds no certificate.
    """

    def __init__(self, settings: OIDCSettings, *, clock: Clock = SYSTEM_CLOCK, dial: Dial | None = None) -> None:
        if "?" in settings.issuer:
            raise ConfigurationError("issuer: is a URL without query")
        self.settings = settings
        self._configuration = self._endpoint(settings.issuer.removesuffix("/") + WELL_KNOWN, "issuer")
        self._context, self._clock, self._dial = trust(settings.ca), clock, dial
        self._found: Metadata | None = None
        self._found_at = 0.0

    @property
    def known(self) -> Metadata | None:
        """What it said of itself when it was asked last; nothing is asked."""
        return self._found

    def metadata(self, deadline: Deadline | None = None) -> Metadata:
        """Return what it says of itself, asked again every hour.

        Raises:
            FetchFailed: it gave no good answer.
            ConfigurationError: it cannot be used.
        """
        now = self._clock.monotonic()
        if self._found is None or now - self._found_at >= REDISCOVER:
            self._found = self._read(self._get(self._configuration, deadline or self.deadline()))
            self._found_at = now
        return self._found

    def deadline(self) -> Deadline:
        """Return the moment until which it is waited for."""
        return Deadline(self._clock, TIMEOUT)

    def authorization_url(self, attempt: Attempt, redirect_uri: str) -> str:
        """Return where a person's login begins (OpenID Connect Core 1.0, section 3.1.2.1; RFC 7636).

        Raises:
            FetchFailed, ConfigurationError: as for ``metadata``.
        """
        where = self.metadata().authorization
        query = urlencode({
            "response_type": "code", "client_id": self.settings.client_id, "redirect_uri": redirect_uri,
            "scope": " ".join(self.settings.scopes), "state": attempt.state, "nonce": attempt.nonce,
            "code_challenge": attempt.challenge, "code_challenge_method": "S256",
        })  # fmt: skip
        return f"{where}{'&' if '?' in where else '?'}{query}"

    def claims(self, code: str, attempt: Attempt, redirect_uri: str) -> dict[str, Any]:
        """Exchange a code, and return the claims of the ID token for this login.

        The keys are read anew each time: a rotation is seen at once, and a withdrawn key is no key.

        Raises:
            FetchFailed, ConfigurationError: the provider gave no good answer.
            IDTokenError: the ID token is not what it must be.
        """
        deadline = self.deadline()
        metadata = self.metadata(deadline)
        token = self._exchange(metadata, code, attempt, redirect_uri, deadline)
        expected = Expected(
            issuer=self.settings.issuer, client_id=self.settings.client_id, nonce=attempt.nonce,
            now=self._clock.now(), algorithms=metadata.algorithms,
        )  # fmt: skip
        return check(token, self._get(metadata.jwks, deadline), expected)

    def _exchange(
        self, metadata: Metadata, code: str, attempt: Attempt, redirect_uri: str, deadline: Deadline
    ) -> str:
        """Return the ID token for a code (section 3.1.3)."""
        if not 1 <= len(code) <= _MAX_CODE:
            raise FetchFailed("no code")
        form = {
            "grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri,
            "code_verifier": attempt.verifier,
        }  # fmt: skip
        more, authorization = self._authenticate(metadata)
        answer = post(
            metadata.token, form | more, deadline=deadline, context=self._context, authorization=authorization,
            dial=self._dial,
        )  # fmt: skip
        token = (answer.document or {}).get("id_token")
        if not isinstance(token, str):
            raise FetchFailed("the answer holds no ID token")
        return token

    def _authenticate(self, metadata: Metadata) -> tuple[dict[str, str], str | None]:
        """Return form fields and header that show who we are (RFC 6749, section 2.3.1)."""
        id, secret = self.settings.client_id, self.settings.secret
        if secret is None:
            return {"client_id": id}, None
        if not metadata.basic:
            return {"client_id": id, "client_secret": secret}, None
        pair = f"{quote_plus(id)}:{quote_plus(secret)}".encode("ascii")
        return {}, f"Basic {base64.b64encode(pair).decode('ascii')}"

    def _read(self, said: Mapping[str, Any]) -> Metadata:
        """Return the metadata of a configuration that can be used."""
        if said.get("issuer") != self.settings.issuer:
            raise ConfigurationError("the identity provider's configuration is another issuer's")
        if "S256" not in _listed(said, "code_challenge_methods_supported", ("S256",)):
            raise ConfigurationError("the identity provider knows no PKCE with S256")
        algorithms = ALGORITHMS & set(_listed(said, "id_token_signing_alg_values_supported", ("RS256",)))
        if not algorithms:
            raise ConfigurationError("the identity provider signs ID tokens with no algorithm that we allow")
        ways = _listed(said, "token_endpoint_auth_methods_supported", (_BASIC,))
        if self.settings.secret is not None and not {_BASIC, _POST} & set(ways):
            raise ConfigurationError("the identity provider takes no client secret")
        leave = said.get("end_session_endpoint")
        return Metadata(
            authorization=self._url(said.get("authorization_endpoint"), "authorization_endpoint"),
            token=self._endpoint(said.get("token_endpoint"), "token_endpoint"),
            jwks=self._endpoint(said.get("jwks_uri"), "jwks_uri"),
            end_session=None if leave is None else self._url(leave, "end_session_endpoint"),
            algorithms=algorithms, basic=_BASIC in ways,
            names_itself=said.get("authorization_response_iss_parameter_supported") is True,
        )  # fmt: skip

    def _url(self, url: Any, name: str) -> str:
        """Return a URL that people may be sent to."""
        self._endpoint(url, name)
        return str(url)

    def _endpoint(self, url: Any, name: str) -> Endpoint:
        """Return where to ask: https, or http to this machine where that was allowed by name."""
        try:
            if not isinstance(url, str) or len(url) > _MAX_URL:
                raise ConfigurationError("no URL")
            return Endpoint.parse(url, unsafe_http_loopback=self.settings.unsafe_http_loopback)
        except ConfigurationError:
            raise ConfigurationError(
                f"{name}: is an https URL with a host, without user, password and fragment"
            ) from None

    def _get(self, endpoint: Endpoint, deadline: Deadline) -> Mapping[str, Any]:
        """Return a document."""
        return get(endpoint, deadline=deadline, context=self._context, dial=self._dial).document or {}


def _listed(said: Mapping[str, Any], name: str, default: Iterable[str]) -> list[str]:
    """Return a list of texts that a configuration holds."""
    found = said.get(name, [*default])
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []
