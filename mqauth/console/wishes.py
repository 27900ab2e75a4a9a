"""What a request asks for: query and form read strictly into filters and plans; nothing else is believed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request

from mqauth.console.job import ACTS, Plan
from mqauth.errors import MqauthError
from mqauth.letters.release import WAIVABLE
from mqauth.review import ALL, Filter

MAX_FORM: Final = 16 * 1024
DIMENSIONS: Final = ("reason", "issuer", "kid", "subject", "destination")
TEXTS: Final = (*DIMENSIONS, "mark", "today", "id")
_MAX_TEXT: Final = 300
_MAX_FIELDS: Final = 40


class BadRequestError(MqauthError):
    """The request is not one that a page of ours makes."""

    code = "bad_request"


async def form(request: Request) -> dict[str, list[str]]:
    """Return the fields of a form, urlencoded, at most 16 KiB.

    Raises:
        BadRequestError: another type, too large, or not in its form.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise BadRequestError("this is no form of ours")
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > MAX_FORM:
            raise BadRequestError("the form is too large")
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError as error:
        raise BadRequestError("this is no form of ours") from error
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


def filter_of(fields: Mapping[str, str]) -> Filter:
    """Return the filter that query or form names; a field that is there but empty means *none*.

    Raises:
        BadRequestError: a text is too long.
    """
    texts: dict[str, Any] = {name: fields[name] for name in TEXTS if name in fields}
    if any(len(text) > _MAX_TEXT for text in texts.values()):
        raise BadRequestError("a filter is too long")
    return replace(ALL, **texts)


def fields_of(wanted: Filter) -> dict[str, str]:
    """Return the fields that make this filter again."""
    return {name: value for name in TEXTS if (value := getattr(wanted, name)) is not None}


def query_of(wanted: Filter, **more: object) -> str:
    """Return the query that makes this filter again."""
    return urlencode(fields_of(wanted) | {name: str(value) for name, value in more.items()})


def plan_of(act: str, fields: Mapping[str, list[str]], reviewer: str) -> Plan:
    """Return what a reviewer planned.

    Raises:
        BadRequestError: a field is not what our form sends.
    """
    waive = frozenset(fields.get("waive", ()))
    if act not in ACTS or not waive <= set(WAIVABLE):
        raise BadRequestError("this is no form of ours")
    return Plan(
        act=act, wanted=filter_of(first(fields)), reason=first(fields).get("why", "").strip(), waive=waive,
        rate=_rate(first(fields).get("rate", "")), reviewer=reviewer,
    )  # fmt: skip


def first(fields: Mapping[str, list[str]]) -> dict[str, str]:
    """Return the first value of each field."""
    return {name: values[0] for name, values in fields.items()}


def whole(text: str | None) -> int:
    """Return a whole number of a query, 0 where there is none.

    Raises:
        BadRequestError: it is none.
    """
    if text is None:
        return 0
    if not text.isascii() or not text.isdecimal() or len(text) > 12:
        raise BadRequestError("a number is expected")
    return int(text)


def _rate(text: str) -> float | None:
    """Return letters a second."""
    if not text.strip():
        return None
    try:
        rate = float(text)
    except ValueError as error:
        raise BadRequestError("the rate is a number of letters a second") from error
    if not math.isfinite(rate) or not 0.01 <= rate <= 1_000_000:
        raise BadRequestError("the rate is 0.01 to 1000000 letters a second")
    return rate
