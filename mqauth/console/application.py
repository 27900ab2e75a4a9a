"""The ASGI application: routes, the login pages, and the page that lists several queues and topics.

People log in with a local token, or at an OpenID provider (authorization code flow with PKCE).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from mqauth.console.backend import Backend, BusyError
from mqauth.console.display import overview, visible
from mqauth.console.oidc import IDTokenError, NoNameError, person
from mqauth.console.oidc_provider import LIFETIME, Attempts, Provider
from mqauth.console.pages import (
    SEE_OTHER,
    Fields,
    Pages,
    bad_request,
    for_everybody,
    posted,
    read_form,
)
from mqauth.console.site import (
    REVIEWER,
    STATIC,
    ConsoleQueue,
    Cookie,
    SecurityMiddleware,
    Sessions,
    Site,
    Tokens,
    WebSession,
)
from mqauth.errors import ConfigurationError, MqauthError, require
from mqauth.logs import emit


def places_of(backends: Mapping[str, Backend]) -> list[ConsoleQueue]:
    """Return the queues and topics with the addresses of their pages.

    Raises:
        ConfigurationError: there is none, or two would have the same address.
    """
    if len(backends) == 1:
        return [ConsoleQueue(backend, name=name) for name, backend in backends.items()]
    # A name as it stands in addresses.
    bases = {
        f"/at/{re.sub(r'[^A-Za-z0-9_.-]+', '-', name).strip('-.').lower()}": name
        for name in backends
    }
    require(
        backends and len(bases) == len(backends),
        "[brokers]: each needs a name of its own, of letters or digits",
    )
    for name, backend in backends.items():
        backend.beside = [other for called, other in backends.items() if called != name]
    return [ConsoleQueue(backends[name], base, name) for base, name in bases.items()]


START: Final = "/login/oidc"
CALLBACK: Final = "/login/callback"
MAX_AT_ONCE: Final = 8
"""Logins that wait for the provider at once. A slow provider must not take every thread of the console."""
_ERRORS: Final = {
    "access_denied": "The login was cancelled, or the identity provider denied it.",
    "login_required": "The identity provider wants you to sign in there first.",
    "temporarily_unavailable": "The identity provider is not available just now.",
}
_NO_PAGE: Final = "There is no such page."


def application(
    backends: Backend | Mapping[str, Backend],
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
        backends: the letters of a queue or topic and the jobs on them; of several by the name of each.
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
        "nobody could sign in: without tokens there must be an OpenID provider",
    )
    places = places_of({"": backends} if isinstance(backends, Backend) else backends)
    # Where there is only one, the pages of errors are about it too.
    only = places[0] if len(places) == 1 else None
    site = Site(places, sessions or Sessions(), Cookie(name="mqauth", tls=tls), only)
    lobby = Lobby(
        site,
        tokens=tokens,
        reviewer=reviewer,
        provider=provider,
        attempts=attempts or Attempts(),
        origin=origin(hosts, provider, tls=tls),
    )

    async def failed(request: Request, error: Exception) -> Response:
        status, text = (
            (error.status_code, error.detail)
            if isinstance(error, HTTPException)
            else (409 if isinstance(error, BusyError) else 400, str(error))
        )
        known: Site = getattr(request.state, "site", site)
        return known.error(
            status, _NO_PAGE if text == "Not Found" else text, site.session(request)
        )

    async def faulty(request: Request, error: Exception) -> Response:
        return site.error(
            500,
            "The console failed on this page. Its log says why, under the id below.",
            site.session(request),
            error,
        )

    routes: list[Route | Mount] = [
        Route("/login", lobby.log_in, methods=["GET"]),
        Route("/login", lobby.with_token, methods=["POST"]),
        Route(START, lobby.start, methods=["GET"]),
        Route(CALLBACK, lobby.callback, methods=["GET"]),
        Route("/logout", lobby.log_out, methods=["POST"]),
        Mount("/static", StaticFiles(directory=STATIC)),
        *(
            [Route("/", lobby.queues), Route("/refresh", lobby.refresh, methods=["POST"])]
            if only is None
            else []
        ),
    ]
    # The pages of each queue or topic.
    for pages, base in (
        (Pages(replace(site, place=place)), place.base) for place in places
    ):
        routes += [
            Route(f"{base}/", pages.groups),
            Route(f"{base}/letters", pages.letters),
            Route(f"{base}/letter/{{mark}}", pages.letter),
            Route(f"{base}/letter/{{mark}}/audit", pages.trail),
            Route(f"{base}/chosen", pages.chosen, methods=["POST"]),
            Route(f"{base}/refresh", pages.refresh, methods=["POST"]),
            Route(f"{base}/judge", pages.judge, methods=["POST"]),
            Route(f"{base}/act/{{act}}", pages.act_form, methods=["GET"]),
            Route(f"{base}/act/{{act}}", pages.rehearse, methods=["POST"]),
            Route(f"{base}/confirm", pages.confirm, methods=["POST"]),
            Route(f"{base}/cancel", pages.cancel, methods=["POST"]),
            Route(f"{base}/job", pages.job),
            Route(f"{base}/job.json", pages.progress),
            Route(f"{base}/account", pages.account, methods=["GET"]),
            Route(f"{base}/account", pages.start_account, methods=["POST"]),
        ]
    # Starlette raises a fault again once it has answered with our page; the shield keeps it from the server.
    handlers: Any = dict.fromkeys(
        (HTTPException, BusyError, ConfigurationError), failed
    ) | {Exception: faulty}
    return SecurityMiddleware(
        Starlette(routes=routes, exception_handlers=handlers), hosts, tls=tls
    )


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


class Lobby:
    """The pages before those of one queue or topic: the ways to log in and out, and the list of queues and topics.

    Args:
        site: what all pages share.
        tokens: local logins; ``None`` where they are switched off.
        reviewer: name of whoever logs in with the reviewer's token.
        provider: the OpenID provider, if there is one.
        origin: scheme, host and port that people use, and where the provider sends them back to.
        attempts: logins under way.
    """

    def __init__(
        self,
        site: Site,
        *,
        tokens: Tokens | None,
        reviewer: str,
        provider: Provider | None,
        origin: str,
        attempts: Attempts,
    ) -> None:
        self.site, self._tokens, self._reviewer = site, tokens, reviewer
        self._provider, self._origin, self._attempts = provider, origin, attempts
        # A strict cookie would not be sent when the provider leads the browser back.
        self._cookie = Cookie(
            name="mqauth-login", tls=site.cookie.tls, samesite="lax", max_age=LIFETIME
        )
        self._waiting = 0

    @for_everybody
    async def queues(self, request: Request, session: WebSession) -> Response:
        """Show the queues and topics with their counts."""
        return self.site.page(
            "places.html",
            session,
            found=[
                (
                    queue,
                    await run_in_threadpool(queue.backend.letters.ask, overview, None),
                )
                for queue in self.site.places
            ],
        )

    @posted(viewers=True)
    async def refresh(
        self, request: Request, session: WebSession, fields: Fields
    ) -> Response:
        """Read the letters of all of them again; one that is at work goes on with that."""
        for queue in self.site.places:
            with contextlib.suppress(BusyError):
                queue.backend.read(session.name)
        return RedirectResponse("/", SEE_OTHER)

    @posted(viewers=True)
    async def log_out(
        self, request: Request, session: WebSession, fields: Fields
    ) -> Response:
        """End the session."""
        self.site.sessions.end(self.site.cookie.read(request) or "")
        response = RedirectResponse("/login", SEE_OTHER)
        self.site.cookie.delete(response)
        return response

    async def log_in(self, request: Request) -> Response:
        """Show the ways to log in."""
        return (
            self._page()
            if self.site.session(request) is None
            else RedirectResponse("/", SEE_OTHER)
        )

    async def with_token(self, request: Request) -> Response:
        """Begin a session for a local token."""
        if self._tokens is None:
            return self._page(403, "Local tokens are switched off.")
        role = self._tokens.role((await read_form(request)).get("token", "").strip())
        if role is None:
            return self._page(403, "This token is not one of this console.")
        return self.site.begin(
            request,
            RedirectResponse("/", SEE_OTHER),
            self._reviewer if role == REVIEWER else role,
            role,
        )

    async def start(self, request: Request) -> Response:
        """Send the browser to the provider."""
        provider = require(self._provider, _NO_PAGE, partial(HTTPException, 404))
        # The cookie is of one host, so the login begins on the one that the provider sends people back to.
        if request.headers["host"].lower() != self._origin.partition("://")[2]:
            return RedirectResponse(self._origin + START, SEE_OTHER)
        attempt, sealed = self._attempts.begin()
        try:
            where = await self._ask(
                provider.authorization_url, attempt, self._origin + CALLBACK
            )
        except HTTPException as error:
            return self._page(error.status_code, error.detail)
        response = RedirectResponse(where, SEE_OTHER)
        self._cookie.put(response, sealed)
        return response

    async def callback(self, request: Request) -> Response:
        """Begin a session for a person whom the provider sends back. Whatever happens, this login is over."""
        try:
            provider = require(self._provider, _NO_PAGE, partial(HTTPException, 404))
            pairs, forbidden = (
                request.query_params.multi_items(),
                partial(HTTPException, 403),
            )
            answer, issuer = dict(pairs), provider.settings.issuer
            # A parameter that is repeated makes the answer invalid (RFC 6749, section 3.1).
            malformed = "The identity provider's answer is not in its form."
            require(len(answer) == len(pairs), malformed, bad_request)
            attempt = require(
                self._attempts.redeem(
                    self._cookie.read(request), answer.get("state", "")
                ),
                "This login was not begun here, is too old, or was used before. Begin again.",
                forbidden,
            )
            # The answer of another provider (RFC 9207), and an answer that is an error.
            names_itself = (
                provider.known.get("authorization_response_iss_parameter_supported")
                is True
            )
            require(
                answer.get("iss", None if names_itself else issuer) == issuer,
                "The answer is not of our identity provider. Begin again.",
                forbidden,
            )
            if "error" in answer:
                error = answer["error"]
                emit(
                    "console.login_failed",
                    "the identity provider answered a login with %s",
                    visible(error)[:80],
                )
                raise HTTPException(
                    403, _ERRORS.get(error, "The identity provider refused the login.")
                )
            require("code" in answer, malformed, bad_request)
            claims = await self._ask(
                provider.claims, answer["code"], attempt, self._origin + CALLBACK
            )
            try:
                name, role = person(claims, provider.settings)
            except NoNameError as unnamed:
                emit("console.login_failed", "a login failed: %s", unnamed)
                raise HTTPException(403, f"{visible(str(unnamed))}.") from unnamed
            who = visible(name)
            emit(
                "console.login",
                "login of %s (sub %s): %s",
                who,
                visible(str(claims["sub"])),
                role or "no role",
            )
            role = require(
                role,
                f"You are {who}, but nothing gives you a role in this console.",
                forbidden,
            )
            # A page, not a redirect: the session's strict cookie is not sent on one that another site began.
            response = self.site.begin(
                request,
                self.site.page("welcome.html", None, who=who, role=role),
                name,
                role,
            )
        except HTTPException as refused:
            response = self._page(refused.status_code, refused.detail)
        self._cookie.delete(response)
        return response

    async def _ask(self, question: Any, *arguments: Any) -> Any:
        """Ask the provider on a thread, with a bound on how many do so at once."""
        require(
            self._waiting < MAX_AT_ONCE,
            "Too many people sign in at this moment. Try again.",
            partial(HTTPException, 503),
        )
        self._waiting += 1
        try:
            return await run_in_threadpool(question, *arguments)
        except MqauthError as error:
            emit("console.login_failed", "a login failed: %s", error)
            if isinstance(error, IDTokenError):
                raise HTTPException(
                    403, "The identity provider's answer could not be trusted."
                ) from error
            raise HTTPException(
                502, "The identity provider gave no good answer. Try again."
            ) from error
        finally:
            self._waiting -= 1

    def _page(self, status: int = 200, trouble: str | None = None) -> Response:
        label, leave = None, None
        if self._provider is not None:
            label, leave = (
                self._provider.settings.label,
                self._provider.known.get("end_session_endpoint"),
            )
            # Where people log out at the provider (OpenID Connect RP-Initiated Logout 1.0).
            if leave is not None:
                leave += ("&" if "?" in leave else "?") + urlencode(
                    {"client_id": self._provider.settings.client_id}
                )
        return self.site.page(
            "login.html",
            None,
            status=status,
            names=[queue.backend.session.box.name for queue in self.site.places],
            trouble=trouble,
            tokens=self._tokens is not None,
            provider=label,
            start=self._origin + START,
            leave=leave,
        )
