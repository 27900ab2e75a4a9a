"""The templates: Jinja2 with every value escaped, and a value that is missing an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from mqauth.console import job as jobs
from mqauth.console.pictures import HEIGHT, WIDTH
from mqauth.console.showing import moment
from mqauth.console.wishes import DIMENSIONS
from mqauth.console.words import explain
from mqauth.review import Group

FOLDER: Final = Path(__file__).parent / "pages_html"
_DOING: Final = {
    jobs.READING: "Reading letters", jobs.JUDGING: "Judging", jobs.REHEARSING: "Finding out what it would do",
    jobs.ACCOUNTING: "Account", jobs.REDRIVE: "Redrive", jobs.DISCARD: "Discard",
}  # fmt: skip
STATIC: Final = Path(__file__).parent / "static"


class Templates:
    """The pages' templates, read once."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, auto_reload=False,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._environment.filters |= {"moment": moment, "count": _count, "plain": _plain}
        self._environment.globals |= {
            "explain": explain,
            "doing": _DOING.__getitem__,
            "group_query": _group_query,
            "width": WIDTH,
            "height": HEIGHT,
        }

    def page(self, name: str, *, status: int, **values: Any) -> Response:
        """Return a page."""
        return HTMLResponse(self._environment.get_template(name).render(status=status, **values), status)


def _group_query(group: Group) -> str:
    """Return the query that means a group's letters."""
    return urlencode({name: getattr(group, name) for name in DIMENSIONS})


def _count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _plain(reason: str) -> str:
    """Return a reason's name without its underscores."""
    return reason.replace("_", " ")
