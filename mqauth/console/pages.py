"""The pages: who may see them, and what they show."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from mqauth.console import showing, wishes
from mqauth.console.access import Session, Sessions
from mqauth.console.cookies import Cookie
from mqauth.console.desk import BusyError, Desk
from mqauth.console.job import ACTS, REHEARSING
from mqauth.console.templates import Templates
from mqauth.console.wishes import BadRequestError
from mqauth.console.words import explain
from mqauth.errors import SIGNED_REASONS, ConfigurationError, MqauthError, Reason
from mqauth.letters.release import WAIVABLE
from mqauth.review import Filter

PAGE: Final = 100
_SEE_OTHER: Final = 303
Fields = dict[str, list[str]]
Shown = Callable[["Pages", Request, Session], Awaitable[Response]]
Posted = Callable[["Pages", Request, Session, Fields], Awaitable[Response]]


def looking(page: Shown) -> Callable[[Pages, Request], Awaitable[Response]]:
    """Let a page be seen by whoever is logged in."""

    async def seen(self: Pages, request: Request) -> Response:
        session = self.session(request)
        if session is None:
            return RedirectResponse("/login", _SEE_OTHER)
        return await page(self, request, session)

    return seen


def acting(*, viewers: bool = False) -> Callable[[Posted], Callable[[Pages, Request], Awaitable[Response]]]:
    """Let a form be posted by a reviewer, or by anybody logged in, with its CSRF token."""

    def wrap(page: Posted) -> Callable[[Pages, Request], Awaitable[Response]]:
        async def posted(self: Pages, request: Request) -> Response:
            session = self.session(request)
            if session is None:
                return self.error(request, 403, "You are not logged in any more.")
            if not session.may_act and not viewers:
                return self.error(request, 403, "Your role may look, not act.", session)
            fields = await wishes.form(request)
            if not self.same(session.csrf, fields.get("csrf", [""])[0]):
                return self.error(request, 403, "The form is not of this session. Load the page again.", session)
            try:
                return await page(self, request, session, fields)
            except BusyError as error:
                return self.error(request, 409, f"{str(error).capitalize()}.", session)
            except ConfigurationError as error:
                return self.error(request, 400, str(error), session)

        return posted

    return wrap


class Pages:
    """The console's pages.

    Args:
        desk: where the letters are.
        sessions: who is logged in.
        cookie: the session's.
        templates: the pages' templates.
    """

    def __init__(self, desk: Desk, *, sessions: Sessions, cookie: Cookie, templates: Templates) -> None:
        self._desk, self._sessions, self._cookie, self._templates = desk, sessions, cookie, templates

    @staticmethod
    def same(wanted: str, given: str) -> bool:
        """Compare two secrets in constant time."""
        return hmac.compare_digest(wanted.encode(), given.encode("utf-8", "surrogatepass"))

    def session(self, request: Request) -> Session | None:
        """Return the session of a request."""
        id = self._cookie.read(request)
        return None if id is None else self._sessions.find(id)

    def error(self, request: Request, status: int, text: str, session: Session | None = None) -> Response:
        """Return the page of an error."""
        return self._page("error.html", session, status=status, text=text)

    @acting(viewers=True)
    async def leave(self, request: Request, session: Session, fields: Fields) -> Response:
        """End a session."""
        self._sessions.end(self._cookie.read(request) or "")
        response = RedirectResponse("/login", _SEE_OTHER)
        self._cookie.take(response)
        return response

    @looking
    async def groups(self, request: Request, session: Session) -> Response:
        """Show the groups, the first page."""
        return self._page("groups.html", session, overview=await run_in_threadpool(self._desk.overview))

    @looking
    async def letters(self, request: Request, session: Session) -> Response:
        """Show letters that a filter means, a page at a time."""
        wanted = wishes.filter_of(request.query_params)
        after = wishes.whole(request.query_params.get("after"))
        rows = await run_in_threadpool(self._desk.page, wanted, after=after, limit=PAGE + 1)
        total = await run_in_threadpool(self._desk.count, wanted)
        more = wishes.query_of(wanted, after=rows[PAGE - 1].number) if len(rows) > PAGE else None
        return self._page(
            "letters.html", session, rows=rows[:PAGE], total=total, more=more, **self._filtered(wanted)
        )

    @looking
    async def letter(self, request: Request, session: Session) -> Response:
        """Show one letter."""
        found = await run_in_threadpool(self._desk.letter, request.path_params["mark"])
        if found is None:
            return self.error(
                request, 404, "No such letter is open: it was resolved, or letters were read anew.", session
            )
        row, reading = found
        today, fault = None, None
        try:
            today = await run_in_threadpool(self._desk.verdict, reading)
        except MqauthError as error:
            fault = str(error)
        original, form = reading.original, request.query_params.get("view", "text")
        return self._page(
            "letter.html", session, row=row, reading=reading, today=today, fault=fault,
            words=explain(reading.reason), holds=_holds(today), claims=showing.claims(reading),
            body=None if original is None else showing.body(original.body, form),
            headers=[] if original is None else showing.headers(original),
            properties=[] if original is None else showing.properties(original),
            now=None if today in (None, "accepted") or today not in set(Reason) else explain(str(today)),
            **self._filtered(Filter(mark=row.mark)),
        )  # fmt: skip

    @acting(viewers=True)
    async def refresh(self, request: Request, session: Session, fields: Fields) -> Response:
        """Read all letters anew."""
        self._desk.read(session.name)
        return RedirectResponse("/job", _SEE_OTHER)

    @acting()
    async def judge(self, request: Request, session: Session, fields: Fields) -> Response:
        """Judge letters by today's verifier."""
        self._desk.judge(wishes.filter_of(wishes.first(fields)), session.name)
        return RedirectResponse(f"/job?{wishes.query_of(wishes.filter_of(wishes.first(fields)))}", _SEE_OTHER)

    @looking
    async def ask(self, request: Request, session: Session) -> Response:
        """Show the form of an act."""
        act, wanted = request.path_params["act"], wishes.filter_of(request.query_params)
        if act not in ACTS:
            return self.error(request, 404, "There is no such page.", session)
        if not session.may_act:
            return self.error(request, 403, "Your role may look, not act.", session)
        total = await run_in_threadpool(self._desk.count, wanted)
        return self._page("act.html", session, act=act, total=total, waivable=WAIVABLE, **self._filtered(wanted))

    @acting()
    async def plan(self, request: Request, session: Session, fields: Fields) -> Response:
        """Freeze a selection and find out what the act would do."""
        plan = wishes.plan_of(request.path_params["act"], fields, session.name)
        await run_in_threadpool(self._desk.rehearse, plan)
        return RedirectResponse("/job", _SEE_OTHER)

    @acting()
    async def confirm(self, request: Request, session: Session, fields: Fields) -> Response:
        """Do what was rehearsed."""
        self._desk.act(wishes.first(fields).get("job", ""), session.name)
        return RedirectResponse("/job", _SEE_OTHER)

    @acting()
    async def cancel(self, request: Request, session: Session, fields: Fields) -> Response:
        """Stop the running job before its next letter."""
        self._desk.cancel(wishes.first(fields).get("job", ""))
        return RedirectResponse("/job", _SEE_OTHER)

    @looking
    async def job(self, request: Request, session: Session) -> Response:
        """Show the newest job."""
        wanted = wishes.filter_of(request.query_params)
        return self._page("job.html", session, rehearsing=REHEARSING, **self._filtered(wanted))

    @looking
    async def progress(self, request: Request, session: Session) -> Response:
        """Return the newest job's progress as JSON."""
        job = self._desk.job
        lost = self._desk.lost is not None
        return JSONResponse({} if job is None else {**job.as_dict(), "lost": lost})

    @looking
    async def account(self, request: Request, session: Session) -> Response:
        """Show whether everything adds up."""
        return self._page("account.html", session, ledger=self._desk.ledger, files=self._desk.files)

    @acting(viewers=True)
    async def reckon(self, request: Request, session: Session, fields: Fields) -> Response:
        """Hold the audit files against the letters."""
        self._desk.account(session.name)
        return RedirectResponse("/job", _SEE_OTHER)

    def _filtered(self, wanted: Filter) -> dict[str, Any]:
        """Return what templates show of a filter."""
        return {"fields": wishes.fields_of(wanted), "query": wishes.query_of(wanted)}

    def _page(self, name: str, session: Session | None, *, status: int = 200, **values: Any) -> Response:
        """Render a page."""
        return self._templates.page(
            name, status=status, session=session, desk=self._desk, job=self._desk.job, **values
        )


def _holds(today: str | None) -> bool:
    """Tell whether today's verifier found the signature to hold: only then are claims the signer's own words."""
    return today == "accepted" or today in SIGNED_REASONS


def refused(request: Request, error: Exception) -> str:
    """Return what is said of a request that cannot be understood."""
    return (
        f"{str(error).capitalize()}." if isinstance(error, BadRequestError) else "Something failed; see the log."
    )
