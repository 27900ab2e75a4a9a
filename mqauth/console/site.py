"""What all pages share: who is logged in and may act, cookies, the templates on Jinja2, and security headers.

Local tokens are in a file of mode 0600, sessions in memory. In the templates every value is escaped, and a missing
value is an error. ``Host`` and ``Origin`` of every request are checked before a page sees it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mqauth.audit.disk import open_private, read_bounded
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.console.backend import TITLES, Backend
from mqauth.console.display import COLUMNS, GREY, REASONS, moment, of_producer
from mqauth.errors import file_errors, require
from mqauth.logs import Rate, emit
from mqauth.review.glossary import LABELS, TERMS, explain

VIEWER: Final = "viewer"
REVIEWER: Final = "reviewer"
ROLES: Final = (REVIEWER, VIEWER)
IDLE: Final = 1800.0
"""Seconds after which a session that nobody used ends."""
LONGEST: Final = 8 * 3600.0
"""Seconds after which every session ends."""
STATIC: Final = Path(__file__).parent / "static"
MAX_SESSIONS: Final = 500
_SHORTEST: Final = 32
_TOLD: Final = 80


class Tokens:
    """The local tokens, one for each role.

    Args:
        tokens: role to token, of at least 32 characters.

    Raises:
        ConfigurationError: an unknown role, a short token, or one token for two roles.
    """

    def __init__(self, tokens: dict[str, str]) -> None:
        require(
            tokens and set(tokens) <= set(ROLES), f"tokens are for {' and '.join(ROLES)}"
        )
        require(
            all(len(token) >= _SHORTEST for token in tokens.values())
            and len(set(tokens.values())) == len(tokens),
            f"each role needs a token of its own, of at least {_SHORTEST} characters",
        )
        self._digests = {role: _digest(token) for role, token in tokens.items()}

    def role(self, token: str) -> str | None:
        """Return the role of a token, ``None`` where it is no token of ours."""
        # Every digest is compared, in constant time: how long it takes tells nothing about the tokens.
        given = _digest(token)
        roles = [
            role
            for role, known in self._digests.items()
            if hmac.compare_digest(given, known)
        ]
        return roles[0] if roles else None


def fresh_tokens() -> dict[str, str]:
    """Return a new token of 256 random bits for each role."""
    return {role: secrets.token_urlsafe(32) for role in ROLES}


def tokens_of(path: Path) -> tuple[dict[str, str], bool]:
    """Return the tokens of a file, ``role token`` a line, and whether the file was made just now.

    Raises:
        ConfigurationError: others may read it, or it is not in its form.
    """
    with file_errors(path):
        try:
            descriptor = open_private(path, os.O_WRONLY | os.O_EXCL)
        except FileExistsError:
            raw = read_bounded(path, 4096, private=True)
            pairs = [
                line.split()
                for line in raw.decode("ascii", "replace").splitlines()
                if line.strip()
            ]
            require(
                pairs and all(len(pair) == 2 for pair in pairs),
                f"{path}: one line for each role: its name and its token",
            )
            return {role: token for role, token in pairs}, False
    tokens = fresh_tokens()
    with os.fdopen(descriptor, "w") as file:
        file.writelines(f"{role} {token}\n" for role, token in tokens.items())
    return tokens, True


@dataclass(slots=True, kw_only=True)
class WebSession:
    """A person who is logged in.

    Args:
        name: stands in audit records.
        role: ``viewer`` or ``reviewer``.
        began, used: monotonic seconds.
        csrf: a secret that each form of the session must contain.
    """

    name: str
    role: str
    began: float
    used: float
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    @property
    def may_act(self) -> bool:
        """Whether the person may judge, redrive and discard."""
        return self.role == REVIEWER


@dataclass
class Sessions:
    """The sessions in memory, at most 500. One more ends the oldest one of whoever has the most."""

    clock: Clock = SYSTEM_CLOCK
    _open: dict[bytes, WebSession] = field(default_factory=dict, init=False, repr=False)

    def begin(self, name: str, role: str) -> str:
        """Begin a session and return its secret id, for the cookie."""
        id, now = secrets.token_urlsafe(32), self.clock.monotonic()
        if len(self._open) >= MAX_SESSIONS:
            # Whoever logs in again and again ends sessions of their own, and nobody else's.
            owners = Counter(
                (session.name, session.role) for session in self._open.values()
            )
            most = owners.most_common(1)[0][0]
            del self._open[
                next(
                    key
                    for key, each in self._open.items()
                    if (each.name, each.role) == most
                )
            ]
        self._open[_digest(id)] = WebSession(name=name, role=role, began=now, used=now)
        return id

    def find(self, id: str) -> WebSession | None:
        """Return a session that has not ended, and note that it was used."""
        key, now = _digest(id), self.clock.monotonic()
        session = self._open.pop(key, None)
        if session is None or now - session.used > IDLE or now - session.began > LONGEST:
            return None
        session.used = now
        self._open[key] = session
        return session

    def end(self, id: str) -> None:
        """End a session."""
        self._open.pop(_digest(id), None)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cookie:
    """A cookie that scripts cannot read. With TLS it is Secure, and its name binds it to our host.

    Args:
        name: without the prefix ``__Host-`` that it has with TLS.
        tls: whether people reach the console by https.
        samesite: a ``strict`` cookie is not sent when another site leads here, a ``lax`` one is.
        max_age: seconds; ``None`` until the browser ends.
    """

    name: str
    tls: bool
    samesite: Literal["strict", "lax"] = "strict"
    max_age: int | None = None

    @property
    def full_name(self) -> str:
        """The name as it is sent."""
        return f"__Host-{self.name}" if self.tls else self.name

    def read(self, request: Request) -> str | None:
        """Return the value that a request sent."""
        return request.cookies.get(self.full_name)

    def put(self, response: Response, value: str) -> None:
        """Set the cookie in the browser."""
        response.set_cookie(
            self.full_name,
            value,
            max_age=self.max_age,
            path="/",
            secure=self.tls,
            httponly=True,
            samesite=self.samesite,
        )

    def delete(self, response: Response) -> None:
        """Delete the cookie in the browser."""
        response.delete_cookie(
            self.full_name,
            path="/",
            secure=self.tls,
            httponly=True,
            samesite=self.samesite,
        )


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "pages_html"),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "moment": moment,
        "count": lambda number, noun: f"{number:,} {noun}{'' if number == 1 else 's'}",
        "plain": lambda reason: reason.replace("_", " "),
    }
    made.globals |= {
        "explain": explain,
        "doing": TITLES.__getitem__,
        "bars": COLUMNS,
        "label": LABELS,
        "terms": TERMS,
        "colour": lambda reason: REASONS.get(reason, GREY),
        "hue": of_producer,
    }
    return made


@dataclass(frozen=True, slots=True)
class ConsoleQueue:
    """A queue or topic of the console.

    Args:
        backend: its letters and the jobs on them.
        base: what stands before the addresses of its pages; empty where it is the only one.
        name: as the configuration calls it.
    """

    backend: Backend
    base: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Site:
    """What all pages share.

    Args:
        places: the queues and topics.
        sessions: who is logged in.
        cookie: of the sessions.
        place: the one that the pages are about, ``None`` for the pages before it.
        environment: the templates, read once.
        refusals: limits the lines on requests that were refused.
    """

    places: Sequence[ConsoleQueue]
    sessions: Sessions
    cookie: Cookie
    place: ConsoleQueue | None = None
    environment: Environment = field(default_factory=_environment)
    refusals: Rate = field(default_factory=lambda: Rate(SYSTEM_CLOCK))

    @property
    def base(self) -> str:
        """What stands before the addresses of the pages."""
        return "" if self.place is None else self.place.base

    def session(self, request: Request) -> WebSession | None:
        """Return the session of whoever sent a request."""
        return self.sessions.find(self.cookie.read(request) or "")

    def begin(
        self, request: Request, response: Response, name: str, role: str
    ) -> Response:
        """Begin a session for whoever has just logged in, and end the one before."""
        # The id is always a new one. An id that the browser brought along may be known to an attacker.
        self.sessions.end(self.cookie.read(request) or "")
        self.cookie.put(response, self.sessions.begin(name, role))
        return response

    def page(
        self, name: str, session: WebSession | None, *, status: int = 200, **values: Any
    ) -> Response:
        """Return a page."""
        backend = None if self.place is None else self.place.backend
        html = self.environment.get_template(name).render(
            status=status,
            session=session,
            backend=backend,
            job=backend and backend.job,
            base=self.base,
            place=self.place,
            places=self.places,
            **values,
        )
        return HTMLResponse(html, status)

    def error(
        self,
        status: int,
        text: str,
        session: WebSession | None = None,
        fault: Exception | None = None,
    ) -> Response:
        """Return the page of an error, with an id by which the log has it.

        Args:
            status: of the answer.
            text: shown to the person.
            session: of the person.
            fault: what nobody expected; the log has its traceback.
        """
        id = secrets.token_hex(6)
        if fault is not None:
            emit(
                "console.page_failed",
                "console page failed: error %s",
                id,
                error=fault,
                error_id=id,
            )
        elif self.refusals.admits(
            "console.refused", (status, text[:_TOLD]), {"error_id": id}
        ):
            emit(
                "console.refused",
                "console answered %d: error %s: %s",
                status,
                id,
                text[:_TOLD],
                error_id=id,
            )
        return self.page("error.html", session, status=status, text=text, id=id)


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

        headers, answer = Headers(scope=scope), self._app
        host, sender = headers.getlist("host"), headers.get("origin")
        ours = {None, *(f"{self._scheme}://{name}" for name in self._hosts)}
        here = headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
        if len(host) != 1 or host[0].lower() not in self._hosts:
            answer = PlainTextResponse("this is not the name of this console\n", 400)
        elif scope["method"] not in ("GET", "HEAD") and not (
            here and (sender and sender.lower()) in ours
        ):
            answer = PlainTextResponse("the request comes from another site\n", 403)
        # A fault of one page was told there and logged, and the console goes on.
        with suppress(Exception):
            await answer(scope, receive, guarded)
