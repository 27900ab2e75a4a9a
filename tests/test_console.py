"""The console over the in-memory letter box: nothing runs, nobody acts who may not, every page is shielded."""

from __future__ import annotations

import ast
import html
import re
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mqauth import flow
from mqauth.console import Backend, Sessions, Tokens, application, display
from mqauth.console.backend import BusyError
from mqauth.console.display import MAX_BODY, MAX_GROUPS, body, visible
from mqauth.console.pages import GROUP_COLUMNS, LETTER_COLUMNS
from mqauth.console.site import HEADERS, IDLE, LONGEST, MAX_SESSIONS, tokens_of
from mqauth.errors import Cause, ConfigurationError, Reason, Unavailable
from mqauth.judging.pipeline import Verdict
from mqauth.judging.verifier import Issuer
from mqauth.letters.authorities import Releaser
from mqauth.review import ALL, Index, Plan, Session
from mqauth.review.glossary import EXPLANATIONS, LABELS
from mqauth.review.letterbox import BATCH
from mqauth.testing import FakeClock, Forge
from mqauth.testing.forge import ISSUER, SUBJECT
from mqauth.wire.keys import KeySet
from mqauth.wire.message import Message
from tests.conftest import RABBITMQ, rabbitmq_message
from tests.letter_box import MemoryLetterBox
from tests.test_review import REVIEW, Bureau

DEAD = "rabbitmq:/orders.dead"
HOST = "console.test:8090"
MANY = 2 * BATCH + 50
TOKENS = {"reviewer": "r" * 40, "viewer": "v" * 40}
HOSTILE = (
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "'--><svg/onload=alert(1)>",
    "</pre></textarea>",
    "{{ 7*7 }}{% raw %}", "javascript:alert(1)", "\u202eevil\u2066", "&lt;b&gt;", "a\x00b\x1b[31m",
    "ada\u3164\xad\ufe0f\U000e0100",
)  # fmt: skip


REPLACED = {
    r"(?<!Dead )\bLetters?\b": "Dead letters, Dead letter",
    r"\b[Rr]ead letters (anew|again)\b": "Refresh",
    r"\b([Ll]ook|[Ss]how) what it would do\b|\b[Ff]inding out what\b": "Preview",
    r"\b[Ll]eave it\b|\bDo nothing\b": "Cancel",
    r"\b([Rr]eckon|Compare) now\b": "Recalculate",
    r"\bNot (reckoned|compared) yet\b": "Not calculated yet",
    r"\bAccount\b": "Balance",
    r"\bToday\b": "Verdict now",
    r"\bHolds\b|\bSound\b|\bnot sound\b": "Intact",
    r"\bProperties\b": "Metadata",
    r"\b[Ll]etters a second at most\b": "Rate limit (dead letters per second)",
    r"\b[Jj]udge again\b|\bnot judged\b": "Check again",
    r"\bWatch\b": "Show progress",
    r"\bWhy\?": "Reason (kept in the audit log)",
    r"\bWaive, where\b|\bWaived where needed\b": "Waive if needed",
    r"\bNone is open that fits\b|\bNo open letter fits\b": "No dead letters match",
    r"\bout of reach\b": "Cannot reach the broker",
    r"\b[Ww]ould be refused\b": "Will not be redriven",
    r"\b[Ll]og in\b|\b[Ll]ogged in\b|\bTo come in\b": "Sign in",
    r"\bas somebody else\b": "Switch user",
}
"""Words that are no longer used on screens (regular expressions), each with the word in its place."""


class Room(Bureau):
    """A consumer with dead letters, and the console over them."""

    def __init__(self, clock: FakeClock, forge: Forge) -> None:
        super().__init__(clock, forge, RABBITMQ)
        review = Session(
            self.box, flow.run, guard=self.guard, audit=self.audit, clock=clock,
            releaser=lambda name: Releaser(key=self.key, issuer=REVIEW, reviewer=name, clock=clock),
        )  # fmt: skip
        self.backend = Backend(review, waits=[0])
        self.sessions = Sessions(clock)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the backend's job has ended; its one worker takes jobs in their order."""
        self.backend._worker.submit(int).result(seconds)

    def send(self, *messages: Message) -> list[Verdict]:
        """Publish messages, let the consumer judge them, and read the letters."""
        verdicts = super().send(*messages)
        self.read()
        return verdicts

    def read(self) -> None:
        """Read the letters anew."""
        self.backend.read("test")
        self.wait()

    def late(self, count: int) -> list[Message]:
        """Return messages whose tokens have expired."""
        made = [
            self.forge.seal(rabbitmq_message(body=b"late %d" % number))
            for number in range(count)
        ]
        self.clock.advance(7200)
        return made

    def client(self, role: str | None = "reviewer", *, tls: bool = False) -> TestClient:
        """Return a browser, logged in with a role's token."""
        served = application(
            self.backend,
            tokens=Tokens(TOKENS),
            hosts=[HOST],
            reviewer="ada",
            sessions=self.sessions,
            tls=tls,
        )
        client = TestClient(
            served,
            base_url=f"{'https' if tls else 'http'}://{HOST}",
            follow_redirects=False,
        )
        if role is not None:
            assert client.post("/login", data={"token": TOKENS[role]}).status_code == 303
        return client


@pytest.fixture
def room(clock: FakeClock, forge: Forge) -> Iterator[Room]:
    """A console with no letters."""
    made = Room(clock, forge)
    yield made
    made.backend.close()


def csrf(client: TestClient) -> str:
    """Return the CSRF token of a page's form."""
    found = re.search(r'name="csrf" value="([^"]+)"', client.get("/").text)
    return found[1]


def post(client: TestClient, path: str, **fields: Any) -> Any:
    """Post one of our forms."""
    return client.post(path, data={"csrf": csrf(client), **fields})


def mark_of(room: Room) -> str:
    """Return the mark of the first letter."""
    return room.backend.letters.ask(Index.page, [], ALL, after=0, limit=1)[0].mark


# --- hostile letters --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_letter_is_text(room: Room, text: str) -> None:
    """Body, header, claim, lineage and query of a hostile letter stand escaped on every page, never as markup."""
    plain = rabbitmq_message(body=text.encode(), headers=(("x-evil", text), (text, "v")))
    clean = visible(text)
    sealed = room.forge.seal(plain, claims={"iss": clean, "sub": clean})
    room.send(sealed)
    letter = room.broker.take(DEAD)
    assert letter is not None
    letter = getattr(letter, "message", letter)
    forged = [
        (name, text if name in ("mqauth-dead-detail", "mqauth-dead-scope") else value)
        for name, value in letter.headers
    ]
    room.broker.publish(replace(letter, headers=tuple(forged)))
    room.read()
    client = room.client()
    pages = [
        "/",
        "/letters",
        f"/letters?subject={'%3Cscript%3E'}",
        f"/letter/{mark_of(room)}",
    ]
    pages += [f"/letter/{mark_of(room)}?view={form}" for form in ("json", "hex")]
    for page in pages:
        shown = client.get(page).text
        assert "<img" not in shown
        assert "onload=alert(1)>" not in shown
        assert not re.search(r"<script>", shown)
        assert shown.count("<script") == 1
        assert "\u202e" not in shown
        assert "\x00" not in shown
        assert not re.search("[\xad\u3164\ufe0f\U000e0100]", shown)
    shown = client.get(pages[3]).text
    assert (
        html.escape(visible(text, lines=True), quote=True)
        .replace("&#x27;", "&#39;")
        .replace("&quot;", "&#34;")
        in shown
    )


def test_token_is_never_shown(room: Room) -> None:
    """The letter's page says how long the token is, and shows none of it."""
    [message] = room.late(1)
    room.send(message)
    shown = room.client().get(f"/letter/{mark_of(room)}").text
    token = str(dict(message.headers)["mqauth-token"])
    assert "not shown" in shown
    assert token not in shown
    assert token.split(".")[2] not in shown


def test_claims_are_verified_only_by_todays_verifier(room: Room) -> None:
    """An expired token whose signature holds is the signer's own word; one of an unknown key is not."""
    room.send(*room.late(1))
    assert ">verified<" in room.client().get(f"/letter/{mark_of(room)}").text
    room.guard.verifier = room.forge.verifier(
        keys={ISSUER: Issuer(keys=KeySet([room.forge.neighbour]))}
    )
    shown = room.client().get(f"/letter/{mark_of(room)}").text
    assert ">claimed<" in shown
    assert ">verified<" not in shown


def test_a_deeply_nested_body_is_indented_only_as_far_as_it_is_shown() -> None:
    """Lists 900 deep, which indent to 57 MB, take a few hundred kilobytes, and the page says that it was cut."""
    depth = 900
    raw = b"[" * depth + b"0," * 31_000 + b"0" + b"]" * depth
    tracemalloc.start()
    shown = body(raw, "json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(raw) <= MAX_BODY == len(shown.text)
    assert shown.note == f"The first {MAX_BODY} characters are shown."
    assert peak < 8_000_000


def test_large_body_is_cut(room: Room) -> None:
    """Of a body over 64 KiB only the first are shown, and the page says so."""
    shown = body(b"x" * (MAX_BODY + 1), "text")
    assert len(shown.text) == MAX_BODY
    assert f"{MAX_BODY + 1} bytes" in shown.note
    assert not body(b"[" * 50_000, "json").text
    assert body(None, "text").note


def screens(room: Room) -> Iterator[str]:
    """Yield what people read on every page, in the course of a review."""
    yield words_of(room.client(None).get("/login").text)
    yield words_of(room.client().get("/").text)
    room.send(*room.late(2), rabbitmq_message(body=b"bare"))
    room.backend.files = (Path(__file__),)
    client, path = room.client(), f"/letter/{mark_of(room)}"
    pages = [
        "/",
        "/letters",
        "/letters?reason=none",
        path,
        "/letters?reason=expired",
        "/account",
        "/nothing",
    ]
    yield from (
        words_of(client.get(page).text)
        for page in (*pages, "/job", "/act/redrive", "/act/discard")
    )
    for form, fields in (
        ("/judge", {}), ("/act/redrive", {"why": "x", "waive": "expired"}), ("/confirm", {}),
        ("/act/discard", {"why": "x"}), ("/confirm", {}),
    ):  # fmt: skip
        post(client, form, job=room.backend.job.id, **fields)
        room.wait()
        yield words_of(client.get("/job").text)


def words_of(page: str) -> str:
    """Return the words that people see or hear: text, titles and labels."""
    said = re.findall(r'(?:aria-label|title|data-label|placeholder)="([^"]*)"', page)
    return " | ".join([*said, html.unescape(re.sub(r"<[^>]+>", " ", page))])


def test_old_words_are_on_no_page(room: Room) -> None:
    """No page has a word that the glossary replaced."""
    seen = " | ".join(screens(room))
    found = {old: re.findall(f".{{0,30}}(?:{old})", seen) for old in REPLACED}
    assert {old: places for old, places in found.items() if places} == {}
    missing = {label for label in LABELS.values() if label not in seen}
    # These are seen only where a broker is lost, or a provider is there.
    assert missing <= {LABELS["lost"], LABELS["switch"], LABELS["places"]} | {
        LABELS["refused"],
        LABELS["progress"],
    }


@pytest.mark.parametrize("page", ["docs/console.md", "docs/review.md"])
def test_old_words_are_not_in_the_manual(page: str) -> None:
    """What screens are called has the same name in the manual."""
    text = (Path(__file__).parent.parent / page).read_text("utf-8")
    assert [found[0] for old in REPLACED if (found := re.search(old, text))] == []


def test_old_words_are_not_in_the_command() -> None:
    """Neither the help of ``mqauth dlq`` and ``mqauth console`` nor what they print has an old word."""
    folder = Path(__file__).parent.parent / "mqauth" / "cli"
    texts = [
        found.value
        for name in ("dlq.py", "console.py")
        for found in ast.walk(ast.parse((folder / name).read_text("utf-8")))
        if isinstance(found, ast.Constant) and isinstance(found.value, str)
    ]
    # A text of one word is a name of the code or of JSON.
    said = [text for text in texts if " " in text]
    assert [text for text in said for old in REPLACED if re.search(old, text)] == []


def test_a_proof_is_explained_as_a_place_in_a_batch() -> None:
    """``proof_invalid`` speaks of the message's place in its batch, not of a proof of a key."""
    assert "place in its batch" in EXPLANATIONS[Reason.PROOF_INVALID].meaning


def test_every_reason_is_explained() -> None:
    """No reason is left without words."""
    assert set(EXPLANATIONS) == set(Reason)


# --- who may ----------------------------------------------------------------------------------------------

REVIEWERS = ("/judge", "/chosen", "/act/redrive", "/act/discard", "/confirm", "/cancel")
EVERYBODY = ("/refresh", "/account", "/logout")
SHOWN = (
    "/",
    "/letters",
    "/letter/00",
    "/letter/00/audit",
    "/act/redrive",
    "/act/discard",
    "/job",
    "/job.json",
    "/account",
)


@pytest.mark.parametrize("path", REVIEWERS)
def test_viewer_cannot_act(room: Room, path: str) -> None:
    """A viewer with a good CSRF token is refused at every endpoint of the reviewer."""
    room.send(*room.late(1))
    answer = post(room.client("viewer"), path, why="because")
    assert answer.status_code == 403
    assert "can look, but not act" in answer.text
    assert len(room.broker.waiting(DEAD)) == 1


def test_viewer_sees_no_acts(room: Room) -> None:
    """A viewer's pages have no button that acts."""
    room.send(*room.late(1))
    client = room.client("viewer")
    shown = client.get("/letters").text + client.get(f"/letter/{mark_of(room)}").text
    assert "/act/" not in shown
    assert "/judge" not in shown
    assert client.get("/act/discard").status_code == 403


@pytest.mark.parametrize("given", [{"why": "x"}, {"csrf": ""}, {"csrf": "x" * 43}])
@pytest.mark.parametrize("path", REVIEWERS + EVERYBODY)
def test_csrf(room: Room, path: str, given: dict[str, str]) -> None:
    """Every form without its session's CSRF token is refused, also with the token of another session."""
    client = room.client()
    assert client.post(path, data=given).status_code == 403
    assert client.post(path, data={"csrf": csrf(room.client())}).status_code == 403


@pytest.mark.parametrize("path", SHOWN)
def test_stranger_sees_nothing(room: Room, path: str) -> None:
    """Without a session every page leads to the login."""
    answer = room.client(None).get(path)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


@pytest.mark.parametrize("path", REVIEWERS + EVERYBODY)
def test_stranger_posts_nothing(room: Room, path: str) -> None:
    """Without a session no form is taken."""
    assert room.client(None).post(path, data={"csrf": "x"}).status_code == 403


def test_wrong_token(room: Room) -> None:
    """A wrong token begins no session."""
    client = room.client(None)
    answer = client.post("/login", data={"token": "r" * 39})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert client.get("/").status_code == 303


def test_logout_ends_the_session(room: Room) -> None:
    """After the logout the old cookie opens nothing."""
    client = room.client()
    cookie = client.cookies["mqauth"]
    assert post(client, "/logout").status_code == 303
    assert (
        room.client(None).get("/", headers={"cookie": f"mqauth={cookie}"}).status_code
        == 303
    )


def test_login_ends_the_session_before(room: Room) -> None:
    """A second login gives a new id, and the first opens nothing any more."""
    client = room.client("viewer")
    first = client.cookies["mqauth"]
    client.post("/login", data={"token": TOKENS["reviewer"]})
    assert client.cookies["mqauth"] != first
    assert room.sessions.find(first) is None


def test_sessions_end_and_are_bounded(clock: FakeClock) -> None:
    """A session ends when idle, and after its longest life; of too many the oldest goes."""
    sessions = Sessions(clock)
    idle = sessions.begin("ada", "viewer")
    clock.advance(IDLE + 1)
    assert sessions.find(idle) is None
    busy, began = sessions.begin("ada", "viewer"), clock.monotonic()
    while clock.monotonic() - began <= LONGEST - IDLE / 2:
        assert sessions.find(busy) is not None
        clock.advance(IDLE / 2)
    clock.advance(IDLE / 2)
    assert sessions.find(busy) is None


def test_many_logins_end_sessions_of_their_own(clock: FakeClock) -> None:
    """Who logs in again and again ends their own oldest session, and not a reviewer's that is older."""
    sessions = Sessions(clock)
    reviewer = sessions.begin("ada", "reviewer")
    ids = [sessions.begin("eve", "viewer") for _ in range(MAX_SESSIONS + 1)]
    assert sessions.find(reviewer) is not None
    assert [sessions.find(id) is None for id in ids[:3]] == [True, True, False]


def test_token_file(tmp_path: Path) -> None:
    """The file is made once with mode 0600, read again, and refused when others may read it."""
    path = tmp_path / "tokens"
    tokens, fresh = tokens_of(path)
    assert fresh
    assert path.stat().st_mode & 0o777 == 0o600
    assert tokens_of(path) == (tokens, False)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        tokens_of(path)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"admin": "x" * 40},
        {"viewer": "short"},
        {"viewer": "x" * 40, "reviewer": "x" * 40},
    ],
)
def test_bad_tokens(bad: dict[str, str]) -> None:
    """Unknown roles, short tokens and one token for both roles are refused."""
    with pytest.raises(ConfigurationError):
        Tokens(bad)


# --- the shield -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *SHOWN,
        "/login",
        "/static/console.css",
        "/nothing",
        "/static/../secret",
        "/letters?after=x",
    ],
)
def test_headers_on_every_answer(room: Room, path: str) -> None:
    """Every answer carries the Content-Security-Policy and its companions, errors and static files too."""
    for client in (room.client(), room.client(None)):
        answer = client.get(path)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS


def test_policy_lets_nothing_inline_run(room: Room) -> None:
    """The policy names no unsafe source, and no page needs one."""
    assert "unsafe" not in HEADERS["content-security-policy"]
    assert "frame-ancestors 'none'" in HEADERS["content-security-policy"]
    room.send(*room.late(2))
    client = room.client()
    for path in (*SHOWN, f"/letter/{mark_of(room)}"):
        shown = client.get(path).text
        assert "style=" not in shown
        assert "<style" not in shown
        assert not re.search(r"\son\w+=", shown)


@pytest.mark.parametrize(
    "host", ["evil.test", "evil.test:8090", "console.test", f"{HOST}.evil.test"]
)
def test_foreign_host(room: Room, host: str) -> None:
    """A Host header that is not ours is refused: DNS rebinding reads nothing."""
    answer = room.client().get("/", headers={"host": host})
    assert answer.status_code == 400
    assert "orders" not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.test"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_foreign_origin(room: Room, headers: dict[str, str]) -> None:
    """A form from another site is refused, the login too."""
    client = room.client()
    token = csrf(client)
    assert (
        client.post("/refresh", data={"csrf": token}, headers=headers).status_code == 403
    )
    assert (
        client.post(
            "/login", data={"token": TOKENS["viewer"]}, headers=headers
        ).status_code
        == 403
    )


@pytest.mark.parametrize(
    "body_",
    [
        b"csrf=" + b"x" * 20_000,
        b"&".join(b"a%d=1" % n for n in range(150)),
        b"csrf=%ff",
        b"\xff",
    ],
)
def test_bad_form(room: Room, body_: bytes) -> None:
    """A form that is too large, has too many fields or is no text is refused."""
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert room.client().post("/refresh", content=body_, headers=kind).status_code == 400
    assert room.client().post("/refresh", json={"csrf": "x"}).status_code == 400


# --- acts -------------------------------------------------------------------------------------------------


def bodies(page: str) -> list[str]:
    """Return the marks of the letters in a list, in its order."""
    return re.findall(r'class="open" href="/letter/([0-9a-f]{64})', page)


def test_search_and_sort_are_in_the_url(room: Room) -> None:
    """A search finds reason, producer and detail in any case, both lists sort by each column, both ways."""
    room.send(*room.late(3), rabbitmq_message(body=b"a longer body"))
    client = room.client()
    assert len(bodies(client.get("/letters?search=TOKEN+miss").text)) == 1
    assert len(bodies(client.get("/letters?search=%25").text)) == 0
    assert (
        "<strong>3 dead letters</strong>" in client.get(f"/letters?search={SUBJECT}").text
    )
    assert "token missing</a>" not in client.get("/?search=expired").text
    for column in LETTER_COLUMNS:
        up, down = (
            bodies(client.get(f"/letters?sort={sign}{column}").text) for sign in ("", "-")
        )
        assert up == down[::-1]
        assert len(up) == 4
    for column in GROUP_COLUMNS:
        assert client.get(f"/?sort=-{column}").text.count('class="open"') == 2
    shown = client.get("/?sort=count").text
    assert shown.index("token missing</a>") < shown.index("expired</a>")
    assert 'aria-sort="ascending"' in shown
    assert client.get("/letters?sort=mark;drop").status_code == 400
    assert client.get("/?sort=mark").status_code == 400


@pytest.mark.parametrize("sort", ["", "-id", "time", "-size"])
def test_pages_and_neighbours_follow_filter_and_order(
    room: Room, sort: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Next and previous, of pages and of letters, lead through the whole list and back, and nothing else."""
    monkeypatch.setattr("mqauth.console.pages.PAGE", 2)
    room.send(*room.late(5), rabbitmq_message(body=b"bare"))
    client, seen, path = (
        room.client(),
        list[str](),
        f"/letters?reason=expired&sort={sort}",
    )
    while path:
        shown = client.get(path).text
        seen += bodies(shown)
        following = re.search(r'rel="next" href="([^"]+)"', shown)
        path = html.unescape(following[1]) if following else ""
    assert len(set(seen)) == len(seen) == 5
    back = re.search(r'rel="prev" href="([^"]+)"', shown)
    assert bodies(client.get(html.unescape(back[1])).text) == seen[2:4]
    for at, mark in enumerate(seen):
        shown = client.get(f"/letter/{mark}?reason=expired&sort={sort}").text
        beside = {
            rel: found
            for rel, found in re.findall(
                r'rel="(next|prev)"[^>]*href="/letter/([0-9a-f]+)', shown
            )
        }
        assert beside.get("prev") == (seen[at - 1] if at else None)
        assert beside.get("next") == (seen[at + 1] if at < 4 else None)


def test_review_from_end_to_end(room: Room) -> None:
    """Judge, redrive with a waiver and discard, each confirmed and on record; nothing is left."""
    room.send(*room.late(2), rabbitmq_message(body=b"bare"))
    client = room.client()
    assert post(client, "/judge", reason="expired").status_code == 303
    room.wait()
    assert "0 of 2 dead letters" in client.get("/job").text
    assert (
        post(
            client, "/act/redrive", reason="expired", why="late", waive="expired"
        ).status_code
        == 303
    )
    room.wait()
    shown = client.get("/job").text
    assert "2 of 2 dead letters</strong> would be redriven" in shown
    assert len(room.broker.waiting(DEAD)) == 3
    post(client, "/confirm", job=room.backend.job.id)
    room.wait()
    assert "2 of 2 dead letters</strong> redriven" in client.get("/job").text
    planned(room, client, "discard", why="forged")
    room.wait()
    assert "1 of 1 dead letter</strong> discarded" in client.get("/job").text
    assert not room.broker.waiting(DEAD)
    acts = [
        (record["verdict"], record["detail"])
        for record in room.audit
        if "review" in record
    ]
    assert acts == [("redriven", "late"), ("redriven", "late"), ("discarded", "forged")]
    assert "No dead letters" in client.get("/").text


@pytest.mark.parametrize(
    "fields",
    [
        {"waive": "signature_invalid"},
        {"rate": "nan"},
        {"rate": "0"},
        {"rate": "x"},
        {"why": "  "},
    ],
)
@pytest.mark.parametrize("act", ["redrive", "discard", "burn"])
def test_bad_plan(room: Room, act: str, fields: dict[str, str]) -> None:
    """What no release may waive, rates that are none and what has no reason are not even rehearsed."""
    room.send(*room.late(1))
    job = room.backend.job
    assert (
        post(room.client(), f"/act/{act}", **({"why": "x"} | fields)).status_code == 400
    )
    assert room.backend.job is job


def test_old_plan(room: Room) -> None:
    """A plan is run by whoever made it, and only while it is the newest plan."""
    room.send(*room.late(1))
    client = room.client()
    post(client, "/act/discard", why="x")
    room.wait()
    old = room.backend.job.id
    with pytest.raises(BusyError):
        room.backend.act(old, "eve")
    post(client, "/act/discard", why="y")
    room.wait()
    assert post(client, "/confirm", job=old).status_code == 409
    newest = room.backend.job.id
    assert post(client, "/confirm", job=newest).status_code == 303
    room.wait(10)
    assert post(client, "/confirm", job=newest).status_code == 409
    assert len(room.broker.waiting(DEAD)) == 0


def test_a_viewers_reading_gives_way(room: Room) -> None:
    """While a viewer has the letters read again, a reviewer can work on those that are shown."""
    room.send(*room.late(1))
    client, gate = room.client(), Gate(room)
    assert post(room.client("viewer"), "/refresh").status_code == 303
    gate.wait()
    assert post(client, "/act/discard", why="x").status_code == 303
    gate.open()
    room.wait(10)
    assert room.backend.job.confirmable


def test_cancel(room: Room) -> None:
    """A cancelled act stops before its next letter, and its account adds up."""
    room.send(*room.late(3))
    client = room.client()
    post(client, "/act/discard", why="x", rate="0.01")
    room.wait()
    post(client, "/confirm", job=room.backend.job.id)
    assert post(client, "/refresh").status_code == 409
    assert "Cancel" in client.get("/job").text
    post(client, "/cancel", job=room.backend.job.id)
    room.wait(10)
    account = room.backend.job.account
    assert account["cancelled"]
    assert account["done"] + account["left"] == 3
    assert len(room.broker.waiting(DEAD)) == account["left"] > 0


def test_backend_for_looking_only(room: Room) -> None:
    """Without audit, key and configuration nothing can be judged, redriven or discarded."""
    backend = Backend(Session(MemoryLetterBox(room.broker, DEAD), flow.run))
    try:
        with pytest.raises(ConfigurationError):
            backend.judge(ALL, "ada")
        for act in ("redrive", "discard"):
            with pytest.raises(ConfigurationError):
                backend.rehearse(Plan(act=act, wanted=ALL, reason="x", reviewer="ada"))
    finally:
        backend.close()


def test_many_groups_are_bounded(room: Room) -> None:
    """Of an attacker's many groups the largest are kept, and the page says how many there are."""
    messages = [
        room.forge.seal(rabbitmq_message(body=b"x"), claims={"sub": f"s{n}"})
        for n in range(MAX_GROUPS + 5)
    ]
    room.send(*messages)
    overview = room.backend.letters.ask(display.overview, None)
    assert overview.kinds == MAX_GROUPS + 5
    assert (
        f"The first {MAX_GROUPS} of {MAX_GROUPS + 5} groups"
        in room.client().get("/").text
    )


def test_account(room: Room, tmp_path: Path) -> None:
    """The account of audit files against the queue stands on its page."""
    room.send(*room.late(1))
    path = tmp_path / "audit.jsonl"
    path.touch()
    room.backend.files = (path,)
    client = room.client("viewer")
    assert "Not calculated yet" in client.get("/account").text
    post(client, "/account")
    room.wait()
    assert "1 dead letter do not add up" in client.get("/account").text.replace(
        "letters", "letter"
    )


class Flaky:
    """A broker that can be lost and come back: what stands before a letter box's answers.

    Args:
        room: whose letter box.
        after: answers before it is lost.
    """

    def __init__(self, room: Room, after: int) -> None:
        self.there, self.asked = threading.Event(), threading.Semaphore(0)
        self._box, self._left = room.backend.session.box, after
        self._browse = self._box.browse
        self._box.browse = self.browse  # type: ignore[method-assign]

    def browse(self, limit: int, /) -> Any:
        """Answer, or be out of reach."""
        if self._left or self.there.is_set():
            self._left -= 1
            return self._browse(limit)
        self.asked.release()
        raise Unavailable(Cause.DEAD_LETTER_UNAVAILABLE, "gone")

    def wait(self) -> None:
        """Wait until the broker was asked twice in vain, so that the backend knows."""
        for _ in range(2):
            assert self.asked.acquire(timeout=10)


def planned(room: Room, client: TestClient, act: str, **fields: Any) -> None:
    """Plan an act, and confirm it."""
    post(client, f"/act/{act}", **({"why": "x"} | fields))
    room.wait()
    post(client, "/confirm", job=room.backend.job.id)


def test_lost_broker_is_told_on_every_page_and_reading_goes_on_when_it_is_back(
    room: Room,
) -> None:
    """Out of reach: what was read before is shown, every page says since when; back, letters are read anew."""
    room.send(*room.late(2))
    client, flaky = room.client(), Flaky(room, 0)
    post(client, "/refresh")
    flaky.wait()
    for path in ("/", "/letters", "/job", f"/letter/{mark_of(room)}"):
        shown = client.get(path).text
        assert "Cannot reach the broker</strong> since 20" in shown
        assert "dead_letter_unavailable" in shown or path != "/job"
    assert "<strong>2 dead letters</strong> in 1 group" in client.get("/").text
    assert client.get("/job.json").json()["lost"] is True
    flaky.there.set()
    room.wait(10)
    assert "Cannot reach" not in client.get("/").text
    assert "All dead letters are read" in client.get("/job").text


def test_waiting_for_a_broker_can_be_cancelled(room: Room) -> None:
    """Whoever does not want to wait cancels the reading, and what was read before stays."""
    room.send(*room.late(2))
    client, flaky = room.client(), Flaky(room, 0)
    post(client, "/refresh")
    flaky.wait()
    post(client, "/cancel", job=room.backend.job.id)
    room.wait(10)
    assert "It failed: dead_letter_unavailable" in client.get("/job").text
    shown = client.get("/").text
    assert "<strong>2 dead letters</strong> in 1 group" in shown
    assert "Cannot reach" in shown


def test_account_of_an_act_is_shown_while_the_broker_is_lost(room: Room) -> None:
    """Where the broker is lost after an act, the page shows what became of each letter, and what is left later."""
    room.send(*room.late(2))
    client = room.client()
    flaky = Flaky(room, 2)  # the act's own pass, and its end
    planned(room, client, "discard")
    flaky.wait()
    shown = client.get("/job").text
    assert "2 of 2 dead letters</strong> discarded" in shown
    assert "Cannot reach" in shown
    assert "data-live" in client.get("/").text, (
        "the groups are from before the act, and the page says nothing new"
    )
    flaky.there.set()
    room.wait(10)
    assert "No dead letters" in client.get("/").text
    assert "data-live" not in client.get("/").text


def test_first_page_comes_while_letters_are_read(room: Room) -> None:
    """After the first letters the page shows their groups, that these are not all, and of how many."""
    room.send(*room.late(MANY))
    client, gate = room.client(), Gate(room)
    room.backend.letters.stale = True  # as after an act, and at the start
    post(client, "/refresh")
    gate.wait()
    shown = client.get("/").text
    assert f"<strong>{BATCH} dead letters</strong> in 1 group" in shown
    assert f"Not all yet: reading goes on, {BATCH} of about {MANY} dead letters" in shown
    assert "data-live" in shown
    assert (
        f"Reading dead letters: {BATCH} of {MANY} dead letters"
        in client.get("/letters").text
    )
    gate.open()
    room.wait(10)
    shown = client.get("/").text
    assert f"<strong>{MANY} dead letters</strong> in 1 group" in shown
    assert "Not all" not in shown


@pytest.mark.parametrize("stale", [False, True], ids=["read anew", "first reading"])
def test_a_cancelled_reading_says_what_it_has(room: Room, stale: bool) -> None:
    """An index that holds is kept until the new one is whole; of a first one what was read is shown as part."""
    room.send(*room.late(MANY))
    client, gate = room.client(), Gate(room)
    room.backend.letters.stale = stale
    post(client, "/refresh")
    gate.wait()
    whole = f"<strong>{MANY} dead letters</strong> in 1 group"
    assert (whole in client.get("/").text) is not stale
    post(client, "/cancel", job=room.backend.job.id)
    gate.open()
    room.wait(10)
    assert (
        f"Cancelled after <strong>{2 * BATCH} of {MANY} dead letters"
        in client.get("/job").text
    )
    part = f"Not all: reading ended early, {2 * BATCH} of about {MANY} dead letters"
    assert (part if stale else whole) in client.get("/").text
    room.read()
    assert "Not all" not in client.get("/").text


@pytest.mark.parametrize(
    ("path", "said"),
    [("/judge", "0 of these would pass now"), ("/act/redrive", "Nothing was done")],
)
def test_judging_and_rehearsing_are_cancelled(room: Room, path: str, said: str) -> None:
    """They tell how far they are, stop before the next letter, and a cancelled rehearsal cannot be confirmed."""
    room.send(*room.late(3))
    client, gate = room.client(), Gate(room, letters=True)
    post(client, path, why="x")
    gate.wait()
    assert client.get("/job.json").json()["total"] == 3
    assert "Cancel" in client.get("/job").text
    post(client, "/cancel", job=room.backend.job.id)
    gate.open()
    room.wait(10)
    shown = client.get("/job").text
    assert "Cancelled after <strong>1 of 3 dead letters" in shown
    assert said in shown
    assert 'id="confirm"' not in shown
    assert post(client, "/confirm", job=room.backend.job.id).status_code == 409


class Gate:
    """Holds a job after its first batch of letters, or in its first letter, until it is opened.

    Args:
        room: whose backend.
        letters: hold while a letter is judged, rather than while letters are read.
    """

    def __init__(self, room: Room, *, letters: bool = False) -> None:
        self._reached, self._opened, self._calls = threading.Event(), threading.Event(), 0
        target: Any = room.guard.verifier if letters else room.backend.session.box
        name, self._free = ("verify", 0) if letters else ("browse", 1)
        self._real = getattr(target, name)
        setattr(target, name, self)

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """Answer, once the gate is open."""
        self._calls += 1
        if self._calls > self._free:
            self._reached.set()
            assert self._opened.wait(10)
        return self._real(*arguments, **settings)

    def wait(self) -> None:
        """Wait until somebody stands before the gate."""
        assert self._reached.wait(10)

    def open(self) -> None:
        """Let everybody through."""
        self._opened.set()
