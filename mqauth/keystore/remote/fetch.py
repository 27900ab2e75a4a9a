"""From a URL to an ``Answer``: one attempt to get a JWK Set."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Final, Protocol

from mqauth.clock import Clock
from mqauth.errors import ConfigurationError
from mqauth.keystore.remote.connection import Deadline, Dial, Endpoint, FetchFailed, check_timeout
from mqauth.keystore.remote.http import Response, get
from mqauth.keystore.remote.rules import Answer, publish_delay_of
from mqauth.wire.jwk import load_key_set


class Fetch(Protocol):
    """One attempt to get a JWK Set, bounded in time and bytes."""

    def __call__(self, etag: str | None, /) -> Answer:
        """Return a good answer.

        Args:
            etag: of the set we have; the answer may say that nothing changed.

        Raises:
            FetchFailed: there was none.
        """
        ...


class URLFetch:
    """Fetches a JWK Set from one URL.

    Args:
        endpoint: where.
        timeout: seconds for a whole attempt.
        context: TLS settings.
        clock: tells the time.
        dial: opens connections; for tests.

    Raises:
        ConfigurationError: the timeout is not more than 0 and at most 5 s.
    """

    def __init__(
        self, endpoint: Endpoint, *, timeout: float, context: ssl.SSLContext | None, clock: Clock,
        dial: Dial | None = None,
    ) -> None:  # fmt: skip
        self._endpoint = endpoint
        self._timeout = check_timeout(timeout)
        self._context = context
        self._clock = clock
        self._dial = dial

    def __call__(self, etag: str | None, /) -> Answer:
        """Fetch within the timeout."""
        deadline = Deadline(self._clock, self._timeout)
        return answer_of(get(self._endpoint, deadline=deadline, context=self._context, etag=etag, dial=self._dial))


def answer_of(response: Response) -> Answer:
    """Read a response as a JWK Set.

    Raises:
        FetchFailed: it has no list ``keys``.
    """
    document = response.document
    try:
        keys = None if document is None else load_key_set(document)
    except ConfigurationError as error:
        raise FetchFailed("no JSON object with a list of keys") from error
    return Answer(
        keys=keys,
        publish_delay=None if document is None else publish_delay_of(document),
        max_age=response.max_age,
        age=response.age,
        date=response.date,
        etag=response.etag,
    )


WELL_KNOWN: Final = "/.well-known/openid-configuration"
_REDISCOVER: Final = 3600.0


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
