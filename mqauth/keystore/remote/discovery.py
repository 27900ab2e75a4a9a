"""OIDC discovery: the keys of an issuer, found from its name alone (OpenID Connect Discovery 1.0, section 4)."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack

from mqauth.clock import SYSTEM_CLOCK, Clock, Randomness
from mqauth.errors import ConfigurationError
from mqauth.keystore.remote.fetch import answer_of
from mqauth.keystore.remote.health import OnEvent
from mqauth.keystore.remote.http import get
from mqauth.keystore.remote.http_answer import Response
from mqauth.keystore.remote.http_connection import Deadline, Dial, Endpoint, FetchFailed, check_timeout, trust
from mqauth.keystore.remote.jwks import JWKS
from mqauth.keystore.remote.rules import Answer

WELL_KNOWN: Final = "/.well-known/openid-configuration"
_REDISCOVER: Final = 3600.0


class JWKSSettings(TypedDict, total=False):
    """Settings of ``JWKS`` that discovery hands through."""

    max_stale: float
    publish_delay: float
    fresh: float
    max_hold: float
    wait: float
    snapshot: str | Path | None
    on_event: OnEvent | None
    randomness: Randomness


def discover(
    issuer: str,
    *,
    timeout: float = 5,
    ca: str | Path | None = None,
    unsafe_http_loopback: bool = False,
    clock: Clock = SYSTEM_CLOCK,
    **settings: Unpack[JWKSSettings],
) -> JWKS:
    """Return the keys of an issuer that publishes an OpenID configuration; nothing is fetched yet.

    Args:
        issuer: its https URL, exactly as tokens name it.
        timeout: seconds for a whole attempt, both documents together, at most 5.
        ca: PEM file of the CAs to trust instead of the system's, for both.
        unsafe_http_loopback: allow http to this machine.
        clock: tells the time.
        settings: as for ``JWKS``.

    Raises:
        ConfigurationError: the issuer is no https URL, or a bound is not allowed.
    """
    fetch = DiscoveredFetch(
        issuer, unsafe_http_loopback=unsafe_http_loopback, timeout=timeout, context=trust(ca), clock=clock
    )
    return JWKS(
        issuer, fetch=fetch, unsafe_http_loopback=unsafe_http_loopback, timeout=timeout, clock=clock, **settings
    )


class DiscoveredFetch:
    """Fetches a JWK Set from where the issuer's OpenID configuration says it is.

    The configuration is read again every hour and after each failure. Both documents share one timeout.

    Args:
        issuer: the issuer, which the configuration must repeat exactly (OIDC Discovery 1.0, section 4.3).
        unsafe_http_loopback: allow http on loopback, for both documents.
        timeout: seconds for a whole attempt.
        context: TLS settings.
        clock: tells the time.
        dial: opens connections; for tests.

    Raises:
        ConfigurationError: the issuer is no https URL without query.
    """

    def __init__(
        self, issuer: str, *, unsafe_http_loopback: bool, timeout: float, context: ssl.SSLContext | None,
        clock: Clock, dial: Dial | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(issuer, str) or "?" in issuer:
            raise ConfigurationError("an issuer to be discovered is an https URL without query")
        self.endpoint = Endpoint.parse(
            issuer.removesuffix("/") + WELL_KNOWN, unsafe_http_loopback=unsafe_http_loopback
        )
        self._issuer = issuer
        self._loopback = unsafe_http_loopback
        self._timeout = check_timeout(timeout)
        self._context = context
        self._clock = clock
        self._dial = dial
        self._found: Endpoint | None = None
        self._found_at = 0.0

    def __call__(self, etag: str | None, /) -> Answer:
        """Fetch within the timeout; a set found at another place than before is asked for in full."""
        deadline = Deadline(self._clock, self._timeout)
        before = self._found
        try:
            where = self._where(deadline)
            return answer_of(self._get(where, deadline, etag if where == before else None))
        except FetchFailed:
            self._found_at = 0.0 if self._found is None else self._found_at - _REDISCOVER
            raise

    def _where(self, deadline: Deadline) -> Endpoint:
        """Return where the set is, as read within the last hour."""
        now = self._clock.monotonic()
        if self._found is None or now - self._found_at >= _REDISCOVER:
            self._found = self._read(self._get(self.endpoint, deadline, None).document or {})
            self._found_at = now
        return self._found

    def _read(self, configuration: Mapping[str, Any]) -> Endpoint:
        """Return where a configuration says the set is."""
        if configuration.get("issuer") != self._issuer:
            raise FetchFailed("the OpenID configuration is another issuer's")
        try:
            return Endpoint.parse(configuration.get("jwks_uri", ""), unsafe_http_loopback=self._loopback)
        except ConfigurationError as error:
            raise FetchFailed("the jwks_uri of the OpenID configuration is no https URL") from error

    def _get(self, endpoint: Endpoint, deadline: Deadline, etag: str | None) -> Response:
        """Get one of the two documents."""
        return get(endpoint, deadline=deadline, context=self._context, etag=etag, dial=self._dial)
