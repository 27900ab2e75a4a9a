"""The dead letter: nothing lost, nothing live, and always a form that fits."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from mqauth import Message, Origin, Reason, Rejection
from mqauth.brokers.log.records import record_message
from mqauth.letters import dead_letter as deadletter
from mqauth.letters.dead_letter import MAX_HEADERS, DeadLetter, content_digest, letter_id

Maker = Callable[..., Message]


def letter(message: Message, detail: str = "late\x1b") -> DeadLetter:
    """Return the letter of a message rejected now."""
    return DeadLetter(
        message=message,
        rejection=Rejection(Reason.EXPIRED, detail),
        scope="billing",
        time=1_900_000_000.0,
        audit="id-1",
    )


def all_kept(name: str, value: object) -> bool:
    """Tell that the client carries everything."""
    return True


def lineage(message: Message) -> dict[str, Any]:
    """Return our headers on a letter."""
    return {
        name.removeprefix("mqauth-dead-"): value
        for name, value in message.headers
        if name.startswith("mqauth-dead-")
    }


def test_what_the_client_cannot_send_is_kept_in_the_json_form(rabbit: Maker) -> None:
    """A value the client refuses becomes metadata without losing its type."""
    found = letter(rabbit(headers=(("raw", b"\xff"), ("a", 1)))).whole(
        lambda name, value: not isinstance(value, bytes)
    )
    assert json.loads(lineage(found)["metadata"])["headers"] == [["raw", {"b64": "/w=="}]]


def size(message: Message) -> int:
    """Return about how many bytes a broker counts."""
    headers = sum(len(name) + len(str(value)) for name, value in message.headers)
    return len(message.body or b"") + len(message.key or b"") + headers


@pytest.mark.parametrize(
    "changes",
    [{"key": b"k" * 1_000_000}, {"body": b"b" * 1_000_000},
     {"headers": tuple((f"h{number}", b"x" * 90) for number in range(9_000))},
     {"headers": (("mqauth-token", b"x" * 900_000),)}],
    ids=["key", "body", "headers", "token"],
)  # fmt: skip
def test_any_message_a_broker_took_has_a_letter_that_fits(
    changes: dict[str, Any], kafka: Maker
) -> None:
    """A message nearly as large as its broker's limit has a form within it: one such message must not stall."""
    limit = size(kafka(**changes))
    found = next(
        letter(kafka(**changes)).forms(all_kept, lambda form: size(form) <= limit)
    )
    assert lineage(found)["form"] == "reference"


def test_forms_come_best_first_and_only_when_asked_for(
    kafka: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A letter that fits whole is never written as JSON."""
    monkeypatch.setattr(
        deadletter.json_form, "to_form", lambda message: pytest.fail("made without need")
    )
    found = letter(kafka())
    assert next(found.forms(all_kept, lambda form: True)).body == b"hello"


@pytest.mark.parametrize("headers", [1, MAX_HEADERS + 1])
def test_a_letter_that_may_not_be_a_reference_has_no_such_form(
    headers: int, kafka: Maker
) -> None:
    """With ``stop`` a message is dead-lettered with all it holds or not at all, however many headers it has."""
    found = letter(kafka(headers=(("a", b"x"),) * headers))
    forms = found.forms(all_kept, lambda form: True, "stop")
    assert [lineage(form).get("form") for form in forms] == (
        [None, "json"] if headers == 1 else []
    )


BROKER_WRITTEN = (
    ("x-death", ()), ("x-delivery-count", 3), ("x-acquired-count", 4), ("x-first-death-queue", "q"),
    ("x-opt-a", 1),
)  # fmt: skip


def test_the_id_is_the_same_for_a_copy_after_a_crash(kafka: Maker, rabbit: Maker) -> None:
    """What a broker writes anew with each delivery names no content; nor do redelivery and receipt."""
    assert letter_id(rabbit(headers=(("a", 1), *BROKER_WRITTEN)), "s") == letter_id(
        rabbit(headers=(("a", 1),)), "s"
    )
    redelivered = rabbit(origin=replace(rabbit().origin, redelivered=True))
    assert letter_id(redelivered, "s") == letter_id(rabbit(), "s")


def test_the_source_of_the_longest_topic_is_whole(kafka: Maker) -> None:
    """A topic of 249 characters, with the ids of cluster and topic, is named to its end in the lineage."""
    origin = Origin(
        topic="t" * 249,
        partition=2**31 - 1,
        offset=2**63 - 1,
        cluster="c" * 22,
        topic_id="i" * 22,
    )
    assert (
        lineage(letter(kafka(origin=origin)).whole(all_kept))["source"] == origin.source
    )


@pytest.mark.parametrize("depth", [33, 500, 2_000, 100_000])
def test_a_bottomless_header_is_buried_like_any_other(depth: int, rabbit: Maker) -> None:
    """Deep tables, which would recurse into a crash, have digest, id and every form."""
    value: Any = "x"
    for _ in range(depth):
        value = {"a": (value,)}
    found = letter(rabbit(headers=(("deep", value),)))
    assert len(found.id) == len(found.digest) == 64
    assert next(found.forms(lambda name, value: False, lambda form: True))
    assert len(found.in_body().body or b"") < 10_000
    assert found.reference()


@pytest.mark.parametrize(
    "changes",
    [{"properties": {"type": "\ud800", "reply-to": "\ud800"}}, {"headers": (("\ud800", 1),)},
     {"headers": (("a", {"\ud800": 1}),)}, {"headers": (("a", 10**5000),)}, {"headers": (("a", {1: 2}),)},
     {"origin": Origin(queue="\ud800")}],
    ids=lambda value: next(iter(value)),
)  # fmt: skip
def test_whatever_an_adapter_hands_over_can_be_buried(
    changes: dict[str, Any], rabbit: Maker
) -> None:
    """No header, property or place makes a letter's id, digest or lineage raise."""
    found = letter(rabbit(**changes))
    assert len(found.id) == 64
    whole = found.whole(lambda name, value: False)
    assert all(
        str(value).encode()
        for name, value in whole.headers
        if name.startswith("mqauth-dead-")
    )
    assert found.in_body().body
    assert found.reference().body


@pytest.mark.parametrize("count", [MAX_HEADERS, MAX_HEADERS + 1])
def test_a_message_of_very_many_headers_has_only_a_reference(
    count: int, kafka: Maker
) -> None:
    """Up to 1,000 headers every form of the letter is made; beyond it only the reference."""
    found = letter(kafka(headers=tuple((f"{number}", b"") for number in range(count))))
    forms = list(found.forms(all_kept, lambda form: True))
    assert len(forms) == (3 if count == MAX_HEADERS else 1)
    assert forms[-1].body == found.reference().body


_MANY = 20_000


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param((("a", b""),) * _MANY, id="one name"),
        pytest.param(tuple((str(n), b"") for n in range(_MANY)), id="many names"),
        pytest.param((("a", None),) * _MANY, id="null"),
    ],
)
def test_a_record_of_very_many_headers_costs_no_calls_for_each(
    headers: tuple[tuple[str, bytes | None], ...], world: Any
) -> None:
    """Verdict, record and letter of a record of 20,000 headers call no function for each."""
    calls = 0

    def counted(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        # A loop that ends asks each task that tests before this one have left behind.
        room = frame.f_globals.get("__name__", "").partition(".")[0]
        calls += event == "call" and room not in ("asyncio", "_weakrefset")

    world.letters.publish.function = lambda letter: list(
        letter.forms(all_kept, lambda form: True)
    )
    record = SimpleNamespace(
        topic="orders", partition=0, offset=5, timestamp=1, timestamp_type=1, key=b"k", value=b"v", headers=headers
    )  # fmt: skip
    sys.setprofile(counted)
    try:
        outcome = world.process(record_message(record, "billing"))
    finally:
        sys.setprofile(None)
    assert outcome.dead_letter is not None
    assert calls < 2 * _MANY if len(set(headers)) > 1 else calls < _MANY // 10


def test_a_content_is_digested_once_for_a_delivery(
    world: Any, kafka: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record, the letter's id and each of its forms name one digest, which is made once."""
    made: list[Message] = []

    def counted(message: Message) -> str:
        made.append(message)
        return content_digest(message)

    for module in ("mqauth.letters.dead_letter", "mqauth.judging.delivery"):
        monkeypatch.setattr(f"{module}.content_digest", counted, raising=False)
    forms: list[Message] = []
    world.letters.publish.function = lambda letter: forms.extend(
        letter.forms(all_kept, lambda form: True)
    )
    outcome = world.process(kafka())
    assert (len(made), len(forms)) == (1, 3)
    assert {dict(form.headers)["mqauth-dead-id"] for form in forms} == {
        outcome.dead_letter
    }
    assert (
        world.records[0]["dead_letter"]
        == outcome.dead_letter
        == letter_id(kafka(), "default")
    )


def test_the_letter_shows_nothing_of_the_message(kafka: Maker) -> None:
    """A letter can be logged."""
    assert "hello" not in repr(letter(kafka()))
