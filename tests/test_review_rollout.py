"""Letters of messages that a handler got without a proof go back plain, and only while such messages pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mqauth import RejectNow, Verdict, flow
from mqauth.judging.rollout import EVERYWHERE, Rollout, Rung
from mqauth.letters.dead_letter import PREFIX
from mqauth.letters.release import RELEASE_HEADER, WAIVABLE
from mqauth.review import ALL, judge
from mqauth.testing import FakeClock, Forge
from mqauth.wire.message import TOKEN_HEADER
from tests.conftest import KAFKA, RABBITMQ
from tests.test_review import SCHEMA, Bureau
from tests.test_rollout import at


class Climber(Bureau):
    """A bureau whose consumer is on a rung, with an old handler that gives up while told to."""

    def __init__(
        self, clock: FakeClock, forge: Forge, place: str, rollout: Rollout
    ) -> None:
        super().__init__(clock, forge, place)
        self.old: list[Any] = []
        self.gives_up = True
        self.climb(rollout)

    def climb(self, rollout: Rollout | None) -> None:
        """Start the consumer anew on another rung."""
        self.guard = self.pipeline(rollout=rollout)
        self.unverified = self.take if rollout else None

    def take(self, message: Any) -> None:
        """Take an unverified message, or give up on it."""
        if self.gives_up:
            raise RejectNow("never")
        self.old.append(message)


@pytest.fixture(params=[KAFKA, RABBITMQ], ids=["kafka", "rabbitmq"])
def desk(request: pytest.FixtureRequest, clock: FakeClock, forge: Forge) -> Climber:
    """A consumer at ``observe`` that gave up on one unsigned message."""
    made = Climber(clock, forge, request.param, at(Rung.OBSERVE))
    assert made.send(made.message()) == [Verdict.REJECTED]
    return made


@pytest.mark.parametrize("rung", [Rung.OBSERVE, Rung.OFF])
def test_it_goes_back_plain(rung: Rung, desk: Climber) -> None:
    """Without a release, to the old handler alone; the record says the rung and no release."""
    desk.climb(at(rung))
    desk.gives_up = False
    account = desk.redrive()
    (message,) = desk.broker.waiting(desk.place)
    assert RELEASE_HEADER not in dict(message.headers)
    assert desk.send() == [Verdict.UNVERIFIED]
    assert (account["done"], desk.old[0].body, desk.handled) == (1, b"hello", [])
    act = next(record for record in desk.audit if record["verdict"] == "redriven")
    assert (act["review"]["rung"], "release" in act["review"]) == ("observe", False)
    assert list(SCHEMA.iter_errors(act)) == []


def test_a_forged_letter_leads_nowhere_that_is_not_listed(desk: Climber) -> None:
    """An entry for all destinations sends no letter back plain: whoever forged it chose the destination."""
    desk.climb(at(Rung.OBSERVE, EVERYWHERE))
    assert desk.redrive()["refused"] == {"enforced": 1}


def test_what_goes_back_plain_is_not_sent_elsewhere_too(
    clock: FakeClock, forge: Forge
) -> None:
    """Headers that make the broker copy or delay it go, even if a token that nobody verified covers them."""
    desk = Climber(clock, forge, RABBITMQ, at(Rung.OBSERVE))
    routing = {"CC": ("payments",), "BCC": ("payments",), "x-delay": 5}
    forged = forge.seal(
        replace(desk.message(), headers=tuple(routing.items())), signature=bytes(64)
    )
    assert desk.send(forged) == [Verdict.REJECTED]
    assert desk.redrive()["done"] == 1
    (message,) = desk.broker.waiting(desk.place)
    assert [name for name, _ in message.headers] == [TOKEN_HEADER]


def test_a_letter_that_lost_its_rung_is_no_way_around(desk: Climber) -> None:
    """Without the header it is a letter like any other, and an unsigned message is never released."""
    (letter,) = desk.broker.waiting(desk.dead)
    desk.discard()
    kept = tuple(pair for pair in letter.headers if pair[0] != f"{PREFIX}rung")
    desk.plant(replace(letter, headers=kept))
    assert desk.redrive(ALL, *WAIVABLE)["refused"] == {"token_missing": 1}


def test_todays_verdict_says_unverified(desk: Climber) -> None:
    """Below ``enforce`` it would be handled so again; later it is the verifier's verdict."""
    for rollout, word in ((at(Rung.OBSERVE), "unverified"), (None, "token_missing")):
        desk.climb(rollout)
        with desk.survey() as index:
            assert flow.run(judge(index, desk.guard)) == {word: 1}
