"""Lineage: it grows with each redrive, stays bounded, and nobody but a release authority adds to it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from mqauth import Key, Message, Reason, RejectNow, Verdict, flow
from mqauth.letters.authorities import Releaser
from mqauth.letters.dead_letter import PREFIX
from mqauth.letters.release import (
    MAX_HOPS,
    RELEASE_HEADER,
    Hop,
    Past,
    open_release,
)
from mqauth.review import Filter, Letter, judge, read
from mqauth.testing import FakeClock, Forge
from tests.conftest import KAFKA, RABBITMQ
from tests.test_review import Bureau, lying

HOP = Hop(letter="a" * 64, reason=Reason.EXPIRED, time=1)


class Refusing(list[Any]):
    """A handler that refuses every message for good."""

    def append(self, verified: Any) -> None:
        """Refuse."""
        raise RejectNow("no such order")


@pytest.fixture(params=[RABBITMQ, KAFKA], ids=["rabbitmq", "kafka"])
def bureau(request: pytest.FixtureRequest, clock: FakeClock, forge: Forge) -> Bureau:
    """A bureau whose consumer's handler refuses."""
    found = Bureau(clock, forge, request.param)
    found.handled = Refusing()
    return found


def lines(letter: Message) -> dict[str, Any]:
    """Return what a letter tells of those before it."""
    found = {name: value for name, value in letter.headers if name.startswith(PREFIX)}
    return {
        "count": int(found[f"{PREFIX}count"]),
        "history": json.loads(found[f"{PREFIX}history"]),
    }


def rejected(bureau: Bureau, *messages: Message) -> Message:
    """Send messages, each of which is rejected, and return the newest letter."""
    assert set(bureau.send(*messages)) == {Verdict.REJECTED}
    return bureau.letters()[-1]


def test_count_and_history_grow_with_each_redrive_and_stay_bounded(
    bureau: Bureau,
) -> None:
    """Twelve times refused and redriven: thirteen counted, the newest eight told, oldest first."""
    letter, ids = rejected(bureau, bureau.forge.seal(bureau.message())), []
    for number in range(12):
        found = read(Letter(message=letter))
        assert (lines(letter)["count"], found.count) == (number + 1, number + 1)
        assert [hop["id"] for hop in found.history] == ids[-MAX_HOPS:]
        ids.append(found.id)
        bureau.clock.advance(1)
        assert bureau.redrive()["done"] == 1
        letter = rejected(bureau)
    assert lines(letter)["count"] == 13
    assert {hop["reason"] for hop in lines(letter)["history"]} == {"handler_failed"}
    assert len({hop["released"] for hop in lines(letter)["history"]}) == MAX_HOPS
    assert len(set(ids)) == 12


def test_a_release_of_somebody_elses_adds_nothing(bureau: Bureau) -> None:
    """A release of no authority of ours, whatever past it tells, neither counts nor is believed later."""
    stranger = Releaser(
        key=Key.generate(subjects=["ada"]),
        issuer=bureau.releaser.issuer,
        reviewer="ada",
        clock=bureau.clock,
    )
    past = Past(count=50, hops=(HOP,))
    sealed = bureau.forge.seal(bureau.message())
    forged, _ = stranger.release(
        sealed, letter="b" * 64, scope="billing", reason="x", past=past
    )
    letter = rejected(bureau, forged)
    assert lines(letter) == {"count": 1, "history": []}
    assert read(Letter(message=letter)).reason == "release_invalid"
    assert bureau.redrive()["done"] == 1
    (sent,) = bureau.broker.waiting(bureau.place)
    assert open_release(sent).release.past == Past(
        count=1, hops=(Hop(letter=read(Letter(message=letter)).id, reason=Reason.RELEASE_INVALID,
                           time=int(bureau.clock.now())),)
    )  # fmt: skip


def test_a_release_of_another_message_adds_nothing(bureau: Bureau) -> None:
    """Our own release moved to another message does not lend it its past."""
    other = bureau.forge.seal(bureau.message(b"other"))
    past = Past(count=50, hops=(HOP,))
    good, _ = bureau.releaser.release(
        other, letter="b" * 64, scope="billing", reason="x", past=past
    )
    release = next(pair for pair in good.headers if pair[0] == RELEASE_HEADER)
    sealed = bureau.forge.seal(bureau.message())
    letter = rejected(bureau, replace(sealed, headers=(*sealed.headers, release)))
    assert lines(letter) == {"count": 1, "history": []}
    assert bureau.redrive()["done"] == 1
    assert lines(rejected(bureau))["count"] == 2


def test_what_a_letter_says_is_not_signed(bureau: Bureau) -> None:
    """Who writes to the dead-letter queue may edit count and history; the release tells of this letter only."""
    letter = rejected(bureau, bureau.forge.seal(bureau.message()))
    bureau.discard()
    told = json.dumps([{"id": "x", "reason": "y", "released": "z"}])
    bureau.plant(lying(letter, count="500", history=told))
    with bureau.survey() as index:
        shown = index.reading(index.page()[0].number).as_dict()
    assert (shown["count"], shown["history"]) == (
        500,
        [{"id": "x", "reason": "y", "released": "z"}],
    )
    assert bureau.redrive()["done"] == 1
    assert lines(rejected(bureau))["count"] == 2


@pytest.mark.parametrize(
    "told",
    [
        "",
        "x",
        "{}",
        "[1]",
        "[[]]",
        '[{"id": 1}]',
        "[" * 200,
        json.dumps([{}] * 9),
        "\ud800",
        '[{"id": "\\u001b"}]',
    ],
)
def test_any_history_can_be_read(told: str, bureau: Bureau) -> None:
    """Whatever stands there, it is shown harmless or not at all."""
    letter = rejected(bureau, bureau.forge.seal(bureau.message()))
    found = read(Letter(message=lying(letter, count=told, history=told)))
    assert found.intact
    assert found.count == 1
    assert all("\x1b" not in text for hop in found.history for text in hop.values())


def test_a_release_without_a_past_counts_its_letter(bureau: Bureau) -> None:
    """A reviewer's tool that tells no past: two letters, of the first the release's own word."""
    sealed = bureau.forge.seal(bureau.message())
    released, release = bureau.releaser.release(
        sealed, letter="b" * 64, scope="billing", reason="x"
    )
    assert release.past is None
    found = lines(rejected(bureau, released))
    assert found["count"] == 2
    assert [(hop["id"], hop["reason"]) for hop in found["history"]] == [("b" * 64, None)]


def test_a_past_that_does_not_fit_is_counted(bureau: Bureau) -> None:
    """Where the release would be too large its hops are left out, the number never."""
    headers = tuple((f"header-{number:03}-{'x' * 16}", "v") for number in range(160))
    if bureau.place == KAFKA:
        headers = tuple((name, value.encode()) for name, value in headers)  # type: ignore[assignment]
    sealed = bureau.forge.seal(replace(bureau.message(), headers=headers))
    past = Past(count=9, hops=(HOP,) * MAX_HOPS)
    _, release = bureau.releaser.release(
        sealed, letter="b" * 64, scope="billing", reason="x", past=past
    )
    assert release.past == Past(count=9)


def test_a_spent_release_does_not_stand_in_the_way_of_a_verdict(bureau: Bureau) -> None:
    """A letter of a redriven message is judged without the release it came with, now expired."""
    rejected(bureau, bureau.forge.seal(bureau.message()))
    assert bureau.redrive()["done"] == 1
    rejected(bureau)
    bureau.clock.advance(30)
    with bureau.survey() as index:
        assert flow.run(judge(index, bureau.guard, Filter())) == {"accepted": 1}
        bureau.clock.advance(7200)
        assert flow.run(judge(index, bureau.guard, Filter())) == {"expired": 1}
