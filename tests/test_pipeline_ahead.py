"""A delivery judged ahead of its turn comes to the same end as one that is judged in its turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mqauth import flow
from mqauth.errors import Cause, Reason, RejectNow, RetryLater
from mqauth.flow import ColourError
from mqauth.judging.pipeline import Delivery, Outcome, Step, Verdict
from mqauth.replay.rules import ClaimStatus
from mqauth.testing import FakeClock, Forge
from tests.conftest import World


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
