"""One bounded HTTP request for a JSON object: one deadline, a limit in bytes, no redirect, https.

It uses ``http.client`` of the standard library over a ``DeadlineSocket``. No client library bounds the whole
exchange: their timeouts begin anew with every byte that arrives (decision 30).
"""

from __future__ import annotations

import http.client
import re
import ssl
import zlib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlencode

from mqauth._version import __version__
from mqauth.keystore.disk.files import reason
from mqauth.keystore.remote.connection import (
    VISIBLE,
    Deadline,
    DeadlineSocket,
    Dial,
    Endpoint,
    FetchFailed,
    connect,
)
from mqauth.wire import strict_json as strictjson
from mqauth.wire.jwk import MAX_DOCUMENT

MAX_BODY: Final = MAX_DOCUMENT
_DEPTH: Final = 8
_MAX_ETAG: Final = 256
# wbits of zlib for a gzip header, and no other.
_GZIP: Final = 31
_JSON: Final = re.compile(r"application/(json|[a-z0-9.-]+\+json)", re.ASCII)
_MAX_AGE: Final = re.compile(r"max-age=\"?(\d{1,9})\"?", re.ASCII)
_SECONDS: Final = re.compile(r"\d{1,9}", re.ASCII)


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
        raise FetchFailed(f"out of reach: {reason(error)}") from error
    except (http.client.HTTPException, ValueError) as error:
        raise FetchFailed(f"not HTTP: {type(error).__name__}") from error


def _checked(response: http.client.HTTPResponse, etag: str | None) -> Response:
    """Return a 200 with a JSON object, or a 304 that was asked for."""
    document, headers = None, response.headers
    # A redirect could lead the request to a host that nobody configured.
    if 300 <= response.status < 400 and response.status != 304:
        raise FetchFailed(f"a redirect ({response.status}), which is never followed")
    if response.status == 200:
        document = _document(response)
        etag = None
    elif response.status != 304 or etag is None:
        raise FetchFailed(f"status {response.status}")
    return Response(
        document=document, etag=_etag(headers.get("ETag")) or etag, max_age=_max_age(headers.get("Cache-Control")),
        age=_seconds(headers.get("Age")), date=_date(headers.get("Date")),
    )  # fmt: skip


def _document(response: http.client.HTTPResponse) -> Mapping[str, Any]:
    """Return the JSON object of an answer."""
    kind = response.headers.get("Content-Type")
    if kind is not None and not _JSON.fullmatch(kind.partition(";")[0].strip().lower()):
        raise FetchFailed("its content type is not JSON")
    try:
        document = strictjson.loads(_body(response), depth=_DEPTH)
    except strictjson.StrictJSONError as error:
        raise FetchFailed(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise FetchFailed("not a JSON object")
    return document


def _body(response: http.client.HTTPResponse) -> bytes:
    """Return the body; neither it nor what it unpacks to may be larger than the limit."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise FetchFailed("its content encoding was not asked for")
    # The announced length first: then a large body is not read at all.
    if (response.length or 0) > MAX_BODY:
        raise FetchFailed(f"over {MAX_BODY} bytes")
    raw = body = response.read(MAX_BODY + 1)
    # Some servers compress although we ask for identity. A small body may unpack to a huge one, hence the bound.
    if encoding == "gzip":
        try:
            body = zlib.decompressobj(_GZIP).decompress(raw, MAX_BODY + 1)
        except zlib.error as error:
            raise FetchFailed("its content encoding is broken") from error
    if max(len(raw), len(body)) > MAX_BODY:
        raise FetchFailed(f"over {MAX_BODY} bytes")
    if response.length:
        raise FetchFailed("the answer ends early")
    return body


def _etag(value: str | None) -> str | None:
    """Return an entity tag that can be sent back in a header."""
    return value if value is not None and len(value) <= _MAX_ETAG and VISIBLE.fullmatch(value) else None


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
