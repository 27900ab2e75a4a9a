"""How people come in: with a local token, or by an OpenID provider (authorization code with PKCE)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from mqauth.console import wishes
from mqauth.console.access import REVIEWER, Sessions, Tokens
from mqauth.console.cookies import Cookie
from mqauth.console.oidc_attempt import LIFETIME, Attempts
from mqauth.console.oidc_person import NobodyError, Person, person
from mqauth.console.oidc_provider import Provider
from mqauth.console.oidc_token import IDTokenError
from mqauth.console.showing import visible
from mqauth.console.templates import Templates
from mqauth.errors import MqauthError

START: Final = "/login/oidc"
CALLBACK: Final = "/login/callback"
MAX_AT_ONCE: Final = 8
"""Logins that wait for the provider at the same time; a slow one must not take every thread of the console."""
_SEE_OTHER: Final = 303
_LOG: Final = logging.getLogger("mqauth.console")
_ERRORS: Final = {
    "access_denied": "The login was cancelled, or the identity provider denied it.",
    "login_required": "The identity provider wants you to log in there first.",
    "temporarily_unavailable": "The identity provider is not available just now.",
}


_STRANGE: Final = "This login was not begun here, is too old, or was used before. Begin again."


class _TurnedAwayError(MqauthError):
    """A login that failed; ``str`` may be shown, ``status`` is the answer's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """What the entrance shares with the pages behind it.

    Args:
        name: of the letter box, for the login page.
        sessions: who is logged in.
        cookie: the session's.
        templates: the pages' templates.
    """

    name: str
    sessions: Sessions
    cookie: Cookie
    templates: Templates

    def begin(self, request: Request, response: Response, name: str, role: str) -> Response:
        """Begin a session with an id of its own, never one that was sent; the one before ends."""
        self.sessions.end(self.cookie.read(request) or "")
        self.cookie.give(response, self.sessions.begin(name, role))
        return response

    def is_in(self, request: Request) -> bool:
        """Tell whether somebody is logged in."""
        id = self.cookie.read(request)
        return id is not None and self.sessions.find(id) is not None


class Entrance:
    """The login pages.

    Args:
        door: shared with the other pages.
        tokens: local logins; ``None`` where they are switched off.
        reviewer: name of whoever logs in with the reviewer's token.
        provider: the OpenID provider; ``None`` without.
        origin: scheme, host and port that people use, and where the provider sends them back to.
        attempts: logins under way.
    """

    def __init__(
        self, door: Door, *, tokens: Tokens | None, reviewer: str, provider: Provider | None, origin: str,
        attempts: Attempts,
    ) -> None:  # fmt: skip
        self._door, self._tokens, self._reviewer = door, tokens, reviewer
        self._provider, self._origin, self._attempts = provider, origin, attempts
        self._cookie = Cookie(name="mqauth-login", tls=door.cookie.tls, samesite="lax", max_age=LIFETIME)
        self._waiting = 0

    async def login(self, request: Request) -> Response:
        """Show how to log in."""
        return RedirectResponse("/", _SEE_OTHER) if self._door.is_in(request) else self._page()

    async def enter(self, request: Request) -> Response:
        """Begin a session with a token."""
        if self._tokens is None:
            return self._page(403, "Local tokens are switched off.")
        role = self._tokens.role(wishes.first(await wishes.form(request)).get("token", "").strip())
        if role is None:
            return self._page(403, "This token is not one of this console.")
        name = self._reviewer if role == REVIEWER else role
        return self._door.begin(request, RedirectResponse("/", _SEE_OTHER), name, role)

    async def start(self, request: Request) -> Response:
        """Send the browser to the provider; at our one name, for the cookie is of one host."""
        if self._provider is None:
            return self._page(404, "There is no such page.")
        if request.headers["host"].lower() != self._origin.partition("://")[2]:
            return RedirectResponse(self._origin + START, _SEE_OTHER)
        attempt, sealed = self._attempts.begin()
        try:
            where = await self._ask(self._provider.authorization_url, attempt, self._origin + CALLBACK)
        except _TurnedAwayError as error:
            return self._page(error.status, str(error))
        response = RedirectResponse(where, _SEE_OTHER)
        self._cookie.give(response, sealed)
        return response

    async def callback(self, request: Request) -> Response:
        """Begin a session for whom the provider sends back; whatever happens, this login is over."""
        try:
            found = await self._identify(request)
        except _TurnedAwayError as error:
            response = self._page(error.status, str(error))
        else:
            response = self._let_in(request, found)
        self._cookie.take(response)
        return response

    async def _identify(self, request: Request) -> Person:
        """Return who came back from the provider."""
        if self._provider is None:
            raise _TurnedAwayError(404, "There is no such page.")
        answer = _answer(request)
        attempt = self._attempts.redeem(self._cookie.read(request), answer.get("state", ""))
        if attempt is None:
            raise _TurnedAwayError(403, _STRANGE)
        self._check(answer, self._provider)
        claims = await self._ask(self._provider.claims, answer["code"], attempt, self._origin + CALLBACK)
        try:
            return person(claims, self._provider.settings)
        except NobodyError as error:
            raise _turned_away(403, f"{visible(str(error))}.", error) from error

    def _check(self, answer: Mapping[str, str], provider: Provider) -> None:
        """Refuse what another provider sent (RFC 9207), and errors."""
        known = provider.known
        wanted = known is not None and known.names_itself
        if answer.get("iss", None if wanted else provider.settings.issuer) != provider.settings.issuer:
            raise _TurnedAwayError(403, "The answer is not of our identity provider. Begin again.")
        if "error" in answer:
            _LOG.warning("the identity provider answered a login with %s", visible(answer["error"])[:80])
            raise _TurnedAwayError(403, _ERRORS.get(answer["error"], "The identity provider refused the login."))
        if "code" not in answer:
            raise _TurnedAwayError(400, "The identity provider's answer is not in its form.")

    async def _ask(self, question: Any, *arguments: Any) -> Any:
        """Ask the provider, on a thread; only so many at once."""
        if self._waiting >= MAX_AT_ONCE:
            raise _TurnedAwayError(503, "Too many people log in at this moment. Try again.")
        self._waiting += 1
        try:
            return await run_in_threadpool(question, *arguments)
        except IDTokenError as error:
            raise _turned_away(403, "The identity provider's answer could not be trusted.", error) from error
        except MqauthError as error:
            raise _turned_away(502, "The identity provider gave no good answer. Try again.", error) from error
        finally:
            self._waiting -= 1

    def _let_in(self, request: Request, found: Person) -> Response:
        """Begin a session; by a page, since a strict cookie is not sent on a redirect that began elsewhere."""
        who = visible(found.name)
        _LOG.info("login of %s (sub %s): %s", who, visible(found.subject), found.role or "no role")
        if found.role is None:
            return self._page(403, f"You are {who}, but nothing gives you a role in this console.")
        page = self._door.templates.page(
            "welcome.html", status=200, session=None, job=None, who=who, role=found.role
        )
        return self._door.begin(request, page, found.name, found.role)

    def _page(self, status: int = 200, trouble: str | None = None) -> Response:
        """Return the login page, with what went wrong."""
        label = None if self._provider is None else self._provider.settings.label
        return self._door.templates.page(
            "login.html", status=status, session=None, job=None, place=self._door.name, trouble=trouble,
            tokens=self._tokens is not None, label=label, start=self._origin + START, leave=self._leave(),
        )  # fmt: skip

    def _leave(self) -> str | None:
        """Return where people log out at the provider (OpenID Connect RP-Initiated Logout 1.0)."""
        known = None if self._provider is None else self._provider.known
        if self._provider is None or known is None or known.end_session is None:
            return None
        mark = "&" if "?" in known.end_session else "?"
        return f"{known.end_session}{mark}{urlencode({'client_id': self._provider.settings.client_id})}"


def _answer(request: Request) -> dict[str, str]:
    """Return the parameters of a callback; one that comes twice is none of ours (RFC 6749, section 3.1)."""
    pairs = request.query_params.multi_items()
    if len(dict(pairs)) != len(pairs):
        raise _TurnedAwayError(400, "The identity provider's answer is not in its form.")
    return dict(pairs)


def _turned_away(status: int, text: str, error: MqauthError) -> _TurnedAwayError:
    """Return what is shown of a failure, and log what it was."""
    _LOG.warning("a login failed: %s", error)
    return _TurnedAwayError(status, text)
