"""The dead letter: nothing lost, nothing live, and always a form that fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mqauth.errors import Reason, Rejection
from mqauth.letters.dead_letter import DeadLetter, letter_id
from mqauth.wire.message import Message, Origin

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


def test_the_token_is_moved_so_that_nothing_takes_the_letter_for_a_message(kafka: Maker) -> None:
    """The token's header has another name on a letter; its value is the same."""
    message = kafka(headers=(("mqauth-token", b"t"), ("a", b"1")))
    assert letter(message).whole(all_kept).headers[:2] == (("mqauth-dead-token", b"t"), ("a", b"1"))


def test_what_would_act_on_its_own_is_kept_as_metadata(rabbit: Maker) -> None:
    """user-id, expiration, reply-to, CC, BCC and x-delay are never live on a letter."""
    properties = {
        "user-id": "u", "expiration": "1", "reply-to": "r", "message-id": "m", "content-type": "a", "priority": "3"
    }  # fmt: skip
    headers = (("CC", ("a",)), ("BCC", ("b",)), ("x-delay", 5), ("reply-to", "q"), ("cc", "ordinary"))
    found = letter(rabbit(properties=properties, headers=headers)).whole(all_kept)
    assert found.properties == {"content-type": "a", "priority": "3"}
    assert [name for name, _ in found.headers if not name.startswith("mqauth-dead-")] == ["cc"]
    kept = json.loads(lineage(found)["metadata"])
    assert kept["properties"] == {"user-id": "u", "expiration": "1", "reply-to": "r", "message-id": "m"}
    assert [name for name, _ in kept["headers"]] == ["CC", "BCC", "x-delay", "reply-to"]


def test_headers_of_our_names_are_the_attackers(rabbit: Maker) -> None:
    """A message that brings mqauth-dead-* headers has them stripped, in any case, and counted."""
    message = rabbit(headers=(("mqauth-dead-reason", "lie"), ("MQAUTH-Dead-Audit", "lie"), ("a", 1)))
    found = letter(message).whole(all_kept)
    assert "lie" not in repr(found.headers)
    assert json.loads(lineage(found)["metadata"])["stripped"] == 2


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
def test_any_message_a_broker_took_has_a_letter_that_fits(changes: dict[str, Any], kafka: Maker) -> None:
    """A message nearly as large as its broker's limit has a form within it: one such message must not stall."""
    limit = size(kafka(**changes))
    found = next(letter(kafka(**changes)).forms(all_kept, lambda form: size(form) <= limit))
    assert lineage(found)["form"] == "reference"


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


def test_the_id_tells_everything_else_apart(kafka: Maker) -> None:
    """Another scope, place, body, key, property, header or destination is another letter."""
    changed = [
        kafka(), kafka(offset=1), kafka(body=b""), kafka(body=None), kafka(key=None), kafka(key=b""),
        kafka(headers=()),
        kafka(destination="kafka:orders2"), kafka(headers=(*kafka().headers, ("a", None))),
        kafka(properties={"type": "x"}), kafka(headers=kafka().headers[::-1]), kafka(headers=(("a", object()),)),
    ]  # fmt: skip
    ids = {letter_id(message, "s") for message in changed} | {letter_id(kafka(), "other")}
    assert len(ids) == len(changed) + 1


@pytest.mark.parametrize(
    "changes",
    [{"properties": {"type": "\ud800", "reply-to": "\ud800"}}, {"headers": (("\ud800", 1),)},
     {"headers": (("a", {"\ud800": 1}),)}, {"headers": (("a", 10**5000),)}, {"headers": (("a", {1: 2}),)},
     {"origin": Origin(queue="\ud800")}],
    ids=lambda value: next(iter(value)),
)  # fmt: skip
def test_whatever_an_adapter_hands_over_can_be_buried(changes: dict[str, Any], rabbit: Maker) -> None:
    """No header, property or place makes a letter's id, digest or lineage raise."""
    found = letter(rabbit(**changes))
    assert len(found.id) == 64
    whole = found.whole(lambda name, value: False)
    assert all(str(value).encode() for name, value in whole.headers if name.startswith("mqauth-dead-"))
    assert found.in_body().body


def test_the_letter_shows_nothing_of_the_message(kafka: Maker) -> None:
    """A letter can be logged."""
    assert "hello" not in repr(letter(kafka()))


def test_a_letter_is_no_message(kafka: Maker, forge: Any) -> None:
    """A letter is still dead: its token is not in place, and a consumer says token_missing."""
    sealed = forge.seal(kafka())
    with pytest.raises(Rejection) as caught:
        forge.verifier().open(letter(sealed).whole(all_kept))
    assert caught.value.reason is Reason.TOKEN_MISSING
