"""The dead letter: nothing lost, nothing live, and always a form that fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mqauth.errors import Reason, Rejection
from mqauth.letters.dead_letter import DeadLetter
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
