"""The pages behind the login: who may see each of them, and what it shows.

Queries and forms are read strictly into filters and plans. What no page of ours sends is refused.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import ImmutableMultiDict
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from mqauth.console import backend, display
from mqauth.console.site import Site, WebSession
from mqauth.errors import SIGNED_REASONS, MqauthError, Reason, refusing, require
from mqauth.review import (
    ACTS,
    DIMENSIONS,
    LARGEST,
    QUEUE,
    Filter,
    Index,
    Order,
    Plan,
    Reading,
    waivable,
)
from mqauth.review.glossary import LABELS, explain

PAGE: Final = 100
LETTER_COLUMNS: Final = {
    "id": LABELS["letter"],
    "reason": "Reason",
    "today": LABELS["now"],
    "subject": "Producer (claimed)",
    "detail": "Detail",
    "time": "Time",
    "size": "Bytes",
    "intact": LABELS["intact"],
}
GROUP_COLUMNS: Final = {
    "count": LABELS["letters"],
    "reason": "Reason",
    "subject": "Producer (claimed)",
    "issuer": "Issuer (claimed)",
    "kid": "Key",
    "destination": "Destination",
    "last": "Last",
}
"""Columns of the tables, each by the field that sorts it."""
SEE_OTHER: Final = 303
_LOOK_ONLY: Final = "Your role can look, but not act."
_NOT_OURS: Final = "This is no form of this console."
Fields = ImmutableMultiDict[str, str]
# The first argument has what all pages share: its attribute ``site``.
Endpoint = Callable[[Any, Request], Awaitable[Response]]
bad_request: Final = partial(HTTPException, 400)
"""The request is not one that a page of ours makes."""


async def read_form(request: Request) -> Fields:
    """Return the fields of a urlencoded form of at most 16 KiB.

    Raises:
        HTTPException: another type, too large, or not urlencoded.
    """
    require(
        request.headers.get("content-type", "").partition(";")[0].strip()
        == "application/x-www-form-urlencoded",
        _NOT_OURS,
        bad_request,
    )
    # In pieces and with a bound: whoever reaches the login page can send any body.
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        require(len(raw) <= 16 * 1024, "The form is too large.", bad_request)
    with refusing(ValueError, _NOT_OURS, bad_request):
        pairs = parse_qsl(
            raw.decode("ascii"),
            keep_blank_values=True,
            max_num_fields=PAGE + 40,
            errors="strict",
        )
    return Fields(pairs)


def filter_of(fields: Fields) -> Filter:
    """Return the filter that a query or form names. A field that is there but empty means *none*.

    Raises:
        HTTPException: a text is too long, or a mark is none.
    """
    texts: dict[str, Any] = {
        name: fields[name]
        for name in (*DIMENSIONS, "today", "id", "search")
        if name in fields
    }
    require(
        all(len(text) <= 300 for text in texts.values()),
        "A filter is too long.",
        bad_request,
    )
    marks = fields.getlist("marks")
    require(
        len(marks) <= PAGE and all(re.fullmatch("[0-9a-f]{64}", mark) for mark in marks),
        _NOT_OURS,
        bad_request,
    )
    return Filter(**texts, marks=tuple(marks) or None)


def order_of(
    query: Mapping[str, str], columns: Collection[str], otherwise: Order
) -> Order:
    """Return the order that a query names: ``time``, or ``-time`` with the largest first.

    Raises:
        HTTPException: there is no such column.
    """
    text = query.get("sort", "")
    if not text:
        return otherwise
    order = Order(text.removeprefix("-"), text.startswith("-"))
    require(order.by in columns, "There is no such column.", bad_request)
    return order


def query_of(wanted: Filter, **more: object) -> str:
    """Return the query that means this filter."""
    return urlencode(
        wanted.given() | {name: str(value) for name, value in more.items()}, doseq=True
    )


def row_number(text: str) -> int:
    """Return the number of a row in a query.

    Raises:
        HTTPException: it is no number.
    """
    require(
        text.isascii() and text.isdecimal() and len(text) <= 12,
        "A number is expected.",
        bad_request,
    )
    return int(text)


def for_everybody(
    page: Callable[[Any, Request, WebSession], Awaitable[Response]],
) -> Endpoint:
    """Let a page be seen by whoever is logged in."""

    async def seen(self: Any, request: Request) -> Response:
        request.state.site = self.site
        session = self.site.session(request)
        return (
            RedirectResponse("/login", SEE_OTHER)
            if session is None
            else await page(self, request, session)
        )

    return seen


def posted(
    *, viewers: bool = False
) -> Callable[[Callable[..., Awaitable[Response | None]]], Endpoint]:
    """Let a form be posted by a reviewer, or by anybody logged in, with the CSRF token of the session.

    A form that answers nothing leads on to the job that it began.
    """

    def wrap(page: Callable[..., Awaitable[Response | None]]) -> Endpoint:
        async def answered(self: Any, request: Request) -> Response:
            forbidden, request.state.site = partial(HTTPException, 403), self.site
            session = require(
                self.site.session(request), "You are not signed in any more.", forbidden
            )
            require(session.may_act or viewers, _LOOK_ONLY, forbidden)
            fields = await read_form(request)
            require(
                hmac.compare_digest(
                    session.csrf.encode(),
                    fields.get("csrf", "").encode("utf-8", "surrogatepass"),
                ),
                "The form is not of this session. Load the page again.",
                forbidden,
            )
            return (await page(self, request, session, fields)) or RedirectResponse(
                f"{self.site.base}/job", SEE_OTHER
            )

        return answered

    return wrap


class Pages:
    """The console's pages.

    Args:
        site: what all pages share.
    """

    def __init__(self, site: Site) -> None:
        self.site, self._backend = (
            site,
            require(site.place, "these pages are of a queue or topic").backend,
        )
        self._ask = self._backend.letters.ask

    @for_everybody
    async def groups(self, request: Request, session: WebSession) -> Response:
        """Show the groups of letters, the first page."""
        query = request.query_params
        wanted, order = (
            Filter(search=query.get("search") or None),
            order_of(query, GROUP_COLUMNS, LARGEST),
        )
        return self._filtered(
            "groups.html",
            session,
            wanted,
            overview=await run_in_threadpool(self._ask, display.overview, None),
            groups=await run_in_threadpool(
                self._ask, Index.groups, [], wanted, limit=display.MAX_GROUPS, order=order
            ),
            order=order,
            columns=GROUP_COLUMNS,
        )

    @for_everybody
    async def letters(self, request: Request, session: WebSession) -> Response:
        """Show the letters that a filter means, a page at a time."""
        query = request.query_params
        wanted, order = filter_of(query), order_of(query, LETTER_COLUMNS, QUEUE)
        after, before = (
            row_number(query.get("after", "0")),
            row_number(query.get("before", "0")),
        )
        start, most = before or after, PAGE + 1
        rows = await run_in_threadpool(
            self._ask,
            Index.page,
            [],
            wanted,
            after=start,
            limit=most,
            order=order.reverse if before else order,
        )
        total, whole = (
            await run_in_threadpool(self._ask, Index.count, 0, wanted),
            len(rows) <= PAGE,
        )
        rows = rows[:PAGE][::-1] if before else rows[:PAGE]
        sort = {"sort": query["sort"]} if "sort" in query else {}
        earlier = bool(rows) and (not whole if before else after > 0)
        later = bool(rows) and (before > 0 or not whole)
        return self._filtered(
            "letters.html",
            session,
            wanted,
            rows=rows,
            total=total,
            order=order,
            columns=LETTER_COLUMNS,
            unchosen="chosen" in query,
            walk=query_of(wanted, **sort),
            earlier=query_of(wanted, **sort, before=rows[0].number) if earlier else None,
            later=query_of(wanted, **sort, after=rows[-1].number) if later else None,
        )

    @for_everybody
    async def letter(self, request: Request, session: WebSession) -> Response:
        """Show one letter."""
        row, reading = await self._letter(request)
        today, fault = None, None
        try:
            today = await run_in_threadpool(self._backend.verdict, reading)
        except MqauthError as error:
            fault = str(error)
        query = request.query_params
        original, form = reading.original, query.get("view", "")
        # The letters before and after it, within the filter and in the order of the query.
        among, order = filter_of(query), order_of(query, LETTER_COLUMNS, QUEUE)
        before, after = (
            rows[0] if rows else None
            for rows in [
                await run_in_threadpool(
                    self._ask, Index.page, [], among, after=row.number, limit=1, order=way
                )
                for way in (order.reverse, order)
            ]
        )
        return self._filtered(
            "letter.html",
            session,
            Filter(marks=(row.mark,)),
            row=row,
            reading=reading,
            today=today,
            fault=fault,
            advice=explain(reading.reason),
            claims=display.claims(reading),
            # Only where today's verifier found the signature to hold are the claims the signer's own.
            holds=today == "accepted" or today in SIGNED_REASONS,
            body=None if original is None else display.body(original.body, form),
            headers=[] if original is None else display.headers(original),
            properties=[] if original is None else display.properties(original),
            walk=query_of(among, **({"sort": query["sort"]} if "sort" in query else {})),
            before=before,
            after=after,
            now=explain(str(today)) if today in set(Reason) else None,
        )

    @for_everybody
    async def trail(self, request: Request, session: WebSession) -> Response:
        """Show what the audit files say of a letter."""
        row, reading = await self._letter(request)
        return self._filtered(
            "audit.html",
            session,
            filter_of(request.query_params),
            reading=reading,
            steps=await run_in_threadpool(self._backend.trail, reading.id),
            record=display.record,
            walk=query_of(filter_of(request.query_params)),
            row=row,
        )

    @posted(viewers=True)
    async def refresh(
        self, request: Request, session: WebSession, fields: Fields
    ) -> None:
        """Read all letters again."""
        self._backend.read(session.name)

    @posted()
    async def judge(
        self, request: Request, session: WebSession, fields: Fields
    ) -> Response:
        """Judge letters by today's verifier."""
        wanted = filter_of(fields)
        self._backend.judge(wanted, session.name)
        return RedirectResponse(f"{self.site.base}/job?{query_of(wanted)}", SEE_OTHER)

    @posted()
    async def chosen(
        self, request: Request, session: WebSession, fields: Fields
    ) -> Response:
        """Go on with the letters that were chosen one by one, and with nothing else."""
        among, act = filter_of(fields), fields.get("act", "")
        wanted = Filter(marks=among.marks)
        # Without any mark the same filter would mean all letters.
        if not wanted.marks:
            return RedirectResponse(
                f"{self.site.base}/letters?{query_of(among, chosen='none')}", SEE_OTHER
            )
        if act == backend.JUDGE:
            self._backend.judge(wanted, session.name)
            return RedirectResponse(f"{self.site.base}/job?{query_of(wanted)}", SEE_OTHER)
        require(act in ACTS, _NOT_OURS, bad_request)
        return RedirectResponse(
            f"{self.site.base}/act/{act}?{query_of(wanted)}", SEE_OTHER
        )

    @for_everybody
    async def act_form(self, request: Request, session: WebSession) -> Response:
        """Show the form of an act."""
        act, wanted = request.path_params["act"], filter_of(request.query_params)
        require(act in ACTS, "", partial(HTTPException, 404))
        require(session.may_act, _LOOK_ONLY, partial(HTTPException, 403))
        return self._filtered(
            "act.html",
            session,
            wanted,
            act=act,
            total=await run_in_threadpool(self._ask, Index.count, 0, wanted),
            reasons=[
                group.reason
                for group in await run_in_threadpool(self._ask, Index.groups, [], wanted)
            ],
        )

    @posted()
    async def rehearse(
        self, request: Request, session: WebSession, fields: Fields
    ) -> None:
        """Freeze a selection, and find out what the act would do."""
        act, rate, limits = (
            request.path_params["act"],
            None,
            "The rate limit is 0.01 to 1000000 dead letters per second.",
        )
        require(act in ACTS, _NOT_OURS, bad_request)
        if fields.get("rate", "").strip():
            with refusing(ValueError, limits, bad_request):
                rate = float(fields["rate"])
                require(0.01 <= rate <= 1_000_000, limits, bad_request)
        await run_in_threadpool(
            self._backend.rehearse,
            Plan(
                act=act,
                wanted=filter_of(fields),
                reason=fields.get("why", "").strip(),
                waive=waivable(fields.getlist("waive")),
                rate=rate,
                reviewer=session.name,
            ),
        )

    @posted()
    async def confirm(
        self, request: Request, session: WebSession, fields: Fields
    ) -> None:
        """Do what was rehearsed."""
        self._backend.act(fields.get("job", ""), session.name)

    @posted()
    async def cancel(self, request: Request, session: WebSession, fields: Fields) -> None:
        """Stop the running job before its next letter."""
        self._backend.cancel(fields.get("job", ""))

    @for_everybody
    async def job(self, request: Request, session: WebSession) -> Response:
        """Show the newest job."""
        return self._filtered(
            "job.html",
            session,
            filter_of(request.query_params),
            rehearsing=backend.REHEARSE,
        )

    @for_everybody
    async def progress(self, request: Request, session: WebSession) -> Response:
        """Return the progress of the newest job as JSON."""
        job = self._backend.job
        return JSONResponse(
            {}
            if job is None
            else {**job.as_dict(), "lost": self._backend.letters.lost is not None}
        )

    @for_everybody
    async def account(self, request: Request, session: WebSession) -> Response:
        """Show whether all letters add up."""
        return self.site.page(
            "account.html",
            session,
            ledger=self._backend.ledger,
            files=self._backend.files,
        )

    @posted(viewers=True)
    async def start_account(
        self, request: Request, session: WebSession, fields: Fields
    ) -> None:
        """Compare the audit files with the letters."""
        self._backend.account(session.name)

    async def _letter(self, request: Request) -> tuple[Any, Reading]:
        """Return the letter of an address, by its mark."""
        mark = Filter(marks=(request.path_params["mark"],))
        letters: list[tuple[Any, Reading]] = await run_in_threadpool(
            self._ask,
            lambda index: [
                (row, index.reading(row.number)) for row in index.page(mark, limit=1)
            ],
            [],
        )
        return require(
            letters,
            "No such dead letter is open. It may have been resolved since.",
            partial(HTTPException, 404),
        )[0]

    def _filtered(
        self, name: str, session: WebSession, wanted: Filter, **values: Any
    ) -> Response:
        """Return a page that shows the filter by which it was made."""
        return self.site.page(
            name, session, fields=wanted.given(), query=query_of(wanted), **values
        )
