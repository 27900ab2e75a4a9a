"""Reads queries and forms strictly into filters and plans. What no page of ours sends is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import ImmutableMultiDict
from starlette.requests import Request

from mqauth.errors import MqauthError, require
from mqauth.review import ACTS, ALL, DIMENSIONS, Filter, Plan, waivable

MAX_FORM: Final = 16 * 1024
TEXTS: Final = (*DIMENSIONS, "mark", "today", "id")
_MAX_TEXT: Final = 300
_MAX_FIELDS: Final = 40
_NOT_OURS: Final = "this is no form of this console"
Fields = ImmutableMultiDict[str, str]


class BadRequestError(MqauthError):
    """The request is not one that a page of ours makes."""

    code = "bad_request"


async def read_form(request: Request) -> Fields:
    """Return the fields of a urlencoded form of at most 16 KiB.

    Raises:
        BadRequestError: another type, too large, or not urlencoded.
    """
    require(
        request.headers.get("content-type", "").partition(";")[0].strip() == "application/x-www-form-urlencoded",
        _NOT_OURS,
        BadRequestError,
    )
    # In pieces and with a bound: whoever reaches the login page can send any body.
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        require(len(raw) <= MAX_FORM, "the form is too large", BadRequestError)
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError as error:
        raise BadRequestError(_NOT_OURS) from error
    return Fields(pairs)


def filter_of(fields: Mapping[str, str]) -> Filter:
    """Return the filter that a query or form names. A field that is there but empty means *none*.

    Raises:
        BadRequestError: a text is too long.
    """
    texts: dict[str, Any] = {name: fields[name] for name in TEXTS if name in fields}
    require(all(len(text) <= _MAX_TEXT for text in texts.values()), "a filter is too long", BadRequestError)
    return replace(ALL, **texts)


def query_of(wanted: Filter, **more: object) -> str:
    """Return the query that means this filter."""
    return urlencode(wanted.given() | {name: str(value) for name, value in more.items()})


def plan_of(act: str, fields: Fields, reviewer: str) -> Plan:
    """Return the plan that the form of an act describes.

    Raises:
        BadRequestError: a field is not what our form sends.
        ConfigurationError: no reason, or something that no release may waive.
    """
    require(act in ACTS, _NOT_OURS, BadRequestError)
    return Plan(
        act=act, wanted=filter_of(fields), reason=fields.get("why", "").strip(),
        waive=waivable(fields.getlist("waive")), rate=_rate(fields.get("rate", "")), reviewer=reviewer,
    )  # fmt: skip


def row_number(text: str | None) -> int:
    """Return the number of a row in a query, 0 where there is none.

    Raises:
        BadRequestError: it is no number.
    """
    if text is None:
        return 0
    require(text.isascii() and text.isdecimal() and len(text) <= 12, "a number is expected", BadRequestError)
    return int(text)


def _rate(text: str) -> float | None:
    if not text.strip():
        return None
    try:
        rate = float(text)
    except ValueError as error:
        raise BadRequestError("the rate is a number of letters a second") from error
    require(
        math.isfinite(rate) and 0.01 <= rate <= 1_000_000,
        "the rate is 0.01 to 1000000 letters a second",
        BadRequestError,
    )
    return rate
