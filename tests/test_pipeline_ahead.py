"""A delivery judged ahead of its turn comes to the same end as one that is judged in its turn."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mqauth import flow
from mqauth.judging.pipeline import Delivery, Outcome, Step
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


def test_observers_are_told(make_world: Callable[..., World]) -> None:
    """Whoever observes is told of what was judged ahead too."""
    seen: list[Outcome] = []
    world = make_world(observers=[lambda outcome, _message, _seconds: seen.append(outcome)])
    outcome = end(world, ahead(world))
    assert seen == [outcome]
