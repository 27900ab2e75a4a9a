"""One bounded HTTP request: one deadline over everything, a byte cap while streaming, no redirects, https.

The standard library's ``http.client`` over a socket of ours, because no client measured bounds the *whole*
exchange: their timeouts begin anew with each byte that drips in (``docs/decisions/0030-jwks.md``).
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from urllib.parse import urlencode

from mqauth._version import __version__
from mqauth.keystore.remote.http_answer import Response, judge
from mqauth.keystore.remote.http_connection import Deadline, DeadlineSocket, Dial, Endpoint, FetchFailed, connect


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
