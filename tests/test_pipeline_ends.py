"""Whatever fails on its way, a message comes to the same end, first of its kind or later, begun or run."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from mqauth import Cause, Key, Message, Reason, RejectNow, RetryLater, Unavailable, flow
from mqauth.flow import ColourError
from mqauth.judging.pipeline import Delivery, Outcome, Step, Verdict
from mqauth.letters.authorities import Authority, ReleaseAuthorities, Releaser
from mqauth.replay.rules import ClaimStatus
from mqauth.testing import FakeClock, Forge
from tests.conftest import KAFKA, RABBITMQ, World, away, kafka_message

DOWN = OSError("the world is down")
MakeWorld = Callable[..., World]


class BegunWorld(World):
    """A world whose deliveries are begun on the spot, and gone on with where they wait."""

    waited = 0

    def run(self, wish: flow.Flow[Any]) -> Any:
        """Run a flow."""
        found = flow.begin(wish)
        if not isinstance(found, flow.Waiting):
            return found
        self.waited += 1
        return asyncio.run(flow.resume(found))


@dataclass
class Course:
    """What happened on the way to an end."""

    outcomes: list[tuple[Any, ...]]
    handled: int
    steps: list[Step]
    reasons: list[str]
    published: int
    released: int


def message(world: World, number: int, **changes: Any) -> Message:
    """Return an honest message of one form, at an offset of its own."""
    return world.sealed(replace(kafka_message(number), body=b"%d" % number, **changes))


def told(outcome: Outcome) -> tuple[Any, ...]:
    """Return what an outcome says."""
    body = None if outcome.verified is None else outcome.verified.body
    # A coroutine is one more frame, so that its fault has another id.
    detail = re.sub(r"error [0-9a-f]{12}", "error", outcome.detail or "")
    return (
        outcome.verdict,
        outcome.reason,
        outcome.cause,
        detail,
        body,
        outcome.dead_letter is None,
    )


def course(
    world: World, scenario: Callable[[World], None], *, warm: bool = True
) -> Course:
    """Return what a message goes through while something is wrong and then is not."""
    if warm:
        world.process(message(world, 2))
    assert world.process(message(world, 0)).verdict is Verdict.ACCEPTED
    delivery = world.receive(message(world, 1))
    handled = world.handler.calls
    scenario(world)
    outcomes, steps = [], []
    for _ in range(2):
        outcomes.append(told(world.process(delivery)))
        steps.append(delivery.step)
    for plug in (
        world.handler,
        world.store.claim,
        world.store.confirm,
        world.store.release,
        world.audit.write,
    ):
        plug.failure = None
    while delivery.step is not Step.SETTLE:
        outcomes.append(told(world.process(delivery)))
        steps.append(delivery.step)
    return Course(
        outcomes, world.handler.calls - handled, steps, [record["reason"] for record in world.records],
        len(world.published), world.store.release.calls,
    )  # fmt: skip


def failing(plug: str, failure: Exception) -> Callable[[World], None]:
    """Return what lets a plug-in fail."""

    def scenario(world: World) -> None:
        found: Any = world
        for name in plug.split("."):
            found = getattr(found, name)
        found.failure = failure

    return scenario


SCENARIOS: dict[str, Callable[[World], None]] = {
    "nothing": lambda world: None,
    "store down at the claim": failing("store.claim", DOWN),
    "store full": failing("store.claim", Unavailable(Cause.REPLAY_STORE_FULL, "full")),
    "store down at the end": failing("store.confirm", DOWN),
    "handler fails": failing("handler", ValueError("no")),
    "handler rejects": failing("handler", RejectNow("no")),
    "handler asks for another time": failing("handler", RetryLater("soon")),
}


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_the_same_end(name: str, make_world: MakeWorld, forge: Forge) -> None:
    """Whatever fails, a message after others of its kind goes through what the first goes through."""
    policy = forge.policy(RABBITMQ, KAFKA)
    ends = [
        course(make_world(policy=policy), SCENARIOS[name], warm=warm)
        for warm in (True, False)
    ]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("name", sorted(SCENARIOS))
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("warm", [False, True])
def test_the_same_end_on_the_spot(
    name: str, asynchronous: bool, warm: bool, clock: FakeClock, forge: Forge
) -> None:
    """What is begun on the spot goes through the same as what a runner does in one go, whatever fails."""
    policy = forge.policy(RABBITMQ, KAFKA)
    world = BegunWorld(clock, forge, asynchronous, policy=policy)
    found = course(world, SCENARIOS[name], warm=warm)
    assert found == course(
        World(clock, forge, policy=policy), SCENARIOS[name], warm=False
    )
    assert (world.waited > 0) == (asynchronous or name == "handler fails")


def test_a_store_out_of_reach_is_asked_once(make_world: MakeWorld, forge: Forge) -> None:
    """Each attempt asks a store that is down once, for it may take its time to say so."""
    world = make_world(policy=forge.policy(RABBITMQ, KAFKA))
    assert world.process(message(world, 0)).verdict is Verdict.ACCEPTED
    delivery, world.store.claim.failure, calls = (
        world.receive(message(world, 1)),
        DOWN,
        world.store.claim.calls,
    )
    for number in range(1, 4):
        assert world.process(delivery).verdict is Verdict.DEFERRED
        assert world.store.claim.calls == calls + number
    world.store.claim.failure, world.store.confirm.failure, calls = (
        None,
        DOWN,
        world.store.confirm.calls,
    )
    assert world.process(delivery).verdict is Verdict.DEFERRED
    assert (world.store.confirm.calls, world.handler.calls) == (calls + 1, 2)


# A delivery judged ahead of its turn comes to the same end as one that is judged in its turn.


@pytest.fixture
def make_world(clock: FakeClock, forge: Forge) -> Callable[..., World]:
    """A maker of worlds without an event loop."""
    return lambda **settings: World(clock, forge, **settings)


def ahead(world: World) -> Delivery:
    """Return an honest delivery that is judged and claimed, and whose handler did not run."""
    delivery: Delivery = world.receive(world.sealed())
    flow.run(world.pipeline.judge(delivery))
    assert delivery.step is Step.HANDLE
    return delivery


def end(world: World, delivery: Delivery) -> Outcome:
    """Run a delivery to its end."""
    outcome: Outcome = flow.run(
        world.pipeline.process(delivery, world.handler, world.letters)
    )
    return outcome


def test_both_claims_of_a_release_are_confirmed(make_world: Callable[..., World]) -> None:
    """A delivery with two claims has both confirmed, the release's first."""
    world = make_world()
    delivery = ahead(world)
    delivery.release_claim = other = ahead(world).claim
    assert end(world, delivery).verdict is Verdict.ACCEPTED
    assert world.store.confirm.done == [other, delivery.claim]


def test_nobody_awaits(make_world: Callable[..., World]) -> None:
    """An asynchronous handler or store is an error of configuration, and no message's fault."""

    async def later(*_arguments: Any) -> ClaimStatus:
        return ClaimStatus.FRESH

    world = make_world()
    with pytest.raises(ColourError):
        flow.run(world.pipeline.process(ahead(world), later, world.letters))
    assert world.published == []


# Whose fault an outage of keys is: the outcome names the issuer or the release authority, and no other party.


REVIEW = "https://review.example"


UNSIGNED: list[tuple[dict[str, Any], Reason]] = [
    ({"signature": b"x"}, Reason.SIGNATURE_INVALID),
    ({"claims": {"iss": "https://evil.example"}}, Reason.ISSUER_UNTRUSTED),
    ({"header": {"kid": "nobody"}}, Reason.KEY_UNKNOWN),
    ({"header": {"alg": "ES256"}}, Reason.ALGORITHM_FORBIDDEN),
]


@pytest.mark.parametrize(("bends", "reason"), UNSIGNED)
def test_without_a_good_token_no_authority_is_asked(
    make_world: MakeWorld,
    clock: FakeClock,
    forge: Forge,
    bends: dict[str, Any],
    reason: Reason,
) -> None:
    """A message that no producer signed is rejected while the authority is out of reach, which nobody asks."""
    source = away(OSError("down"))
    world = make_world(
        verifier=forge.verifier(
            release=ReleaseAuthorities({REVIEW: Authority(keys=source)})
        )
    )
    releaser = Releaser(key=Key.generate(), issuer=REVIEW, reviewer="ada", clock=clock)
    message, _ = releaser.release(
        world.sealed(**bends), letter="0" * 64, scope="orders", reason="hostile"
    )
    outcome = world.process(message)
    assert (outcome.verdict, outcome.reason, source.asked) == (
        Verdict.REJECTED,
        reason,
        0,
    )


@pytest.mark.parametrize("plug", ["policy.decide", "store.claim", "store.confirm"])
def test_what_is_everybodys_names_nobody(world: World, plug: str) -> None:
    """An outage of policy or store is no party's."""
    owner, name = plug.split(".")
    getattr(getattr(world, owner), name).failure = OSError("down")
    assert world.process(world.sealed()).party is None
