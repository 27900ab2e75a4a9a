"""Whose fault an outage of keys is: the outcome names the issuer or the release authority, and no other party."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mqauth.delivery.log_work import EarlyClaims
from mqauth.errors import Cause, Reason, RetryLater, Unavailable
from mqauth.flow import run
from mqauth.judging.pipeline import Outcome, Verdict
from mqauth.letters.authorities import Authority, ReleaseAuthorities, Releaser
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing import FakeClock, Forge
from mqauth.testing.forge import ISSUER
from mqauth.wire.keys import Key, KeySet
from mqauth.wire.message import Origin
from tests.conftest import World, kafka_message

REVIEW = "https://review.example"
MakeWorld = Callable[..., World]


class Away:
    """Keys that are out of reach."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def key_set(self) -> KeySet:
        """Have no keys."""
        raise Unavailable(Cause.KEYS_UNAVAILABLE)

    def refresh(self, kid: str, received: float, /) -> KeySet:
        """Fail."""
        raise self._error


OUTAGES = [
    (Unavailable(Cause.KEY_PENDING, "not yet"), Cause.KEY_PENDING),
    (Unavailable(Cause.KEYS_UNAVAILABLE, "down"), Cause.KEYS_UNAVAILABLE),
    (OSError("down"), Cause.KEYS_UNAVAILABLE),
]


def deferred(outcome: Outcome) -> tuple[Cause | None, str | None]:
    """Return the cause and the party of a deferral."""
    assert outcome.verdict is Verdict.DEFERRED
    return outcome.cause, outcome.party


@pytest.mark.parametrize(("error", "cause"), OUTAGES)
def test_the_issuer_is_named(make_world: MakeWorld, forge: Forge, error: Exception, cause: Cause) -> None:
    """An outage of an issuer's keys names it, both when a message is processed and when it is only judged."""
    world = make_world(verifier=forge.verifier(keys={ISSUER: Away(error)}))
    assert deferred(world.process(world.sealed())) == (cause, ISSUER)
    assert deferred(world.run(world.pipeline.judge(world.receive(world.sealed())))) == (cause, ISSUER)


@pytest.mark.parametrize(("error", "cause"), OUTAGES)
def test_the_authority_is_named(
    make_world: MakeWorld, clock: FakeClock, forge: Forge, error: Exception, cause: Cause
) -> None:
    """An outage of a release authority's keys names the authority and not the producer's issuer."""
    authorities = ReleaseAuthorities({REVIEW: Authority(keys=Away(error))})
    world = make_world(verifier=forge.verifier(release=authorities))
    releaser = Releaser(key=Key.generate(), issuer=REVIEW, reviewer="ada", clock=clock)
    message, _ = releaser.release(world.sealed(), letter="0" * 64, scope="orders", reason="asked for")
    assert deferred(world.process(message)) == (cause, REVIEW)


class Counting(Away):
    """Keys that are out of reach, and how often somebody asked for them."""

    def __init__(self) -> None:
        super().__init__(OSError("down"))
        self.asked = 0

    def key_set(self) -> KeySet:
        """Count, and have none."""
        self.asked += 1
        return super().key_set()


UNSIGNED: list[tuple[dict[str, Any], Reason]] = [
    ({"signature": b"x"}, Reason.SIGNATURE_INVALID),
    ({"claims": {"iss": "https://evil.example"}}, Reason.ISSUER_UNTRUSTED),
    ({"header": {"kid": "nobody"}}, Reason.KEY_UNKNOWN),
    ({"header": {"alg": "ES256"}}, Reason.ALGORITHM_FORBIDDEN),
]


@pytest.mark.parametrize(("bends", "reason"), UNSIGNED)
def test_without_a_good_token_no_authority_is_asked(
    make_world: MakeWorld, clock: FakeClock, forge: Forge, bends: dict[str, Any], reason: Reason
) -> None:
    """A message that no producer signed is rejected while the authority is out of reach, which nobody asks."""
    away = Counting()
    world = make_world(verifier=forge.verifier(release=ReleaseAuthorities({REVIEW: Authority(keys=away)})))
    releaser = Releaser(key=Key.generate(), issuer=REVIEW, reviewer="ada", clock=clock)
    message, _ = releaser.release(world.sealed(**bends), letter="0" * 64, scope="orders", reason="hostile")
    outcome = world.process(message)
    assert (outcome.verdict, outcome.reason, away.asked) == (Verdict.REJECTED, reason, 0)


def test_an_authority_is_asked_for_a_retired_keys_message(
    make_world: MakeWorld, clock: FakeClock, forge: Forge
) -> None:
    """``key_expired`` can be waived, so that a retired key's signature is enough to look at the release."""
    authorities = ReleaseAuthorities({REVIEW: Authority(keys=Away(OSError("down")))})
    world = make_world(verifier=forge.verifier(release=authorities))
    releaser = Releaser(key=Key.generate(), issuer=REVIEW, reviewer="ada", clock=clock)
    message, _ = releaser.release(
        world.sealed(key=forge.retired), letter="0" * 64, scope="orders", reason="asked for"
    )
    assert deferred(world.process(message)) == (Cause.KEYS_UNAVAILABLE, REVIEW)


@pytest.mark.parametrize("plug", ["policy.decide", "store.claim", "store.confirm"])
def test_what_is_everybodys_names_nobody(world: World, plug: str) -> None:
    """An outage of policy or store is no party's."""
    owner, name = plug.split(".")
    getattr(getattr(world, owner), name).failure = OSError("down")
    assert world.process(world.sealed()).party is None


def test_a_handler_that_waits_names_nobody(world: World) -> None:
    """A handler that asks for another time is no party's."""
    world.handler.failure = RetryLater()
    assert deferred(world.process(world.sealed())) == (Cause.HANDLER_DEFERRED, None)


def test_it_is_named_behind_a_batch_that_was_judged_ahead(clock: FakeClock, forge: Forge) -> None:
    """A message that could not be judged ahead is deferred in its turn, and names its issuer then."""
    away = forge.verifier(keys={ISSUER: Away(OSError("down"))})
    world = World(clock, forge, verifier=away, replay=MemoryReplayStore(clock=clock))
    origins = [Origin(topic="orders", partition=0, offset=at) for at in range(3)]
    deliveries = [world.receive(world.sealed(replace(kafka_message(), origin=each))) for each in origins]
    run(EarlyClaims(world.pipeline).judge_ahead(deliveries))
    outcomes: list[Any] = [deferred(world.process(each)) for each in deliveries]
    assert outcomes == [(Cause.KEYS_UNAVAILABLE, ISSUER)] * 3
