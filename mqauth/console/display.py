"""Makes letters fit to look at: hostile text bounded, with nothing invisible.

The templates escape every value for HTML. Nothing here does.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final, NoReturn

from mqauth.errors import Reason, require
from mqauth.letters.release import RELEASE_HEADER
from mqauth.review import Index, Reading, time_text
from mqauth.wire import json_form
from mqauth.wire.message import TOKEN_HEADER, Message

MAX_BODY: Final = 64 * 1024
MAX_HEX: Final = 8 * 1024
MAX_VALUE: Final = 1024
MAX_HEADERS: Final = 200
MAX_GROUPS: Final = 200
COLUMNS: Final = 40
SERIES: Final = 6
_FOREVER: Final = 253_370_764_800.0
"""UTC seconds of the year 9999. A forged letter may name a later time, which no calendar has."""
_ROW: Final = 16
_HIDDEN: Final = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
"""Unicode categories of characters that cannot be seen."""
_BLANK: Final = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Letters and marks without any form to see (Unicode, ``Default_Ignorable_Code_Point``)."""


COLOURS: Final = 8
GREY: Final = (COLOURS, 0)
"""Of whatever is no reason of ours: a forged letter may name any, and a chart sums up the rare ones."""
REASONS: Final[dict[str, tuple[int, int]]] = {
    # What is seen most often has a plain colour of its own.
    Reason.EXPIRED: (0, 0),
    Reason.TOKEN_MISSING: (1, 0),
    Reason.KEY_UNKNOWN: (2, 0),
    Reason.SIGNATURE_INVALID: (3, 0),
    Reason.HANDLER_FAILED: (4, 0),
    Reason.REPLAYED: (5, 0),
    Reason.ISSUER_UNTRUSTED: (6, 0),
    Reason.PRODUCER_FORBIDDEN: (7, 0),
    Reason.QUEUE_AGE_EXCEEDED: (0, 1),
    Reason.TOKEN_MALFORMED: (1, 1),
    Reason.KEY_EXPIRED: (2, 1),
    Reason.BODY_MISMATCH: (3, 1),
    Reason.MESSAGE_MALFORMED: (4, 1),
    Reason.PROOF_INVALID: (5, 1),
    Reason.AUDIENCE_MISMATCH: (6, 1),
    Reason.DESTINATION_MISMATCH: (7, 1),
    Reason.LIFETIME_EXCESSIVE: (0, 2),
    Reason.TOKEN_REPEATED: (1, 2),
    Reason.KEY_REVOKED: (2, 2),
    Reason.HEADERS_MISMATCH: (3, 2),
    Reason.RELEASE_INVALID: (4, 2),
    Reason.CLAIM_MISSING: (5, 2),
    Reason.SUBJECT_MISMATCH: (6, 2),
    Reason.COVERAGE_INSUFFICIENT: (7, 2),
    Reason.NOT_YET_VALID: (0, 3),
    Reason.TOKEN_OVERSIZE: (1, 3),
    Reason.ALGORITHM_FORBIDDEN: (2, 3),
    Reason.RECORD_KEY_MISMATCH: (3, 3),
    Reason.HEADER_FORBIDDEN: (4, 3),
    Reason.CLAIMS_MALFORMED: (5, 3),
    Reason.TOKEN_TYPE: (6, 3),
    Reason.ISSUED_IN_FUTURE: (7, 3),
    Reason.IDENTITY_INVALID: (0, 4),
    Reason.IDENTITY_MISMATCH: (1, 4),
    Reason.APPEND_TIME_MISSING: (2, 4),
}
"""Each reason's number of a colour and of a pattern: plain, stripes, dots, bars, checks; each pair stands once."""


def of_producer(subject: str) -> int:
    """Return the number of the colour of a producer: of its name alone, so that it is always the same.

    Producers may share a colour. It helps to follow one down a table, and proves nothing.
    """
    return (
        hashlib.sha256(subject.encode("utf-8", "backslashreplace")).digest()[0] % COLOURS
    )


@dataclass(frozen=True, slots=True)
class Body:
    """A body in one of its forms; ``note`` says what of it is not shown, ``size`` is in bytes."""

    form: str
    text: str
    size: int
    note: str = ""


def visible(text: str, *, lines: bool = False) -> str:
    """Return text in which characters that cannot be seen are escaped.

    Args:
        text: anything.
        lines: whether line ends and tabs stay.
    """
    kept = "\n\t" if lines else ""
    return "".join(
        (f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}")
        if char not in kept
        and (unicodedata.category(char) in _HIDDEN or _BLANK.match(char))
        else char
        for char in text
    )


def _short(raw: str | bytes) -> str:
    text = (
        raw
        if isinstance(raw, str)
        else raw[:MAX_VALUE].decode("utf-8", "backslashreplace")
    )
    return visible(text[:MAX_VALUE])


def body(raw: bytes | None, form: str) -> Body:
    """Return a body as ``text``, ``json`` or ``hex``.

    Args:
        raw: ``None`` for a tombstone of Kafka.
        form: empty for JSON where the body is that, else text; anything else means text.
    """
    if raw is None:
        return Body("text", "", 0, "There is no body at all (a tombstone).")
    if not form:
        parsed = body(raw, "json")
        return parsed if parsed.text else body(raw, "text")
    if form == "hex":
        rows = (
            (start, raw[start : start + _ROW])
            for start in range(0, min(len(raw), MAX_HEX), _ROW)
        )
        shown = (
            f"{start:08x}  {row.hex(' '):<47}  {''.join(chr(byte) if 32 <= byte < 127 else '.' for byte in row)}"
            for start, row in rows
        )
        return Body("hex", "\n".join(shown), len(raw), _cut(len(raw), MAX_HEX))
    note = _cut(len(raw), MAX_BODY)
    if form != "json":
        text = raw[:MAX_BODY].decode("utf-8", "backslashreplace")
        return Body("text", visible(text, lines=True), len(raw), note)
    if note:
        return Body("json", "", len(raw), "Too large to be shown as JSON.")
    text = ""
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse
        )
        # A little more than is shown: the whole could be a thousand times as long as the body, since 900 lists in
        # each other indent to 57 MB.
        for part in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(value):
            text += part
            if len(text) > MAX_BODY:
                break
    except (ValueError, RecursionError):
        return Body(
            "json",
            "",
            len(raw),
            "This is not JSON, or it has a key twice, of which readers may take either.",
        )
    note = (
        f"The first {MAX_BODY} characters are shown."
        if len(text) > MAX_BODY
        else "The text has numbers as sent."
    )
    return Body("json", visible(text[:MAX_BODY], lines=True), len(raw), note)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    require(len(dict(pairs)) == len(pairs), "a key is there twice", ValueError)
    return dict(pairs)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _cut(size: int, limit: int) -> str:
    return f"The first {limit} of {size} bytes are shown." if size > limit else ""


def headers(message: Message) -> list[tuple[str, str, str]]:
    """Return name, value and type of each header; of a token the size alone, since whoever sees it can send it."""
    rows = []
    for name, value in message.headers[:MAX_HEADERS]:
        if name.lower() in (TOKEN_HEADER, RELEASE_HEADER):
            size = len(value) if isinstance(value, str | bytes) else 0
            rows.append((_short(name), f"not shown, {size} bytes", "token"))
        else:
            shown = (
                json.dumps(json_form.value_to_form(value))
                if isinstance(value, tuple | Mapping)
                else value
            )
            rows.append(
                (
                    _short(name),
                    _short(shown if isinstance(shown, bytes) else str(shown)),
                    type(value).__name__,
                )
            )
    return rows


def properties(message: Message) -> list[tuple[str, str]]:
    """Return the record key and the properties."""
    rows = [
        (visible(name), _short(str(value))) for name, value in message.properties.items()
    ]
    return rows if message.key is None else [("record key", _short(message.key)), *rows]


def record(members: Mapping[str, Any]) -> str:
    """Return an audit record as indented JSON."""
    return visible(json.dumps(members, indent=2, ensure_ascii=False), lines=True)


def claims(reading: Reading) -> list[tuple[str, str]]:
    """Return what the token claims, one line a claim."""
    if reading.claims is None:
        return []
    members = reading.claims.as_dict()
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in members.items()
    }
    texts |= {
        name: f"{members[name]} ({moment(float(members[name]))})"
        for name in ("iat", "exp", "nbf")
        if isinstance(members.get(name), int)
    }
    rows = [("kid", reading.kid or ""), ("alg", reading.alg or ""), *texts.items()]
    return [(_short(name), _short(text)) for name, text in rows]


def moment(seconds: float | None) -> str:
    """Return a time for people; empty where there is none."""
    text = time_text(seconds)
    return f"{text[:19].replace('T', ' ')} UTC" if text else ""


def overview(index: Index) -> Any:
    """Return what the first page shows of an index, which itself counts rejections over time by reason.

    Returns:
        ``as_of``, ``total``, ``kinds``, ``complete`` and ``expected`` of the index; the series by reason, the
        largest first (``names``, ``totals``); ``columns``, letters by series of each column that has any, and the
        ``highest`` of them; ``untimed``, letters that name no time of a calendar; ``first``, ``last`` and the
        ``step`` of a column in seconds.
    """
    totals = Counter(dict(index.reasons()))
    shown = dict(totals.most_common(SERIES))
    if len(totals) > SERIES:
        shown["other reasons"] = totals.total() - sum(shown.values())
    span = index.span(_FOREVER)
    first, last = span or (0.0, 0.0)
    step = max(last - first, 1.0) / COLUMNS
    places = {name: number for number, name in enumerate(shown)}
    columns: dict[int, Counter[int]] = defaultdict(Counter)
    for reason, at, count in (
        index.columns(first, step, COLUMNS, before=_FOREVER) if span else ()
    ):
        # Reasons that have no series of their own are in the last.
        columns[at][places.get(reason, len(shown) - 1)] += count
    heights = [column.total() for column in columns.values()]
    return SimpleNamespace(
        as_of=index.as_of,
        total=index.count(),
        kinds=index.kinds(),
        complete=index.complete,
        expected=index.expected,
        names=[*shown],
        totals=[*shown.values()],
        columns=columns,
        highest=max(heights, default=0),
        untimed=max(0, totals.total() - sum(heights)),
        first=first,
        last=last,
        step=step,
    )
