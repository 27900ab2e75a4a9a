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
from tests.conftest import KAFKA, RABBITMQ, Away, World, kafka_message
from tests.test_flow import Unhashable

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
    return outcome.verdict, outcome.reason, outcome.cause, detail, body, outcome.dead_letter is None


def course(world: World, scenario: Callable[[World], None], *, warm: bool = True) -> Course:
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
    for plug in (world.handler, world.store.claim, world.store.confirm, world.store.release, world.audit.write):
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
    ends = [course(make_world(policy=policy), SCENARIOS[name], warm=warm) for warm in (True, False)]
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
    assert found == course(World(clock, forge, policy=policy), SCENARIOS[name], warm=False)
    assert (world.waited > 0) == (asynchronous or name == "handler fails")


def test_a_copy_is_no_second_message(make_world: MakeWorld, forge: Forge) -> None:
    """What was handled is a replay elsewhere, and comes again to its own place."""
    world = make_world(policy=forge.policy(RABBITMQ, KAFKA))
    sealed = message(world, 1)
    assert [world.process(each).verdict for each in (message(world, 0), sealed)] == [Verdict.ACCEPTED] * 2
    copy = replace(sealed, origin=replace(sealed.origin, offset=9))
    outcome = world.process(copy)
    assert (outcome.verdict, outcome.reason) == (Verdict.REJECTED, Reason.REPLAYED)
    assert world.process(sealed).verdict is Verdict.ACCEPTED
    assert (world.handler.calls, len(world.published)) == (3, 1)


ODD = Unhashable("Odd", (), {})()


@pytest.mark.parametrize("answer", [ClaimStatus.HELD, ClaimStatus.DUPLICATE, ClaimStatus.LOST, "fresh", None, ODD])
@pytest.mark.parametrize("warm", [True, False])
def test_any_other_answer_is_heard(answer: Any, warm: bool, make_world: MakeWorld, forge: Forge) -> None:
    """A message whose claim is not granted is not handled; no answer of a store leaves the flow as an error."""
    world = make_world(policy=forge.policy(RABBITMQ, KAFKA))
    if warm:
        assert world.process(message(world, 0)).verdict is Verdict.ACCEPTED
    world.store.claim.function = lambda _wish: answer
    outcome = world.process(message(world, 1))
    assert outcome.verdict is (Verdict.DUPLICATE if answer is ClaimStatus.DUPLICATE else Verdict.DEFERRED)
    assert world.handler.calls == warm


def test_observers_and_records_are_not_left_out(make_world: MakeWorld, forge: Forge) -> None:
    """With observers, and with every verdict recorded, the second message is told of like the first."""
    seen: list[Outcome] = []
    policy = forge.policy(RABBITMQ, KAFKA)
    world = make_world(policy=policy, observers=[lambda outcome, _message, _seconds: seen.append(outcome)])
    for number in range(2):
        world.process(message(world, number))
    assert [outcome.verdict for outcome in seen] == [Verdict.ACCEPTED] * 2
    world = make_world(policy=policy, record="all")
    for number in range(2):
        world.process(message(world, number))
    assert [record["verdict"] for record in world.records] == ["accepted"] * 2


def test_a_store_out_of_reach_is_asked_once(make_world: MakeWorld, forge: Forge) -> None:
    """Each attempt asks a store that is down once, for it may take its time to say so."""
    world = make_world(policy=forge.policy(RABBITMQ, KAFKA))
    assert world.process(message(world, 0)).verdict is Verdict.ACCEPTED
    delivery, world.store.claim.failure, calls = world.receive(message(world, 1)), DOWN, world.store.claim.calls
    for number in range(1, 4):
        assert world.process(delivery).verdict is Verdict.DEFERRED
        assert world.store.claim.calls == calls + number
    world.store.claim.failure, world.store.confirm.failure, calls = None, DOWN, world.store.confirm.calls
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
    outcome: Outcome = flow.run(world.pipeline.process(delivery, world.handler, world.letters))
    return outcome


def test_the_plain_case(make_world: Callable[..., World]) -> None:
    """Handled once, then confirmed."""
    world = make_world()
    outcome = end(world, delivery := ahead(world))
    assert (outcome.verdict, outcome.verified, delivery.step) == (
        Verdict.ACCEPTED, delivery.verified, Step.SETTLE,
    )  # fmt: skip
    assert (world.handler.calls, world.store.confirm.calls) == (1, 1)


def test_a_handler_that_ended_never_runs_again(make_world: Callable[..., World]) -> None:
    """Where the store is gone after the handler the delivery is deferred, then confirmed, and handled once."""
    world = make_world()
    delivery, world.store.confirm.failure = ahead(world), OSError()
    for _ in range(3):
        outcome = end(world, delivery)
        assert (outcome.verdict, outcome.cause) == (Verdict.DEFERRED, Cause.REPLAY_STORE_UNAVAILABLE)
    world.store.confirm.failure = None
    assert end(world, delivery).verdict is Verdict.ACCEPTED
    assert (world.handler.calls, delivery.step) == (1, Step.SETTLE)


def test_another_time_is_another_time(make_world: Callable[..., World]) -> None:
    """A handler that asks for another time is deferred and not confirmed, and runs again."""
    world = make_world()
    delivery, world.handler.failure = ahead(world), RetryLater("soon")
    outcome = end(world, delivery)
    assert (outcome.verdict, outcome.cause, delivery.step) == (
        Verdict.DEFERRED, Cause.HANDLER_DEFERRED, Step.HANDLE,
    )  # fmt: skip
    assert (world.handler.calls, world.store.confirm.calls, world.published) == (1, 0, [])
    world.handler.failure = None
    assert end(world, delivery).verdict is Verdict.ACCEPTED


@pytest.mark.parametrize(("failure", "calls"), [(ValueError("no"), 3), (RejectNow("no"), 1)])
def test_failed_for_good(make_world: Callable[..., World], failure: Exception, calls: int) -> None:
    """After its last attempt: audited, dead-lettered, its claim given back and never confirmed."""
    world = make_world()
    delivery, world.handler.failure = ahead(world), failure
    outcome = end(world, delivery)
    assert (outcome.verdict, outcome.reason) == (Verdict.REJECTED, Reason.HANDLER_FAILED)
    assert (world.handler.calls, world.store.confirm.calls, world.store.release.calls) == (calls, 0, 1)
    assert (len(world.records), len(world.published)) == (1, 1)


def test_observers_are_told(make_world: Callable[..., World]) -> None:
    """Whoever observes is told of what was judged ahead too."""
    seen: list[Outcome] = []
    world = make_world(observers=[lambda outcome, _message, _seconds: seen.append(outcome)])
    outcome = end(world, ahead(world))
    assert seen == [outcome]


def test_every_verdict_is_recorded_where_told(make_world: Callable[..., World]) -> None:
    """With ``record="all"`` what was judged ahead has its audit record before it is settled."""
    world = make_world(record="all")
    assert end(world, ahead(world)).verdict is Verdict.ACCEPTED
    assert [record["verdict"] for record in world.records] == ["accepted"]


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
    make_world: MakeWorld, clock: FakeClock, forge: Forge, bends: dict[str, Any], reason: Reason
) -> None:
    """A message that no producer signed is rejected while the authority is out of reach, which nobody asks."""
    away = Away(OSError("down"))
    world = make_world(verifier=forge.verifier(release=ReleaseAuthorities({REVIEW: Authority(keys=away)})))
    releaser = Releaser(key=Key.generate(), issuer=REVIEW, reviewer="ada", clock=clock)
    message, _ = releaser.release(world.sealed(**bends), letter="0" * 64, scope="orders", reason="hostile")
    outcome = world.process(message)
    assert (outcome.verdict, outcome.reason, away.asked) == (Verdict.REJECTED, reason, [])


@pytest.mark.parametrize("plug", ["policy.decide", "store.claim", "store.confirm"])
def test_what_is_everybodys_names_nobody(world: World, plug: str) -> None:
    """An outage of policy or store is no party's."""
    owner, name = plug.split(".")
    getattr(getattr(world, owner), name).failure = OSError("down")
    assert world.process(world.sealed()).party is None
