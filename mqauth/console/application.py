"""The ASGI application: routes, static files, and the shield before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from mqauth.console.access import Sessions, Tokens
from mqauth.console.cookies import Cookie
from mqauth.console.desk import Desk
from mqauth.console.entrance import CALLBACK, START, Door, Entrance
from mqauth.console.oidc_attempt import Attempts
from mqauth.console.oidc_provider import Provider
from mqauth.console.pages import Pages, refused
from mqauth.console.shield import Shield
from mqauth.console.templates import STATIC, Templates
from mqauth.console.wishes import BadRequestError
from mqauth.errors import ConfigurationError


def application(
    desk: Desk,
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
        desk: the letters.
        hosts: ``Host`` headers that are ours, with their port; the first is where a provider sends people back
            to, unless its settings name another.
        reviewer: name, in audit records, of whoever logs in with the reviewer's token.
        tokens: local logins.
        provider: an OpenID provider to log in at.
        sessions: who is logged in; by default nobody.
        attempts: logins under way at the provider; by default none.
        tls: whether people reach it by https.

    Raises:
        ConfigurationError: nobody could log in, or the provider would send people to another scheme or host.
    """
    if tokens is None and provider is None:
        raise ConfigurationError("nobody could log in: without tokens there must be an OpenID provider")
    door = Door(
        name=desk.name, sessions=sessions or Sessions(), cookie=Cookie(name="mqauth", tls=tls),
        templates=Templates(),
    )  # fmt: skip
    entrance = Entrance(
        door, tokens=tokens, reviewer=reviewer, provider=provider, attempts=attempts or Attempts(),
        origin=origin(hosts, provider, tls=tls),
    )  # fmt: skip
    pages = Pages(desk, sessions=door.sessions, cookie=door.cookie, templates=door.templates)

    async def failed(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 400
        if status == 404:
            return pages.error(request, status, "There is no such page.", pages.session(request))
        text = error.detail if isinstance(error, HTTPException) else refused(request, error)
        return pages.error(request, status, text, pages.session(request))

    handlers: Any = {HTTPException: failed, BadRequestError: failed}
    inner = Starlette(routes=_routes(pages, entrance), exception_handlers=handlers)
    return Shield(inner, hosts, tls=tls)  # outside of everything: its headers are on every error too


def origin(hosts: Sequence[str], provider: Provider | None, *, tls: bool) -> str:
    """Return scheme, host and port that people use.

    Raises:
        ConfigurationError: the provider's settings name another scheme, or a host that is not ours.
    """
    scheme = "https" if tls else "http"
    given = None if provider is None else provider.settings.url
    if given is not None and given not in {f"{scheme}://{host}" for host in hosts}:
        raise ConfigurationError(f"url: is {scheme}:// and a host of this console: {', '.join(hosts)}")
    return given or f"{scheme}://{hosts[0]}"


def redirect_uri(hosts: Sequence[str], provider: Provider, *, tls: bool) -> str:
    """Return where the provider sends people back to; to be registered with it."""
    return origin(hosts, provider, tls=tls) + CALLBACK


def _routes(pages: Pages, entrance: Entrance) -> list[Route | Mount]:
    """Return every page."""
    return [
        Route("/", pages.groups),
        Route("/login", entrance.login, methods=["GET"]),
        Route("/login", entrance.enter, methods=["POST"]),
        Route(START, entrance.start, methods=["GET"]),
        Route(CALLBACK, entrance.callback, methods=["GET"]),
        Route("/logout", pages.leave, methods=["POST"]),
        Route("/letters", pages.letters),
        Route("/letter/{mark}", pages.letter),
        Route("/refresh", pages.refresh, methods=["POST"]),
        Route("/judge", pages.judge, methods=["POST"]),
        Route("/act/{act}", pages.ask, methods=["GET"]),
        Route("/act/{act}", pages.plan, methods=["POST"]),
        Route("/confirm", pages.confirm, methods=["POST"]),
        Route("/cancel", pages.cancel, methods=["POST"]),
        Route("/job", pages.job),
        Route("/job.json", pages.progress),
        Route("/account", pages.account, methods=["GET"]),
        Route("/account", pages.reckon, methods=["POST"]),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
