"""The pages behind the login: who may see each of them, and what it shows."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from mqauth.console import display, forms
from mqauth.console.access import Session
from mqauth.console.backend import REHEARSE, BusyError
from mqauth.console.reasons import explain
from mqauth.console.templates import Site
from mqauth.errors import SIGNED_REASONS, ConfigurationError, MqauthError, Reason
from mqauth.letters.release import WAIVABLE
from mqauth.review import ACTS, Filter

PAGE: Final = 100
_SEE_OTHER: Final = 303
_LOOK_ONLY: Final = "Your role may look, not act."
Shown = Callable[["Pages", Request, Session], Awaitable[Response]]
Posted = Callable[["Pages", Request, Session, forms.Fields], Awaitable[Response]]
Endpoint = Callable[["Pages", Request], Awaitable[Response]]


def for_everybody(page: Shown) -> Endpoint:
    """Let a page be seen by whoever is logged in."""

    async def seen(self: Pages, request: Request) -> Response:
        session = self.site.session(request)
        if session is None:
            return RedirectResponse("/login", _SEE_OTHER)
        return await page(self, request, session)

    return seen


def posted(*, viewers: bool = False) -> Callable[[Posted], Endpoint]:
    """Let a form be posted by a reviewer, or by anybody logged in, with the CSRF token of the session."""

    def wrap(page: Posted) -> Endpoint:
        async def answered(self: Pages, request: Request) -> Response:
            session = self.site.session(request)
            if session is None:
                return self.site.error(403, "You are not logged in any more.")
            if not session.may_act and not viewers:
                return self.site.error(403, _LOOK_ONLY, session)
            fields = await forms.read_form(request)
            given = fields.get("csrf", "").encode("utf-8", "surrogatepass")
            if not hmac.compare_digest(session.csrf.encode(), given):
                return self.site.error(403, "The form is not of this session. Load the page again.", session)
            try:
                return await page(self, request, session, fields)
            except BusyError as error:
                return self.site.error(409, f"{str(error).capitalize()}.", session)
            except ConfigurationError as error:
                return self.site.error(400, str(error), session)

        return answered

    return wrap


class Pages:
    """The console's pages.

    Args:
        site: what all pages share.
    """

    def __init__(self, site: Site) -> None:
        self.site, self._backend = site, site.backend

    @posted(viewers=True)
    async def log_out(self, request: Request, session: Session, fields: forms.Fields) -> Response:
        """End the session."""
        self.site.sessions.end(self.site.cookie.read(request) or "")
        response = RedirectResponse("/login", _SEE_OTHER)
        self.site.cookie.delete(response)
        return response

    @for_everybody
    async def groups(self, request: Request, session: Session) -> Response:
        """Show the groups of letters, the first page."""
        overview = await run_in_threadpool(self._backend.overview)
        return self.site.page("groups.html", session, overview=overview)

    @for_everybody
    async def letters(self, request: Request, session: Session) -> Response:
        """Show the letters that a filter means, a page at a time."""
        wanted = forms.filter_of(request.query_params)
        after = forms.row_number(request.query_params.get("after"))
        rows = await run_in_threadpool(self._backend.page, wanted, after=after, limit=PAGE + 1)
        total = await run_in_threadpool(self._backend.count, wanted)
        more = forms.query_of(wanted, after=rows[PAGE - 1].number) if len(rows) > PAGE else None
        return self._filtered("letters.html", session, wanted, rows=rows[:PAGE], total=total, more=more)

    @for_everybody
    async def letter(self, request: Request, session: Session) -> Response:
        """Show one letter."""
        found = await run_in_threadpool(self._backend.letter, request.path_params["mark"])
        if found is None:
            text = "No such letter is open: it was resolved, or the letters were read again."
            return self.site.error(404, text, session)
        row, reading = found
        today, fault = None, None
        try:
            today = await run_in_threadpool(self._backend.verdict, reading)
        except MqauthError as error:
            fault = str(error)
        original, form = reading.original, request.query_params.get("view", "text")
        return self._filtered(
            "letter.html", session, Filter(mark=row.mark), row=row, reading=reading, today=today, fault=fault,
            words=explain(reading.reason), claims=display.claims(reading),
            # Only where today's verifier found the signature to hold are the claims the signer's own.
            holds=today == "accepted" or today in SIGNED_REASONS,
            body=None if original is None else display.body(original.body, form),
            headers=[] if original is None else display.headers(original),
            properties=[] if original is None else display.properties(original),
            now=explain(str(today)) if today in set(Reason) else None,
        )  # fmt: skip

    @posted(viewers=True)
    async def refresh(self, request: Request, session: Session, fields: forms.Fields) -> Response:
        """Read all letters again."""
        self._backend.read(session.name)
        return RedirectResponse("/job", _SEE_OTHER)

    @posted()
    async def judge(self, request: Request, session: Session, fields: forms.Fields) -> Response:
        """Judge letters by today's verifier."""
        wanted = forms.filter_of(fields)
        self._backend.judge(wanted, session.name)
        return RedirectResponse(f"/job?{forms.query_of(wanted)}", _SEE_OTHER)

    @for_everybody
    async def act_form(self, request: Request, session: Session) -> Response:
        """Show the form of an act."""
        act, wanted = request.path_params["act"], forms.filter_of(request.query_params)
        if act not in ACTS:
            return self.site.error(404, "There is no such page.", session)
        if not session.may_act:
            return self.site.error(403, _LOOK_ONLY, session)
        total = await run_in_threadpool(self._backend.count, wanted)
        return self._filtered("act.html", session, wanted, act=act, total=total, waivable=WAIVABLE)

    @posted()
    async def rehearse(self, request: Request, session: Session, fields: forms.Fields) -> Response:
        """Freeze a selection, and find out what the act would do."""
        plan = forms.plan_of(request.path_params["act"], fields, session.name)
        await run_in_threadpool(self._backend.rehearse, plan)
        return RedirectResponse("/job", _SEE_OTHER)

    @posted()
    async def confirm(self, request: Request, session: Session, fields: forms.Fields) -> Response:
        """Do what was rehearsed."""
        self._backend.act(fields.get("job", ""), session.name)
        return RedirectResponse("/job", _SEE_OTHER)

    @posted()
    async def cancel(self, request: Request, session: Session, fields: forms.Fields) -> Response:
        """Stop the running job before its next letter."""
        self._backend.cancel(fields.get("job", ""))
        return RedirectResponse("/job", _SEE_OTHER)

    @for_everybody
    async def job(self, request: Request, session: Session) -> Response:
        """Show the newest job."""
        wanted = forms.filter_of(request.query_params)
        return self._filtered("job.html", session, wanted, rehearsing=REHEARSE)

    @for_everybody
    async def progress(self, request: Request, session: Session) -> Response:
        """Return the progress of the newest job as JSON."""
        job = self._backend.job
        return JSONResponse({} if job is None else {**job.as_dict(), "lost": self._backend.lost is not None})

    @for_everybody
    async def account(self, request: Request, session: Session) -> Response:
        """Show whether all letters add up."""
        return self.site.page("account.html", session, ledger=self._backend.ledger, files=self._backend.files)

    @posted(viewers=True)
    async def start_account(self, request: Request, session: Session, fields: forms.Fields) -> Response:
        """Compare the audit files with the letters."""
        self._backend.account(session.name)
        return RedirectResponse("/job", _SEE_OTHER)

    def _filtered(self, name: str, session: Session, wanted: Filter, **values: Any) -> Response:
        """Return a page that shows the filter by which it was made."""
        return self.site.page(name, session, fields=wanted.given(), query=forms.query_of(wanted), **values)
