"""What stands around every answer of the console: ``Host``, ``Origin``, security headers, and faults."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not no-referrer: with that browsers send `Origin: null` with our own forms, and it could not be checked.
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class SecurityMiddleware:
    """Checks ``Host`` and ``Origin`` of every request, and puts the security headers on every answer.

    Args:
        app: the application it protects.
        hosts: ``Host`` headers that are ours; another one is DNS rebinding or a mistake.
        tls: whether people reach the console by https.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], *, tls: bool) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._scheme = "https" if tls else "http"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                answered.update(HEADERS)
                if self._scheme == "https":
                    answered["strict-transport-security"] = "max-age=31536000"
            await send(message)

        headers, refusal = Headers(scope=scope), None
        host, sender = headers.getlist("host"), headers.get("origin")
        ours = {None, *(f"{self._scheme}://{name}" for name in self._hosts)}
        here = headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
        if len(host) != 1 or host[0].lower() not in self._hosts:
            refusal = PlainTextResponse("this is not the name of this console\n", 400)
        elif scope["method"] not in ("GET", "HEAD") and not (here and (sender and sender.lower()) in ours):
            refusal = PlainTextResponse("the request comes from another site\n", 403)
        if refusal is not None:
            await refusal(scope, receive, guarded)
            return
        # A fault of one page was told there and logged, and the console goes on.
        with suppress(Exception):
            await self._app(scope, receive, guarded)
