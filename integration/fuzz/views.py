"""Targets: hostile letters, read by the review and shown by the console's own templates."""

from __future__ import annotations

import atexit
import json
import re
import unicodedata
from contextlib import suppress
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import mqauth.console
from integration.fuzz import seeds
from integration.fuzz.draw import Draw, packed_message, sized
from integration.fuzz.oracles import plain
from integration.fuzz.readers import is_carried
from mqauth.console import display, pages
from mqauth.console.site import ConsoleQueue, Cookie, Sessions, Site, WebSession
from mqauth.errors import ConfigurationError, Reason, Rejection
from mqauth.letters.dead_letter import MAX_HEADERS, DeadLetter
from mqauth.review import LARGEST, QUEUE, Filter, Index
from mqauth.review.glossary import explain
from mqauth.review.letter import Letter, Reading, read, redeliverable
from mqauth.wire import envelope, json_form
from mqauth.wire.message import Message, fold

_TEMPLATES: Final = Path(mqauth.console.__file__).parent / "pages_html"
_HIDDEN: Final = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
"""Unicode categories of characters that nobody sees; those of the unassigned depend on the version of Unicode."""
_PLACES: Final = ("/", "?", "#")
"""What links of the console begin with."""
_TOPIC: Final = re.compile("[A-Za-z0-9._-]{1,249}")
"""A topic's name, as Kafka allows it."""
_BLANK: Final = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)
"""Characters that Unicode calls ignorable, and that are in none of the categories."""
_MANY: Final = 500
"""Letters of one index."""


def dead_letter(raw: bytes) -> None:
    """Write a dead letter in each form and read it again: what is restored is the message that was rejected."""
    draw = Draw(raw)
    carried, which = draw.number(), draw.number() % 3
    scope, queue = draw.text() or "s", draw.text()
    message = draw.message()
    if not envelope.is_kafka(message.destination):
        message = replace(message, origin=replace(message.origin, queue=queue))
    elif not _TOPIC.fullmatch(message.origin.topic or ""):
        return
    made = DeadLetter(
        message=message,
        rejection=Rejection(Reason.EXPIRED, "expired"),
        scope=scope,
        time=1.9e9,
        audit="a",
    )
    form = (
        lambda: made.whole(lambda name, value: len(name) % 8 != carried),
        made.in_body,
        made.reference,
    )[which]
    letter = form()
    found = read(Letter(message=letter))
    assert found.id == made.id
    assert json.loads(json.dumps(found.as_dict()))["id"] == made.id
    stripped = any(fold(name).startswith("mqauth-dead-") for name, _ in message.headers)
    if which == 2 or not is_carried(message) or (which == 0 and stripped):
        return
    if _is_writable(message, scope, queue) and len(message.headers) <= MAX_HEADERS:
        assert found.intact, f"our own letter is not intact: {found.fault}"
        assert found.original is not None
        assert plain(_judged_parts(found.original)) == plain(_judged_parts(message))


def _judged_parts(message: Message) -> tuple[Any, ...]:
    """Return what of a message a consumer judges: headers that the broker writes anew do not count."""
    written = ("timestamp_in_ms", "x-delivery-count", "x-acquired-count")
    # As the JSON form has values, which is how they are signed: a time of whole seconds in UTC.
    headers = [
        (name, json_form.value_to_form(value))
        for name, value in message.headers
        if name not in written
    ]
    return (
        message.destination,
        message.body,
        message.key,
        dict(message.properties),
        headers,
    )


def _is_writable(message: Message, *names: str) -> bool:
    """Tell whether all names and properties have a UTF-8 form; the letter escapes the others."""
    texts = (*names, *message.properties.values(), *(name for name, _ in message.headers))
    return all(text == json_form.writable(text) for text in texts)


def letter(raw: bytes) -> None:
    """Read whatever lies in a dead-letter queue: it never fails, and what it says is harmless."""
    found = read(Letter(message=Draw(raw).message()))
    said = json.loads(json.dumps(found.as_dict()))
    for name in ("detail", "scope", "destination", "source", "audit", "reason", "id"):
        _visible(said[name], name)
    if found.original is not None:
        again = redeliverable(found.original, scope="s", now=1.9e9)
        assert not any(envelope.is_broker_written(name) for name, _ in again.headers)


def view(raw: bytes) -> None:
    """Show a letter on every page: no markup but the templates' own, nothing invisible, no link elsewhere."""
    form = ("text", "json", "hex")[Draw(raw).number() % 3]
    message = Draw(raw[1:]).message()
    index = _index()
    index.add([Letter(message=message)])
    [row] = index.page(after=index.size - 1, limit=1)
    with suppress(ConfigurationError):
        reading = index.reading(row.number)
        _check(_letter_page(row, reading, form))
    if form == "text":
        _check(_lists(row, index))


def _index() -> Index:
    """Return the index that views add to; a new one once it has many letters."""
    if not _INDEXES or _INDEXES[-1].size >= _MANY:
        for index in _INDEXES:
            index.close()
        _INDEXES[:] = [Index(0.0)]
    return _INDEXES[-1]


_INDEXES: Final = list[Index]()
atexit.register(lambda: [index.close() for index in _INDEXES])


def _letter_page(row: Any, reading: Reading, form: str) -> str:
    original = reading.original
    wanted = Filter(marks=(row.mark,))
    return _render(
        "letter.html", fields=wanted.given(), query=pages.query_of(wanted), row=row, reading=reading, today=None,
        fault=None, advice=explain(reading.reason), claims=display.claims(reading), holds=False,
        body=None if original is None else display.body(original.body, form),
        headers=[] if original is None else display.headers(original),
        properties=[] if original is None else display.properties(original),
        walk=pages.query_of(Filter(reason=row.reason, kid=row.kid)), before=row, after=row, now=None,
    )  # fmt: skip


def _lists(row: Any, index: Index) -> str:
    own = Filter(
        subject=row.subject,
        kid=row.kid,
        issuer=row.issuer,
        destination=row.destination,
        reason=row.reason,
    )
    shown = display.overview(index) if index.size <= 20 else None
    groups = [] if shown is None else index.groups()
    listed = _render(
        "letters.html", fields=own.given(), query=pages.query_of(own), rows=[row], total=1, order=QUEUE,
        columns=pages.LETTER_COLUMNS, unchosen=False, walk=pages.query_of(own), earlier=None,
        later=pages.query_of(own, after=1),
    )  # fmt: skip
    grouped = _render(
        "groups.html", fields={}, query="", overview=shown, groups=groups, order=LARGEST,
        columns=pages.GROUP_COLUMNS,
    )  # fmt: skip
    return listed + grouped


@cache
def _site() -> Site:
    box = SimpleNamespace(name="orders.dead")
    session = SimpleNamespace(box=box, guard=object(), can_redrive=True, audit=object())
    backend: Any = SimpleNamespace(
        letters=SimpleNamespace(lost=None), session=session, job=None, files=["audit"]
    )
    place = ConsoleQueue(backend)
    return Site([place], Sessions(), Cookie(name="mqauth", tls=False), place)


_SESSION: Final = WebSession(name="ada", role="reviewer", began=0.0, used=0.0)


def _render(name: str, **values: Any) -> str:
    return bytes(_site().page(name, _SESSION, **values).body).decode("utf-8")


class _Markup(HTMLParser):
    """Collects the elements of a page with their attributes, and what links lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.links, self.odd = (
            set[tuple[str, str]](),
            list[str](),
            list[str](),
        )

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements |= {(tag, ""), *((tag, name) for name, _ in attrs)}
        self.links += [
            value or "" for name, value in attrs if name in ("href", "src", "action")
        ]

    def handle_comment(self, data: str) -> None:
        self.odd.append(data)

    def unknown_decl(self, data: str) -> None:
        self.odd.append(data)

    handle_pi = unknown_decl


def _markup(text: str) -> _Markup:
    found = _Markup()
    found.feed(text)
    found.close()
    return found


@cache
def _own() -> frozenset[tuple[str, str]]:
    """Return the elements and attributes that the templates themselves have."""
    found: set[tuple[str, str]] = set()
    for path in _TEMPLATES.glob("*.html"):
        text = re.sub(
            r"{%.*?%}|{{.*?}}|{#.*?#}",
            " ",
            path.read_text(encoding="utf-8"),
            flags=re.DOTALL,
        )
        found |= _markup(text).elements
    return frozenset(found)


def _check(page: str) -> None:
    found = _markup(page)
    assert found.elements <= _own(), (
        f"foreign markup: {sorted(found.elements - _own())[:3]}"
    )
    assert not found.odd, "a comment or a declaration that no template has"
    assert all(
        link.startswith(_PLACES) and not link.startswith("//") for link in found.links
    ), "a link leads away"
    assert len(re.findall("<script", page)) == len(re.findall("<!doctype", page))
    _visible(page, "page")


def _visible(text: str, where: str) -> None:
    hidden = {*_BLANK.findall(text)}
    hidden |= {char for char in {*text} - {"\n"} if unicodedata.category(char) in _HIDDEN}
    assert not hidden, (
        f"{where} has invisible characters: {''.join(sorted(hidden))[:5]!a}"
    )


def letters() -> list[bytes]:
    """Return seeds: the letters of the vectors' messages, each form in turn."""
    found = []
    for at, message in enumerate(seeds.messages()):
        made = DeadLetter(
            message=message,
            rejection=Rejection(Reason.EXPIRED, "expired"),
            scope="s",
            time=1.9e9,
            audit="a",
        )
        each = (
            lambda made=made: made.whole(lambda *_: True),
            made.in_body,
            made.reference,
        )[at % 3]  # type: ignore[misc]
        shown = each()
        pairs = ((name, _native(value, shown)) for name, value in shown.headers)
        found.append(packed_message(replace(shown, headers=tuple(pairs))))
    return found


def _native(value: Any, message: Message) -> Any:
    """Return a header of a letter as its broker has it: bytes on Kafka."""
    return (
        value.encode()
        if isinstance(value, str) and envelope.is_kafka(message.destination)
        else value
    )


def hidden_letters() -> list[bytes]:
    """Return seeds: letters, and one whose every word ends in characters that nobody sees."""
    blank = "\xad\u0600\u061c\u180e\u200b\u3164\ufe0f\U000e0100"
    named = [
        (f"mqauth-dead-{name}", blank)
        for name in ("detail", "scope", "source", "audit", "destination", "id")
    ]
    made = Message(destination="rabbitmq:/q", body=b"", headers=tuple(named))
    return [packed_message(made), *letters()]


def views() -> list[bytes]:
    """Return seeds: hostile texts in every place, and letters."""
    hostile = (
        "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u202e\u3164{{7*7}}"
    )
    named = (
        (f"mqauth-dead-{name}", hostile)
        for name in ("detail", "scope", "source", "audit", "reason", "id")
    )
    made = Message(
        destination="rabbitmq:/q", body=hostile.encode(), properties={"type": hostile, "message-id": hostile},
        headers=(("mqauth-dead-destination", "rabbitmq:/q"), (hostile, hostile), *named),
    )  # fmt: skip
    each = [packed_message(made), *hidden_letters()[:1], *hidden_letters()[1::9]]
    return [bytes((at % 3,)) + raw for at, raw in enumerate([*each[:1] * 3, *each])]


def dead_letters() -> list[bytes]:
    """Return seeds: messages to be dead-lettered in each form."""
    return [
        bytes((at % 9, at % 3)) + sized("s") + sized("q\U0001f680" * (at % 2)) + raw
        for at, raw in enumerate(seeds.drawn())
    ]
