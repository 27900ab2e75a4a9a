"""The console's rows, queues, colours, audit trail and error pages, over letter boxes in memory."""

from __future__ import annotations

import html
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
from starlette.testclient import TestClient

from mqauth import AuditFile, ConfigurationError, KeySet, Reason
from mqauth.console import Backend, Tokens, application
from mqauth.console.display import body
from mqauth.letters.authorities import Authority, ReleaseAuthorities
from mqauth.review import ALL, Index
from mqauth.review import session as trails
from mqauth.testing import FakeClock, Forge
from tests.conftest import rabbitmq_message
from tests.test_console import (
    HOST,
    REVIEW,
    TOKENS,
    Room,
    bodies,
    csrf,
    mark_of,
    planned,
    post,
    room,
)

__all__ = ["room"]


# --- rows -------------------------------------------------------------------------------------------------


def marks(room: Room) -> list[str]:
    """Return the marks of all letters, in the order of the queue."""
    return [
        row.mark
        for row in room.backend.letters.ask(Index.page, [], ALL, after=0, limit=1000)
    ]


def test_an_act_takes_the_chosen_rows_and_no_others(room: Room) -> None:
    """Two of four letters are chosen on the list: the form says so, and only these two are discarded."""
    room.send(*room.late(4))
    chosen, client = marks(room)[1:3], room.client()
    assert client.get("/letters").text.count('type="checkbox"') == 4
    led = post(client, "/chosen", act="discard", marks=chosen)
    assert led.status_code == 303
    form = client.get(led.headers["location"]).text
    assert "Discard 2 dead letters" in form
    planned(
        room,
        client,
        "discard",
        marks=re.findall(r'name="marks" value="([0-9a-f]{64})"', form),
    )
    room.wait()
    assert len(marks(room)) == 2
    assert not set(chosen) & set(marks(room))


def test_the_chosen_rows_are_checked_again(room: Room) -> None:
    """*Check again* judges the chosen letters, and leads back to a list of these."""
    room.send(*room.late(3))
    client, chosen = room.client(), marks(room)[:2]
    led = post(client, "/chosen", act="judge", marks=chosen).headers["location"]
    room.wait()
    shown = client.get(led).text
    assert "0 of 2 dead letters" in shown
    back = re.search(r'href="(/letters\?marks=[^"]+)"', shown)
    assert bodies(client.get(html.unescape(back[1])).text) == chosen


def test_without_a_row_nothing_is_meant(room: Room) -> None:
    """A form in which no row was chosen leads back to its list, which says so. It must not mean all letters."""
    room.send(*room.late(2))
    client, job = room.client(), room.backend.job
    for act in ("judge", "redrive", "discard"):
        answer = post(client, "/chosen", act=act, reason="expired")
        assert answer.status_code == 303
        shown = client.get(answer.headers["location"])
        assert (shown.status_code, "Choose at least one" in shown.text) == (200, True)
        assert "<dt>reason</dt><dd>expired</dd>" in shown.text
    assert "Choose at least one" not in client.get("/letters").text
    assert room.backend.job is job


def test_only_what_the_consumer_lets_pass_is_offered(room: Room) -> None:
    """The form of a redrive offers what the configuration lets releases waive, and ticks what all letters need."""
    room.send(*room.late(2))
    authority = Authority(
        keys=KeySet([room.key]), waive=frozenset((Reason.EXPIRED, Reason.REPLAYED))
    )
    guard = Mock(verifier=Mock(release=ReleaseAuthorities({REVIEW: authority})))
    offered = re.compile(r'name="waive" value="(\w+)"( checked)?')
    with patch.object(room.backend.session, "guard", guard):
        for query in ({}, {"reason": "expired"}, {"marks": marks(room)[:1]}):
            form = room.client().get("/act/redrive", params=query).text
            assert offered.findall(form) == [("expired", " checked"), ("replayed", "")]
        nothing = room.client().get("/act/redrive", params={"reason": "replayed"}).text
        assert offered.findall(nothing) == [("expired", ""), ("replayed", "")]
        guard.verifier.release = ReleaseAuthorities(
            {REVIEW: Authority(keys=KeySet([room.key]))}
        )
        assert "lets no release waive anything" in room.client().get("/act/redrive").text


@pytest.mark.parametrize("marks_", [["x" * 64], ["00"], ["0" * 64] * 101, [""]])
def test_marks_are_read_strictly(room: Room, marks_: list[str]) -> None:
    """A mark that is none, or more of them than a page has, is refused."""
    assert post(room.client(), "/chosen", act="discard", marks=marks_).status_code == 400
    assert room.client().get("/letters", params={"marks": marks_}).status_code == 400


# --- several queues ---------------------------------------------------------------------------------------


class House:
    """Two rooms behind one console."""

    def __init__(self, clock: FakeClock, forge: Forge) -> None:
        self.rooms = {"shop": Room(clock, forge), "Abroad EU": Room(clock, forge)}

    @property
    def backends(self) -> dict[str, Backend]:
        """The backends by their names."""
        return {name: room.backend for name, room in self.rooms.items()}

    def client(self) -> TestClient:
        """Return a reviewer's browser."""
        served = application(
            self.backends, tokens=Tokens(TOKENS), hosts=[HOST], reviewer="ada"
        )
        client = TestClient(served, base_url=f"http://{HOST}", follow_redirects=False)
        client.post("/login", data={"token": TOKENS["reviewer"]})
        return client


@pytest.fixture
def house(clock: FakeClock, forge: Forge) -> Iterator[House]:
    """Two queues without letters."""
    made = House(clock, forge)
    yield made
    for backend in made.backends.values():
        backend.close()


def test_every_queue_has_pages_of_its_own(house: House) -> None:
    """The first page counts the letters of each queue, and every link of a queue's pages stays in that queue."""
    shop, abroad = house.rooms.values()
    shop.send(*shop.late(2))
    abroad.send(
        *abroad.late(1),
        rabbitmq_message(body=b"bare"),
        rabbitmq_message(body=b"bare too"),
    )
    client = house.client()
    first = client.get("/").text
    assert re.findall(r'class="open" href="([^"]+)"', first) == [
        "/at/shop/",
        "/at/abroad-eu/",
    ]
    counts = re.findall(r'<td class="number" data-label="Dead letters">([^<]+)', first)
    assert [count.strip() for count in counts] == ["2", "3"]
    mark = mark_of(abroad)
    for page in (
        "/",
        "/letters",
        f"/letter/{mark}",
        "/act/discard",
        "/job",
        "/account",
        "/letters?reason=none",
    ):
        shown = client.get(f"/at/abroad-eu{page}")
        assert shown.status_code == 200
        led = set(re.findall(r'(?:href|action)="(/[^"]*)"', shown.text))
        assert led
        assert all(
            path.startswith(("/at/abroad-eu/", "/static/", "/logout")) or path == "/"
            for path in led
        ), led
    assert client.get(f"/at/shop/letter/{mark}").status_code == 404
    assert (
        client.get("/letters").status_code
        == client.get("/at/nowhere/").status_code
        == 404
    )


def test_refresh_of_all_leaves_one_at_work_alone(house: House) -> None:
    """*Refresh* on the first page reads every queue again; a queue with a job of its own goes on with that."""
    shop, abroad = house.rooms.values()
    for one in (shop, abroad):
        one.send(*one.late(1))
    before, shop.backend.job.running = (shop.backend.job, abroad.backend.job), True
    client = house.client()
    assert client.post("/refresh", data={"csrf": csrf(client)}).headers["location"] == "/"
    abroad.wait()
    assert shop.backend.job is before[0]
    assert abroad.backend.job is not before[1]


@pytest.mark.parametrize("names", [("a", "A"), ("a b", "a-b"), ("?", "!"), ()])
def test_names_with_one_address_are_refused(room: Room, names: tuple[str, ...]) -> None:
    """Two names that would have the same address, or none at all, stop the start."""
    backends = dict.fromkeys(names, room.backend)
    with pytest.raises(ConfigurationError, match="a name of its own"):
        application(backends, tokens=Tokens(TOKENS), hosts=[HOST], reviewer="ada")


# --- bodies -----------------------------------------------------------------------------------------------


def test_a_key_twice_is_shown_as_text() -> None:
    """Of a key that is there twice readers may take either value: the text as it was sent shows both."""
    raw = b'{"x": {"a": 1}, "amount": 1000, "amount": 2}'
    assert "a key twice" in body(raw, "json").note
    assert (body(raw, "").form, body(raw, "").text) == ("text", raw.decode())


@pytest.mark.parametrize(
    "raw",
    [
        b"NaN",
        b'{"a": Infinity}',
        b"\xff\xfe1\x00",
        b"{'a': 1}",
        b"1 2",
        b"",
        b"\xef\xbb\xbf1",
    ],
)
def test_what_is_not_json_is_said_to_be_none(raw: bytes) -> None:
    """A text that only lenient readers take is no JSON, and by default it is shown as text."""
    assert body(raw, "json").note.startswith("This is not JSON")
    assert body(raw, "").form == "text"


def test_json_is_shown_first() -> None:
    """Without a choice JSON is indented; where numbers stand as they were sent is noted."""
    assert body(b'{"a":[1.5]}', "").text == '{\n  "a": [\n    1.5\n  ]\n}'
    assert body(b"0.1000000000000000055", "").note == "The text has numbers as sent."
    assert body(b"12345678901234567890123", "").text == "12345678901234567890123"


# --- errors -----------------------------------------------------------------------------------------------


def error_of(page: str) -> str:
    """Return the id on a page of an error."""
    found = re.search(r"Error <code>([0-9a-f]{12})</code>", page)
    return found[1]


def test_an_error_page_has_an_id_that_the_log_has(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    """A page that is refused names an id, and so does the line of the log."""
    caplog.set_level(logging.INFO, "mqauth.console")
    shown = room.client().get("/nothing")
    assert shown.status_code == 404
    (line,) = [
        record
        for record in caplog.records
        if getattr(record, "event", "") == "console.refused"
    ]
    assert error_of(shown.text) == vars(line)["error_id"]


def test_a_fault_is_a_page_with_an_id(
    room: Room, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a page raises, people see an id and no traceback; the log has both, and every header is there."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret-42")

    monkeypatch.setattr("mqauth.console.pages.order_of", broken)
    shown = room.client().get("/")
    assert shown.status_code == 500
    assert "content-security-policy" in shown.headers
    assert "ZeroDivisionError" not in shown.text
    assert "secret-42" not in shown.text
    (line,) = [
        record
        for record in caplog.records
        if getattr(record, "event", "") == "console.page_failed"
    ]
    assert error_of(shown.text) == vars(line)["error_id"]
    assert "broken" in str(line.exc_text)


# --- audit ------------------------------------------------------------------------------------------------


def on_record(room: Room, path: Path, count: int = 1) -> None:
    """Make letters whose rejections stand in an audit file."""
    with AuditFile(path) as sink:
        room.guard.audit = sink
        room.send(*room.late(count))
    room.backend.files = (path,)


def test_a_broken_chain_is_told(room: Room, tmp_path: Path) -> None:
    """A record that follows one that was edited is shown as broken; one before it is not."""
    path = tmp_path / "audit.jsonl"
    on_record(room, path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"rejected", b"accepted") + lines[2])
    client, found = room.client(), marks(room)
    assert "unbroken" in client.get(f"/letter/{found[0]}/audit").text
    assert ">broken<" in client.get(f"/letter/{found[2]}/audit").text


def test_a_forged_letter_has_no_record(room: Room, tmp_path: Path) -> None:
    """A letter that nobody rejected is said to be on no record."""
    on_record(room, tmp_path / "audit.jsonl")
    taken = room.broker.take(room.backend.session.box.name)
    forged = getattr(taken, "message", taken)
    room.broker.publish(replace(forged, headers=(("mqauth-dead-id", "0" * 64),)))
    room.read()
    assert "No audit record" in room.client().get(f"/letter/{mark_of(room)}/audit").text


def test_rotated_parts_belong_to_the_chain(room: Room, tmp_path: Path) -> None:
    """A record in a file that was rotated is found, and the chain goes on from part to part."""
    path = tmp_path / "audit.jsonl"
    on_record(room, path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.with_name("audit.jsonl.000001").write_bytes(b"".join(lines[:2]))
    path.write_bytes(lines[2])
    for at, (mark, name) in enumerate(
        zip(
            marks(room),
            ["audit.jsonl.000001", "audit.jsonl.000001", "audit.jsonl"],
            strict=True,
        )
    ):
        shown = room.client().get(f"/letter/{mark}/audit").text
        assert ">unbroken<" in shown
        assert f"Line {at % 2 + 1} of <code>{tmp_path / name}<" in shown


def test_large_files_are_for_the_command(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that would keep people waiting are not read: the page names the command that does."""
    on_record(room, tmp_path / "audit.jsonl")
    monkeypatch.setattr(trails, "LARGEST_FILES", 10)
    shown = room.client().get(f"/letter/{mark_of(room)}/audit")
    assert shown.status_code == 400
    assert "mqauth audit show" in html.unescape(shown.text)


def test_the_balance_says_as_of_when(
    room: Room, clock: FakeClock, tmp_path: Path
) -> None:
    """The balance names the moment of the queue, and a rejection after that is not missing."""
    path = tmp_path / "audit.jsonl"
    on_record(room, path, 2)
    client = room.client()
    post(client, "/account")
    room.wait()
    ledger = room.backend.ledger
    assert ledger.difference == 0
    assert (
        f"As of {client.get('/').text.split('as of ')[1][:16]}"
        in client.get("/account").text
    )
    later = json.loads(path.read_bytes().splitlines()[0]) | {
        "dead_letter": "f" * 64,
        "time": "2999-01-01T00:00:00.000Z",
    }
    path.write_bytes(path.read_bytes() + json.dumps(later).encode() + b"\n")
    post(client, "/account")
    room.wait()
    assert (room.backend.ledger.rejected, room.backend.ledger.difference) == (2, 0)


def test_the_balance_counts_the_letters_of_all_queues(
    house: House, tmp_path: Path
) -> None:
    """Audit files name the rejections of two queues: a letter in the other queue is open, and not missing."""
    shop, abroad = house.rooms.values()
    house.client()
    for name, one in house.rooms.items():
        on_record(one, tmp_path / f"{name}.jsonl", 2)
    shop.backend.files = (*shop.backend.files, *abroad.backend.files)
    shop.backend.account("ada")
    shop.wait()
    assert (shop.backend.ledger.open, shop.backend.ledger.difference) == (4, 0)
