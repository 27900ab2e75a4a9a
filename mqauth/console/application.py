"""The ASGI application: routes, static files, and the shield before them."""

from __future__ import annotations

from collections.abc import Collection

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from mqauth.console.access import Sessions, Tokens
from mqauth.console.desk import Desk
from mqauth.console.pages import Pages, refused
from mqauth.console.shield import Shield
from mqauth.console.templates import STATIC, Templates
from mqauth.console.wishes import BadRequestError


def application(
    desk: Desk,
    *,
    tokens: Tokens,
    hosts: Collection[str],
    reviewer: str,
    sessions: Sessions | None = None,
    tls: bool = False,
) -> ASGIApp:
    """Return the console's application.

    Args:
        desk: the letters.
        tokens: local logins.
        hosts: ``Host`` headers that are ours, with their port.
        reviewer: name, in audit records, of whoever logs in with the reviewer's token.
        sessions: who is logged in; by default nobody.
        tls: whether people reach it by https.
    """
    pages = Pages(
        desk, tokens=tokens, sessions=sessions or Sessions(), reviewer=reviewer, tls=tls, templates=Templates()
    )

    async def failed(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 400
        if status == 404:
            return pages.error(request, status, "There is no such page.", pages.session(request))
        text = error.detail if isinstance(error, HTTPException) else refused(request, error)
        return pages.error(request, status, text, pages.session(request))

    inner = Starlette(routes=_routes(pages), exception_handlers={HTTPException: failed, BadRequestError: failed})
    return Shield(inner, hosts, tls=tls)  # outside of everything: its headers are on every error too


def _routes(pages: Pages) -> list[Route | Mount]:
    """Return every page."""
    return [
        Route("/", pages.groups),
        Route("/login", pages.login, methods=["GET"]),
        Route("/login", pages.enter, methods=["POST"]),
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
