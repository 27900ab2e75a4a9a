"""One bounded HTTP request, and its answer: a small JSON object.

A request has one deadline, a limit in bytes, and https; no redirect is followed. It uses ``http.client`` of the
standard library over a ``DeadlineSocket``. No client library bounds the whole exchange: their timeouts begin anew
with every byte that arrives (decision 1).
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import zlib
from collections.abc import Collection, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode

from mqauth._version import __version__
from mqauth.errors import refusing, words_of
from mqauth.http.connection import (
    VISIBLE,
    Deadline,
    DeadlineSocket,
    Dial,
    Endpoint,
    FetchFailed,
    Kept,
    connect,
    expect,
)
from mqauth.wire import jwk, strict_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A good answer: a JSON object, or 304 without.

    Args:
        document: the object, ``None`` for a 304.
        status: of HTTP, one that was asked for.
        etag: the entity tag of the document.
        max_age: from ``Cache-Control``, seconds; 0 for ``no-cache`` and ``no-store``.
        age: seconds that the answer spent in caches.
        date: UTC seconds at which the server made it.
        retry_after: seconds after which the server wants to be asked again, 0 where it does not say.
    """

    # It may hold a token, and whatever is shown may be logged.
    document: Mapping[str, Any] | None = field(repr=False)
    status: int = 200
    etag: str | None = None
    max_age: float | None = None
    age: float = 0
    date: float | None = None
    retry_after: float = 0


def request(
    endpoint: Endpoint,
    *,
    deadline: Deadline,
    context: ssl.SSLContext | None,
    etag: str | None = None,
    form: Mapping[str, str] | None = None,
    document: Any = None,
    headers: Mapping[str, str | None] | None = None,
    statuses: Collection[int] = (200,),
    limit: int = jwk.MAX_DOCUMENT,
    dial: Dial | None = None,
    kept: Kept | None = None,
) -> Response:
    """Send one request: a GET, or a POST where there is a form or a document.

    It is never sent again but on a connection that was kept, where the server said nothing: it may have ended that
    before. So a request over one must be such that a second one changes nothing.

    Args:
        endpoint: the URL.
        deadline: for everything: the look-up of the name, connection, TLS, headers and body.
        context: the TLS settings for https.
        etag: the entity tag of the document that we have; a 304 says that it is still the same.
        form: the fields of a form to post.
        document: what to post as JSON.
        headers: further headers, such as ``Authorization``; those that are ``None`` are left out.
        statuses: the answers whose JSON object is wanted.
        limit: bytes of the answer, at most.
        dial: opens the connection, in place of ``connect``.
        kept: keeps the connection; without it each request has one of its own.

    Raises:
        FetchFailed: the answer is not a whole and small JSON object with one of the statuses, nor a 304 that was
            asked for.
    """
    posted = None if document is None else strict_json.dumps(document)
    body = posted if form is None else urlencode(form).encode("ascii")
    kind = "application/json" if form is None else "application/x-www-form-urlencoded"
    sent = {
        "Host": endpoint.authority,
        "Accept": "application/jwk-set+json, application/json",
        "Accept-Encoding": "identity",
        "Connection": "close" if kept is None else "keep-alive",
        "User-Agent": f"mqauth/{__version__}",
        **{
            name: value
            for name, value in {
                "If-None-Match": etag,
                "Content-Type": None if body is None else kind,
                **(headers or {}),
            }.items()
            if value is not None
        },
    }
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port)

    def asked(wire: socket.socket) -> Response:
        with ExitStack() as undo, closing(connection):
            undo.callback(wire.close)
            connection.sock = DeadlineSocket(wire, deadline)
            connection.request(
                "GET" if body is None else "POST",
                endpoint.target,
                body=body,
                headers=sent,
            )
            with (
                connection.getresponse() as response,
                refusing(ConnectionError, "the answer broke off", FetchFailed),
            ):
                found = _checked(response, etag, statuses, limit)
                if kept is not None and response.isclosed() and not response.will_close:
                    undo.pop_all()
                    kept.give(wire)
                return found

    # The texts of these failures reach logs and audit records: none of them repeats the request or the answer.
    try:
        with suppress(ConnectionError):
            if kept is not None and (wire := kept.take()) is not None:
                return asked(wire)
        return asked(
            (dial or connect)(endpoint, deadline, context if endpoint.tls else None)
        )
    except ssl.SSLCertVerificationError as error:
        why = getattr(error, "verify_message", "")
        raise FetchFailed(
            f"its certificate is not trusted: {why}".removesuffix(": ")
        ) from error
    except TimeoutError as error:
        deadline.remaining()
        raise FetchFailed("timed out") from error
    except ssl.SSLError as error:
        raise FetchFailed("TLS failed") from error
    except OSError as error:
        raise FetchFailed(f"out of reach: {words_of(error)}") from error
    except (http.client.HTTPException, ValueError) as error:
        raise FetchFailed(f"not HTTP: {type(error).__name__}") from error


def _checked(
    response: http.client.HTTPResponse,
    etag: str | None,
    statuses: Collection[int],
    limit: int,
) -> Response:
    """Return the JSON object of an answer that was asked for, or that it is still the same."""
    document, status, headers = None, response.status, response.headers
    # A redirect could lead the request to a host that nobody configured.
    expect(
        not (300 <= status < 400 and status != 304),
        f"a redirect ({status}), which is never followed",
    )
    if status in statuses:
        kind = headers.get("Content-Type")
        kinds = r"application/(json|[a-z0-9.-]+\+json)"
        good = kind is None or re.fullmatch(
            kinds, kind.partition(";")[0].strip().lower(), re.ASCII
        )
        expect(good, "its content type is not JSON")
        encoding = headers.get("Content-Encoding", "identity").strip().lower()
        expect(encoding in ("identity", "gzip"), "its content encoding was not asked for")
        # The announced length first: then a large body is not read at all.
        expect((response.length or 0) <= limit, f"over {limit} bytes")
        raw = body = response.read(limit + 1)
        # Some servers compress although we ask for identity. A small body may unpack to a huge one: the bound.
        if encoding == "gzip":
            with refusing(zlib.error, "its content encoding is broken", FetchFailed):
                # 31 is for a gzip header, and no other.
                body = zlib.decompressobj(wbits=31).decompress(raw, limit + 1)
        expect(max(len(raw), len(body)) <= limit, f"over {limit} bytes")
        expect(not response.length, "the answer ends early")
        with refusing(
            strict_json.StrictJSONError, lambda error: f"not JSON: {error}", FetchFailed
        ):
            document, etag = strict_json.loads(body, depth=8), None
        expect(isinstance(document, dict), "not a JSON object")
    expect(
        document is not None or (status == 304 and etag is not None), f"status {status}"
    )
    tag = headers.get("ETag")
    # One that can be sent back in a header.
    etag = tag if tag is not None and len(tag) <= 256 and VISIBLE.fullmatch(tag) else etag
    return Response(
        document=document,
        status=status,
        etag=etag,
        max_age=_max_age(headers.get("Cache-Control")),
        age=_seconds(headers.get("Age")),
        date=_date(headers.get("Date")),
        retry_after=_seconds(headers.get("Retry-After")),
    )


def _max_age(value: str | None) -> float | None:
    """Return the seconds that ``Cache-Control`` allows, 0 where it forbids (RFC 9111, section 5.2.2)."""
    for directive in (value or "").lower().split(","):
        if directive.strip() in ("no-store", "no-cache"):
            return 0.0
        if (
            found := re.fullmatch(r"max-age=\"?(\d{1,9})\"?", directive.strip(), re.ASCII)
        ) is not None:
            return float(found[1])
    return None


def _seconds(value: str | None) -> float:
    """Return a whole number of seconds, 0 for anything else."""
    return (
        float(value)
        if value is not None and re.fullmatch(r"\d{1,9}", value, re.ASCII)
        else 0.0
    )


def _date(value: str | None) -> float | None:
    """Return an HTTP date as UTC seconds (RFC 9110, section 5.6.7)."""
    try:
        return None if value is None else parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
