"""One attempt to get a JWK Set, and the bounded HTTP request behind it.

A request has one deadline, a limit in bytes, and https; no redirect is followed. It uses ``http.client`` of the
standard library over a ``DeadlineSocket``. No client library bounds the whole exchange: their timeouts begin anew
with every byte that arrives (decision 30). The set comes from its URL, or from the URL in an issuer's OpenID
configuration (OpenID Connect Discovery 1.0, section 4).
"""

from __future__ import annotations

import http.client
import re
import ssl
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlencode

from mqauth._version import __version__
from mqauth.clock import Clock
from mqauth.errors import ConfigurationError, refusing, require, words_of
from mqauth.keystore.remote.connection import (
    MAX_TIMEOUT,
    VISIBLE,
    Deadline,
    DeadlineSocket,
    Dial,
    Endpoint,
    FetchFailed,
    connect,
    expect,
)
from mqauth.keystore.remote.rules import Answer, publish_delay_of
from mqauth.wire import jwk, strict_json

WELL_KNOWN: Final = "/.well-known/openid-configuration"
_REDISCOVER: Final = 3600.0
_DEPTH: Final = 8
_JSON: Final = re.compile(r"application/(json|[a-z0-9.-]+\+json)", re.ASCII)
_MAX_AGE: Final = re.compile(r"max-age=\"?(\d{1,9})\"?", re.ASCII)
_SECONDS: Final = re.compile(r"\d{1,9}", re.ASCII)
Fetch = Callable[[str | None], Answer]
"""Makes one attempt, bounded in time and bytes, or raises ``FetchFailed``. It takes the entity tag of the set that
is in use, so that the answer may say that nothing changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A good answer: 200 with a JSON object, or 304 without.

    Args:
        document: the object, ``None`` for a 304.
        etag: the entity tag of the document.
        max_age: from ``Cache-Control``, seconds; 0 for ``no-cache`` and ``no-store``.
        age: seconds that the answer spent in caches.
        date: UTC seconds at which the server made it.
    """

    document: Mapping[str, Any] | None
    etag: str | None = None
    max_age: float | None = None
    age: float = 0
    date: float | None = None


def request(
    endpoint: Endpoint, *, deadline: Deadline, context: ssl.SSLContext | None, etag: str | None = None,
    form: Mapping[str, str] | None = None, authorization: str | None = None, dial: Dial | None = None,
) -> Response:  # fmt: skip
    """Send one request: a GET, or a POST where there is a form. It is never sent again.

    Args:
        endpoint: the URL.
        deadline: for everything: the look-up of the name, connection, TLS, headers and body.
        context: the TLS settings for https.
        etag: the entity tag of the document that we have; a 304 says that it is still the same.
        form: the fields of the form.
        authorization: the value of the header ``Authorization``.
        dial: opens the connection, in place of ``connect``.

    Raises:
        FetchFailed: the answer is not a whole and small 200 with a JSON object, nor a 304 that was asked for.
    """
    optional = {
        "If-None-Match": etag,
        "Authorization": authorization,
        "Content-Type": None if form is None else "application/x-www-form-urlencoded",
    }
    headers = {
        "Host": endpoint.authority,
        "Accept": "application/jwk-set+json, application/json",
        "Accept-Encoding": "identity",
        "Connection": "close",
        "User-Agent": f"mqauth/{__version__}",
        **{name: value for name, value in optional.items() if value is not None},
    }
    body = None if form is None else urlencode(form).encode("ascii")
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port)
    # The texts of these failures reach logs and audit records: none of them repeats the request or the answer.
    try:
        wire = (dial or connect)(endpoint, deadline, context if endpoint.tls else None)
        with closing(wire), closing(connection):
            connection.sock = DeadlineSocket(wire, deadline)
            connection.request("GET" if body is None else "POST", endpoint.target, body=body, headers=headers)
            with connection.getresponse() as response:
                return _checked(response, etag)
    except ssl.SSLCertVerificationError as error:
        why = getattr(error, "verify_message", "")
        raise FetchFailed(f"its certificate is not trusted: {why}".removesuffix(": ")) from error
    except TimeoutError as error:
        deadline.remaining()
        raise FetchFailed("timed out") from error
    except ssl.SSLError as error:
        raise FetchFailed("TLS failed") from error
    except OSError as error:
        raise FetchFailed(f"out of reach: {words_of(error)}") from error
    except (http.client.HTTPException, ValueError) as error:
        raise FetchFailed(f"not HTTP: {type(error).__name__}") from error


def _checked(response: http.client.HTTPResponse, etag: str | None) -> Response:
    """Return a 200 with a JSON object, or a 304 that was asked for."""
    document, headers = None, response.headers
    # A redirect could lead the request to a host that nobody configured.
    expect(
        not (300 <= response.status < 400 and response.status != 304),
        f"a redirect ({response.status}), which is never followed",
    )
    if response.status == 200:
        document, etag = _document(response), None
    expect(document is not None or (response.status == 304 and etag is not None), f"status {response.status}")
    return Response(
        document=document, etag=_etag(headers.get("ETag")) or etag, max_age=_max_age(headers.get("Cache-Control")),
        age=_seconds(headers.get("Age")), date=_date(headers.get("Date")),
    )  # fmt: skip


def _document(response: http.client.HTTPResponse) -> Mapping[str, Any]:
    """Return the JSON object of an answer."""
    kind = response.headers.get("Content-Type")
    expect(kind is None or _JSON.fullmatch(kind.partition(";")[0].strip().lower()), "its content type is not JSON")
    try:
        document: Mapping[str, Any] = strict_json.loads(_body(response), depth=_DEPTH)
    except strict_json.StrictJSONError as error:
        raise FetchFailed(f"not JSON: {error}") from error
    expect(isinstance(document, dict), "not a JSON object")
    return document


def _body(response: http.client.HTTPResponse) -> bytes:
    """Return the body; neither it nor what it unpacks to may be larger than the limit."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    expect(encoding in ("identity", "gzip"), "its content encoding was not asked for")
    # The announced length first: then a large body is not read at all.
    expect((response.length or 0) <= jwk.MAX_DOCUMENT, f"over {jwk.MAX_DOCUMENT} bytes")
    raw = body = response.read(jwk.MAX_DOCUMENT + 1)
    # Some servers compress although we ask for identity. A small body may unpack to a huge one, hence the bound.
    if encoding == "gzip":
        with refusing(zlib.error, "its content encoding is broken", FetchFailed):
            # 31 is for a gzip header, and no other.
            body = zlib.decompressobj(wbits=31).decompress(raw, jwk.MAX_DOCUMENT + 1)
    expect(max(len(raw), len(body)) <= jwk.MAX_DOCUMENT, f"over {jwk.MAX_DOCUMENT} bytes")
    expect(not response.length, "the answer ends early")
    return body


def _etag(value: str | None) -> str | None:
    """Return an entity tag that can be sent back in a header."""
    return value if value is not None and len(value) <= 256 and VISIBLE.fullmatch(value) else None


def _max_age(value: str | None) -> float | None:
    """Return the seconds that ``Cache-Control`` allows, 0 where it forbids (RFC 9111, section 5.2.2)."""
    for directive in (value or "").lower().split(","):
        if directive.strip() in ("no-store", "no-cache"):
            return 0.0
        if (found := _MAX_AGE.fullmatch(directive.strip())) is not None:
            return float(found[1])
    return None


def _seconds(value: str | None) -> float:
    """Return a whole number of seconds, 0 for anything else."""
    return float(value) if value is not None and _SECONDS.fullmatch(value) else 0.0


def _date(value: str | None) -> float | None:
    """Return an HTTP date as UTC seconds (RFC 9110, section 5.6.7)."""
    try:
        return None if value is None else parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None


class URLFetch:
    """Fetches a JWK Set from one URL.

    Args:
        endpoint: the URL.
        timeout: seconds for a whole attempt.
        context: the TLS settings.
        clock: tells the time.
        dial: opens connections, in place of ``connect``.

    Raises:
        ConfigurationError: the timeout is not above 0 and at most 5 s.
    """

    def __init__(
        self, endpoint: Endpoint, *, timeout: float, context: ssl.SSLContext | None, clock: Clock,
        dial: Dial | None = None,
    ) -> None:  # fmt: skip
        number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
        require(
            number and 0 < timeout <= MAX_TIMEOUT,
            f"timeout is more than 0 and at most {MAX_TIMEOUT:g} seconds, not {timeout!r}",
        )
        self._endpoint = endpoint
        self._timeout = timeout
        self._context = context
        self._clock = clock
        self._dial = dial

    def __call__(self, etag: str | None, /) -> Answer:
        """Fetch the set within the timeout."""
        return _answer(self._get(self._endpoint, Deadline(self._clock, self._timeout), etag))

    def _get(self, endpoint: Endpoint, deadline: Deadline, etag: str | None) -> Response:
        return request(endpoint, deadline=deadline, context=self._context, etag=etag, dial=self._dial)


class DiscoveredFetch(URLFetch):
    """Fetches a JWK Set from the URL that the issuer's OpenID configuration names.

    The configuration is read again every hour, and after each failure.

    Args:
        issuer: the issuer; the configuration must repeat it exactly (OpenID Connect Discovery 1.0, section 4.3).
        unsafe_http_loopback: allow http on loopback, for both documents.
        timeout: seconds for a whole attempt, both documents together.
        context: the TLS settings.
        clock: tells the time.
        dial: opens connections, in place of ``connect``.

    Raises:
        ConfigurationError: the issuer is not an https URL without query, or the timeout is out of range.
    """

    def __init__(
        self, issuer: str, *, unsafe_http_loopback: bool, timeout: float, context: ssl.SSLContext | None,
        clock: Clock, dial: Dial | None = None,
    ) -> None:  # fmt: skip
        require(
            isinstance(issuer, str) and "?" not in issuer,
            "an issuer to be discovered is an https URL without query",
        )
        super().__init__(
            Endpoint.parse(issuer.removesuffix("/") + WELL_KNOWN, unsafe_http_loopback=unsafe_http_loopback),
            timeout=timeout,
            context=context,
            clock=clock,
            dial=dial,
        )
        self._issuer = issuer
        self._loopback = unsafe_http_loopback
        self._found: Endpoint | None = None
        self._found_at = 0.0

    def __call__(self, etag: str | None, /) -> Answer:
        """Fetch the set within the timeout."""
        deadline = Deadline(self._clock, self._timeout)
        before = self._found
        try:
            where = self._discover(deadline)
            # An entity tag means something only at the URL where it was given.
            return _answer(self._get(where, deadline, etag if where == before else None))
        except FetchFailed:
            # The keys may have moved.
            self._found_at -= _REDISCOVER
            raise

    def _discover(self, deadline: Deadline) -> Endpoint:
        """Return the URL of the set, as the configuration named it within the last hour."""
        now = self._clock.monotonic()
        if self._found is None or now - self._found_at >= _REDISCOVER:
            configuration = self._get(self._endpoint, deadline, None).document or {}
            expect(configuration.get("issuer") == self._issuer, "the OpenID configuration is another issuer's")
            why = "the jwks_uri of the OpenID configuration is no https URL"
            with refusing(ConfigurationError, why, FetchFailed):
                self._found = Endpoint.parse(
                    configuration.get("jwks_uri", ""), unsafe_http_loopback=self._loopback
                )
            self._found_at = now
        return self._found


def _answer(response: Response) -> Answer:
    """Read a response as a JWK Set."""
    document, keys, publish_delay = response.document, None, None
    if document is not None:
        publish_delay = publish_delay_of(document)
        with refusing(ConfigurationError, "not a JSON object with a list of keys", FetchFailed):
            keys = jwk.load_key_set(document)
    return Answer(
        keys=keys, publish_delay=publish_delay, max_age=response.max_age, age=response.age, date=response.date,
        etag=response.etag,
    )  # fmt: skip
