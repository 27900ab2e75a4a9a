"""The templates, on Jinja2: every value is escaped, and a missing value is an error. And what all pages share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from mqauth.console.access import Cookie, Session, Sessions
from mqauth.console.backend import TITLES, Backend
from mqauth.console.current_index import HEIGHT, WIDTH
from mqauth.console.display import moment
from mqauth.console.reasons import explain
from mqauth.review import DIMENSIONS, Group

STATIC: Final = Path(__file__).parent / "static"
_FOLDER: Final = Path(__file__).parent / "pages_html"


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, auto_reload=False,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"moment": moment, "count": _count, "plain": _plain}
    made.globals |= {
        "explain": explain, "doing": TITLES.__getitem__, "group_query": _group_query, "width": WIDTH,
        "height": HEIGHT,
    }  # fmt: skip
    return made


def _group_query(group: Group) -> str:
    return urlencode({name: getattr(group, name) for name in DIMENSIONS})


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _plain(reason: str) -> str:
    return reason.replace("_", " ")


@dataclass(frozen=True, slots=True)
class Site:
    """What all pages share.

    Args:
        backend: the letters and the jobs on them.
        sessions: who is logged in.
        cookie: of the sessions.
        environment: the templates, read once.
    """

    backend: Backend
    sessions: Sessions
    cookie: Cookie
    environment: Environment = field(default_factory=_environment)

    def session(self, request: Request) -> Session | None:
        """Return the session of whoever sent a request."""
        id = self.cookie.read(request)
        return None if id is None else self.sessions.find(id)

    def begin(self, request: Request, response: Response, name: str, role: str) -> Response:
        """Begin a session for whoever has just logged in, and end the one before."""
        # The id is always a new one. An id that the browser brought along may be known to an attacker.
        self.sessions.end(self.cookie.read(request) or "")
        self.cookie.put(response, self.sessions.begin(name, role))
        return response

    def page(self, name: str, session: Session | None, *, status: int = 200, **values: Any) -> Response:
        """Return a page."""
        html = self.environment.get_template(name).render(
            status=status, session=session, backend=self.backend, job=self.backend.job, **values
        )
        return HTMLResponse(html, status)

    def error(self, status: int, text: str, session: Session | None = None) -> Response:
        """Return the page of an error."""
        return self.page("error.html", session, status=status, text=text)
