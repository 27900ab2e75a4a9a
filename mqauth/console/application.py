"""The ASGI application: routes, static files, and the middleware that stands before every answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mqauth.console.access import Cookie, Sessions, Tokens
from mqauth.console.backend import Backend
from mqauth.console.forms import BadRequestError
from mqauth.console.login import CALLBACK, START, Login
from mqauth.console.oidc_provider import Attempts, Provider
from mqauth.console.pages import Pages
from mqauth.console.templates import STATIC, Site
from mqauth.errors import require

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
_HSTS: Final = "max-age=31536000"


def application(
    backend: Backend,
    *,
    hosts: Sequence[str],
    reviewer: str,
    tokens: Tokens | None = None,
    provider: Provider | None = None,
    sessions: Sessions | None = None,
    attempts: Attempts | None = None,
    tls: bool = False,
) -> ASGIApp:
    """Return the console's application.

    Args:
        backend: the letters and the jobs on them.
        hosts: ``Host`` headers that the console answers to, with their port. A provider sends people back to the
            first, unless its settings name another.
        reviewer: name, in audit records, of whoever logs in with the reviewer's token.
        tokens: local logins.
        provider: an OpenID provider to log in at.
        sessions: who is logged in; by default nobody.
        attempts: logins under way at the provider; by default none.
        tls: whether people reach the console by https.

    Raises:
        ConfigurationError: nobody could log in, or the provider would send people to another scheme or host.
    """
    require(
        tokens is not None or provider is not None,
        "nobody could log in: without tokens there must be an OpenID provider",
    )
    site = Site(backend, sessions or Sessions(), Cookie(name="mqauth", tls=tls))
    login = Login(
        site, tokens=tokens, reviewer=reviewer, provider=provider, attempts=attempts or Attempts(),
        origin=origin(hosts, provider, tls=tls),
    )  # fmt: skip

    async def failed(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 400
        text = error.detail if isinstance(error, HTTPException) else f"{str(error).capitalize()}."
        text = "There is no such page." if status == 404 else text
        return site.error(status, text, site.session(request))

    handlers: Any = {HTTPException: failed, BadRequestError: failed}
    inner = Starlette(routes=_routes(Pages(site), login), exception_handlers=handlers)
    # Outermost, so that its headers are on every error too.
    return SecurityMiddleware(inner, hosts, tls=tls)


def origin(hosts: Sequence[str], provider: Provider | None, *, tls: bool) -> str:
    """Return scheme, host and port that people use.

    Raises:
        ConfigurationError: the provider's settings name another scheme, or a host that is not ours.
    """
    scheme = "https" if tls else "http"
    given = None if provider is None else provider.settings.url
    require(
        given is None or given in {f"{scheme}://{host}" for host in hosts},
        f"url: must be {scheme}:// and a host of this console: {', '.join(hosts)}",
    )
    return given or f"{scheme}://{hosts[0]}"


def redirect_uri(hosts: Sequence[str], provider: Provider, *, tls: bool) -> str:
    """Return where the provider sends people back to; it has to be registered there."""
    return origin(hosts, provider, tls=tls) + CALLBACK


def _routes(pages: Pages, login: Login) -> list[Route | Mount]:
    return [
        Route("/", pages.groups),
        Route("/login", login.show, methods=["GET"]),
        Route("/login", login.with_token, methods=["POST"]),
        Route(START, login.start, methods=["GET"]),
        Route(CALLBACK, login.callback, methods=["GET"]),
        Route("/logout", pages.log_out, methods=["POST"]),
        Route("/letters", pages.letters),
        Route("/letter/{mark}", pages.letter),
        Route("/refresh", pages.refresh, methods=["POST"]),
        Route("/judge", pages.judge, methods=["POST"]),
        Route("/act/{act}", pages.act_form, methods=["GET"]),
        Route("/act/{act}", pages.rehearse, methods=["POST"]),
        Route("/confirm", pages.confirm, methods=["POST"]),
        Route("/cancel", pages.cancel, methods=["POST"]),
        Route("/job", pages.job),
        Route("/job.json", pages.progress),
        Route("/account", pages.account, methods=["GET"]),
        Route("/account", pages.start_account, methods=["POST"]),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]


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
        guarded = self._with_headers(send)
        refusal = self._refusal(Headers(scope=scope), str(scope["method"]))
        if refusal is not None:
            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)

    def _refusal(self, headers: Headers, method: str) -> tuple[int, str] | None:
        """Return status and text for a request that is refused, else ``None``."""
        host = headers.getlist("host")
        if len(host) != 1 or host[0].lower() not in self._hosts:
            return 400, "this is not the name of this console\n"
        if method in ("GET", "HEAD"):
            return None
        sender = headers.get("origin")
        if sender is not None and sender.lower() not in {f"{self._scheme}://{name}" for name in self._hosts}:
            return 403, "the request comes from another site\n"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "the request comes from another site\n"
        return None

    def _with_headers(self, send: Send) -> Send:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if self._scheme == "https":
                    headers["strict-transport-security"] = _HSTS
            await send(message)

        return guarded
