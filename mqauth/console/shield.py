"""What stands before every page: the Host and Origin checked, a bounded body, and headers on every answer."""

from __future__ import annotations

from collections.abc import Collection
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
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
"""``same-origin``, not ``no-referrer``: with that, browsers send ``Origin: null`` on our own forms."""
_HSTS: Final = "max-age=31536000"


class Shield:
    """ASGI middleware before everything else.

    Args:
        app: what it protects.
        hosts: ``Host`` headers that are ours; another is DNS rebinding or a mistake.
        tls: whether people reach us by https.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], *, tls: bool) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._scheme = "https" if tls else "http"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        guarded = self._guarded(send)
        why = self._refused(Headers(scope=scope), str(scope["method"]))
        if why is not None:
            await PlainTextResponse(why[1], why[0])(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)

    def _refused(self, headers: Headers, method: str) -> tuple[int, str] | None:
        """Return status and words of a request that is refused."""
        host = headers.getlist("host")
        if len(host) != 1 or host[0].lower() not in self._hosts:
            return 400, "this is not the name of this console\n"
        if method in ("GET", "HEAD"):
            return None
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in {f"{self._scheme}://{name}" for name in self._hosts}:
            return 403, "the request comes from another site\n"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "the request comes from another site\n"
        return None

    def _guarded(self, send: Send) -> Send:
        """Return a sender that puts the headers on."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if self._scheme == "https":
                    headers["strict-transport-security"] = _HSTS
            await send(message)

        return guarded
