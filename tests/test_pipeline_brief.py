"""A message like one that was accepted comes to the same end by one flat flow as by all of ``process``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from mqauth import flow
from mqauth.errors import Cause, Reason, RejectNow, RetryLater, Unavailable
from mqauth.flow import Early
from mqauth.message import Message
from mqauth.pipeline import Delivery, Outcome, Step, Verdict
from mqauth.replay import ClaimStatus
from mqauth.testing import FakeClock, Forge
from tests.conftest import KAFKA, RABBITMQ, Plug, World, kafka_message

DOWN = OSError("the world is down")
MakeWorld = Callable[..., World]


class Promptly(World):
    """A world whose deliveries are carried as far as they come on the spot, before the flow goes on."""

    prompt = 0

    def process(self, delivery: Delivery | Message) -> Outcome:
        """Process a delivery, or a message received now."""
        if isinstance(delivery, Message):
            delivery = self.receive(delivery)
        handler = Early(self.handler)
        if self.pipeline.promptly(delivery, handler):
            self.prompt += 1
            return Outcome.of(delivery)
        return self.run(self.pipeline.process(delivery, handler, self.letters))  # type: ignore[no-any-return]


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
    return outcome.verdict, outcome.reason, outcome.cause, outcome.detail, body, outcome.dead_letter is None


def course(world: World, scenario: Callable[[World], None], *, warm: bool) -> tuple[Course, int]:
    """Return what a message goes through while something is wrong and then is not, and how often briefly."""
    brief = 0
    alike = world.pipeline.verdicts.alike

    def counted(delivery: Any) -> Any:
        nonlocal brief
        found = alike(delivery) if warm else None
        brief += found is not None
        return found

    world.pipeline.verdicts.alike = counted  # type: ignore[method-assign]
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
    found = Course(
        outcomes, world.handler.calls - handled, steps, [record["reason"] for record in world.records],
        len(world.published), world.store.release.calls,
    )  # fmt: skip
    return found, brief


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
    """Whatever fails, both ways go through the same outcomes and steps, and handle as often."""
    ends = []
    for warm in (True, False):
        world = make_world(policy=forge.policy(RABBITMQ, KAFKA))
        found, brief = course(world, SCENARIOS[name], warm=warm)
        assert brief == warm if name == "nothing" else brief >= warm
        ends.append(found)
    assert ends[0] == ends[1]


@pytest.mark.parametrize("name", sorted(SCENARIOS))
@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_same_end_on_the_spot(name: str, asynchronous: bool, clock: FakeClock, forge: Forge) -> None:
    """What is begun on the spot goes through the same as what a flow does, whatever fails, with as many calls.

    A store that is out of reach is asked once more: the spot says nothing, the flow says why.
    """
    policy = forge.policy(RABBITMQ, KAFKA)
    world = Promptly(clock, forge, policy=policy)
    world.handler = Plug(lambda verified: None, asynchronous)
    if asynchronous:
        world.run = lambda wish: asyncio.run(flow.arun(wish))  # type: ignore[method-assign]
    found, _ = course(world, SCENARIOS[name], warm=True)
    plain, _ = course(World(clock, forge, policy=policy), SCENARIOS[name], warm=False)
    assert found == plain
    ends_there = name in ("nothing", "store down at the claim", "store full") and not asynchronous
    assert world.prompt == ends_there


@pytest.mark.parametrize("settings", [{"record": "all"}, {"observers": [lambda *_: None]}])
def test_nobody_is_left_out_on_the_spot(settings: dict[str, Any], clock: FakeClock, forge: Forge) -> None:
    """Where every outcome is observed or recorded nothing is ended on the spot, nor is its handler called."""
    world = Promptly(clock, forge, policy=forge.policy(RABBITMQ, KAFKA), **settings)
    delivery, handler = world.receive(message(world, 1)), Early(world.handler)
    assert world.process(message(world, 0)).verdict is Verdict.ACCEPTED
    assert not world.pipeline.promptly(delivery, handler)
    assert (delivery.step, world.handler.calls, world.store.claim.calls) == (Step.JUDGE, 1, 1)


def test_only_a_new_delivery_is_begun_on_the_spot(clock: FakeClock, forge: Forge) -> None:
    """One that has a verdict, or an end, is left to the flow."""
    world = Promptly(clock, forge, policy=forge.policy(RABBITMQ, KAFKA))
    assert world.process(message(world, 0)).verdict is Verdict.ACCEPTED
    for step in Step:
        delivery = world.receive(message(world, 1 + list(Step).index(step)))
        delivery.step = step
        assert world.pipeline.promptly(delivery, Early(world.handler)) is (step is Step.JUDGE)
    assert world.handler.calls == 2


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


@pytest.mark.parametrize("answer", [ClaimStatus.HELD, ClaimStatus.DUPLICATE, ClaimStatus.LOST, "fresh", None])
def test_any_other_answer_is_heard(answer: Any, make_world: MakeWorld, forge: Forge) -> None:
    """A message whose claim is not granted is not handled."""
    world = make_world(policy=forge.policy(RABBITMQ, KAFKA))
    assert world.process(message(world, 0)).verdict is Verdict.ACCEPTED
    world.store.claim.function = lambda _wish: answer
    outcome = world.process(message(world, 1))
    assert outcome.verdict is (Verdict.DUPLICATE if answer is ClaimStatus.DUPLICATE else Verdict.DEFERRED)
    assert world.handler.calls == 1


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
