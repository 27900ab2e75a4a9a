"""One bounded HTTP request: one deadline over everything, a byte cap while streaming, no redirects, https.

The standard library's ``http.client`` over a socket of ours, because no client measured bounds the *whole*
exchange: their timeouts begin anew with each byte that drips in (``docs/decisions/0030-jwks.md``).
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlencode

from mqauth._version import __version__
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


def get(
    endpoint: Endpoint, *, deadline: Deadline, context: ssl.SSLContext | None, etag: str | None = None,
    dial: Dial | None = None,
) -> Response:  # fmt: skip
    """Ask once.

    Args:
        endpoint: where.
        deadline: for all of it: names, connect, TLS, headers and body.
        context: TLS settings; used for https.
        etag: what we have; a 304 says that it still holds.
        dial: opens the connection; for tests.

    Raises:
        FetchFailed: anything but a whole, small, 200 JSON object or a 304 that was asked for.
    """
    return _ask(endpoint, _Request(headers=_headers(endpoint, etag), etag=etag), deadline, context, dial)


def post(
    endpoint: Endpoint, form: Mapping[str, str], *, deadline: Deadline, context: ssl.SSLContext | None,
    authorization: str | None = None, dial: Dial | None = None,
) -> Response:  # fmt: skip
    """Send a form once; a POST is never sent again.

    Args:
        endpoint: where.
        form: its fields.
        deadline: for all of it.
        context: TLS settings; used for https.
        authorization: the header of that name.
        dial: opens the connection; for tests.

    Raises:
        FetchFailed: anything but a whole, small, 200 JSON object.
    """
    headers = _headers(endpoint, None) | {"Content-Type": "application/x-www-form-urlencoded"}
    if authorization is not None:
        headers["Authorization"] = authorization
    request = _Request(method="POST", headers=headers, body=urlencode(form).encode("ascii"))
    return _ask(endpoint, request, deadline, context, dial)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What is sent; ``repr`` shows no secret."""

    method: str = "GET"
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)
    etag: str | None = None


def _ask(
    endpoint: Endpoint, request: _Request, deadline: Deadline, context: ssl.SSLContext | None, dial: Dial | None
) -> Response:
    """Send one request; whatever goes wrong is a ``FetchFailed``."""
    try:
        with closing((dial or connect)(endpoint, deadline, context if endpoint.tls else None)) as wire:
            return _exchange(endpoint, wire, deadline, request)
    except FetchFailed:
        raise
    except ssl.SSLCertVerificationError as error:
        why = getattr(error, "verify_message", "")
        raise FetchFailed(f"its certificate is not trusted: {why}".removesuffix(": ")) from error
    except TimeoutError as error:
        deadline.remaining()
        raise FetchFailed("timed out") from error
    except ssl.SSLError as error:
        raise FetchFailed("TLS failed") from error
    except OSError as error:
        raise FetchFailed(f"out of reach: {error.strerror or type(error).__name__}") from error
    except (http.client.HTTPException, ValueError) as error:
        raise FetchFailed(f"no HTTP: {type(error).__name__}") from error


def _exchange(endpoint: Endpoint, wire: socket.socket, deadline: Deadline, request: _Request) -> Response:
    """Send the request and read the answer."""
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port)
    with closing(connection):
        connection.sock = DeadlineSocket(wire, deadline)
        connection.request(request.method, endpoint.target, body=request.body, headers=request.headers)
        with connection.getresponse() as response:
            return judge(response, request.etag)


def _headers(endpoint: Endpoint, etag: str | None) -> dict[str, str]:
    """Return the request's headers."""
    headers = {
        "Host": endpoint.authority,
        "Accept": "application/jwk-set+json, application/json",
        "Accept-Encoding": "identity",
        "Connection": "close",
        "User-Agent": f"mqauth/{__version__}",
    }
    return headers if etag is None else {**headers, "If-None-Match": etag}


MAX_BODY: Final = MAX_DOCUMENT
_CHUNK: Final = 16 * 1024
_DEPTH: Final = 8
_MAX_ETAG: Final = 256
# A gzip header, and nothing else.
_GZIP: Final = 31
_JSON: Final = re.compile(r"application/(json|[a-z0-9.-]+\+json)", re.ASCII)
_MAX_AGE: Final = re.compile(r"max-age=\"?(\d{1,9})\"?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A good answer: 200 with a JSON object, or 304 without."""

    document: Mapping[str, Any] | None
    etag: str | None = None
    max_age: float | None = None
    age: float = 0
    date: float | None = None


def judge(response: http.client.HTTPResponse, etag: str | None) -> Response:
    """Accept a 200 with a JSON object, or a 304 that was asked for."""
    document = None
    if 300 <= response.status < 400 and response.status != 304:
        raise FetchFailed(f"a redirect ({response.status}), which is never followed")
    if response.status == 200:
        _check_type(response.headers.get("Content-Type"))
        document = _parse(_body(response))
    elif response.status != 304 or etag is None:
        raise FetchFailed(f"status {response.status}")
    return Response(
        document=document,
        etag=_etag(response.headers.get("ETag")) or etag
        if document is None
        else _etag(response.headers.get("ETag")),
        max_age=_max_age(response.headers.get("Cache-Control")),
        age=_seconds(response.headers.get("Age")),
        date=_date(response.headers.get("Date")),
    )


def _check_type(value: str | None) -> None:
    """Refuse what does not claim to be JSON; a missing type claims nothing."""
    if value is not None and not _JSON.fullmatch(value.partition(";")[0].strip().lower()):
        raise FetchFailed("its content type is not JSON")


def _body(response: http.client.HTTPResponse) -> bytes:
    """Read the body, never more than the cap, also of what a small one unpacks to."""
    unpack = _unpacker(response.headers.get("Content-Encoding"))
    if (response.length or 0) > MAX_BODY:
        raise FetchFailed(f"over {MAX_BODY} bytes")
    body, taken = bytearray(), 0
    while chunk := response.read(_CHUNK):
        taken += len(chunk)
        body += unpack(chunk, MAX_BODY + 1 - len(body))
        if taken > MAX_BODY or len(body) > MAX_BODY:
            raise FetchFailed(f"over {MAX_BODY} bytes")
    if response.length:
        raise FetchFailed("the answer ends early")
    return bytes(body)


def _unpacker(encoding: str | None) -> Callable[[bytes, int], bytes]:
    """Return what takes a chunk and the room left; gzip is unpacked though we never ask for it."""
    if encoding is None or encoding.strip().lower() == "identity":
        return lambda chunk, room: chunk
    if encoding.strip().lower() != "gzip":
        raise FetchFailed("its content encoding was not asked for")
    inflate = zlib.decompressobj(_GZIP)

    def unpack(chunk: bytes, room: int) -> bytes:
        try:
            return inflate.decompress(chunk, room)
        except zlib.error as error:
            raise FetchFailed("its content encoding is broken") from error

    return unpack


def _parse(body: bytes) -> Mapping[str, Any]:
    """Return the JSON object."""
    try:
        document = strictjson.loads(body, depth=_DEPTH)
    except strictjson.StrictJSONError as error:
        raise FetchFailed(f"no JSON: {error}") from error
    if not isinstance(document, dict):
        raise FetchFailed("no JSON object")
    return document


def _etag(value: str | None) -> str | None:
    """Return an entity tag that can be sent back."""
    return value if value is not None and len(value) <= _MAX_ETAG and VISIBLE.fullmatch(value) else None


def _max_age(value: str | None) -> float | None:
    """Return the seconds ``Cache-Control`` allows, 0 where it forbids (RFC 9111, section 5.2.2)."""
    for directive in (value or "").lower().split(","):
        if directive.strip() in ("no-store", "no-cache"):
            return 0.0
        if (found := _MAX_AGE.fullmatch(directive.strip())) is not None:
            return float(found[1])
    return None


def _seconds(value: str | None) -> float:
    """Return a whole number of seconds, 0 for anything else."""
    return float(value) if value is not None and re.fullmatch(r"\d{1,9}", value, re.ASCII) else 0.0


def _date(value: str | None) -> float | None:
    """Return an HTTP date as UTC seconds (RFC 9110, section 5.6.7)."""
    try:
        return None if value is None else parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
