"""Sync and async from one flow: same results, same errors, and no coroutine left unawaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mqauth import flow
from mqauth.flow import Attempts, ColourError, Flow
from mqauth.judging.delivery import Delivery, Step
from mqauth.judging.pipeline import Pipeline
from mqauth.testing.token_attacks import honest_message

Runner = Callable[[Flow[Any]], Any]


class Failures:
    """Stands where the pipeline's journal does: counts failures, and raises the last."""

    def retried(self, delivery: Delivery, error: Exception) -> None:
        """Count one."""
        delivery.attempts += 1

    def failed(self, delivery: Delivery, error: Exception) -> None:
        """Raise it."""
        raise error


def attempt(function: Callable[[Any], Any], argument: Any, attempts: Attempts) -> Flow[int]:
    """Call a handler as the pipeline does, until it has returned; return how often it failed."""
    delivery = Delivery(message=honest_message("kafka:orders"), received=0.0, step=Step.HANDLE)
    pipeline: Any = SimpleNamespace(attempts=attempts, journal=Failures())
    while delivery.step is Step.HANDLE:
        yield from Pipeline._handled(pipeline, delivery, function, argument, Step.CONFIRM)
    return delivery.attempts


async def begun(wish: Flow[Any]) -> Any:
    """Begin a flow, and go on with it where it waits."""
    found = flow.begin(wish)
    return await flow.resume(found) if isinstance(found, flow.Waiting) else found


RUNNERS: dict[str, Runner] = {
    "run": flow.run,
    "arun": lambda wish: asyncio.run(flow.arun(wish)),
    "begin": lambda wish: asyncio.run(begun(wish)),
}


@pytest.fixture(params=sorted(RUNNERS))
def runner(request: pytest.FixtureRequest) -> Runner:
    """Every runner."""
    return RUNNERS[request.param]


class Flaky:
    """Fails as often as told, then returns what it was given."""

    def __init__(self, failures: int, error: BaseException | None = None) -> None:
        self.failures = failures
        self.error = error or RuntimeError("flaky")
        self.calls = 0

    def __call__(self, value: Any) -> Any:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return value


async def later(value: Any) -> Any:
    """Return a value after a turn of the loop."""
    await asyncio.sleep(0)
    return value


def test_an_uncaught_error_leaves_the_runner(runner: Runner) -> None:
    """What the flow does not catch is raised."""
    with pytest.raises(RuntimeError, match="flaky"):
        runner(flow.call(Flaky(1), 1))


def test_run_refuses_any_awaitable() -> None:
    """A future is refused like a coroutine."""

    class Later:
        def __await__(self) -> Any:
            yield

    with pytest.raises(ColourError):
        flow.run(flow.call(Later))


async def test_a_call_that_may_block_is_not_made_while_beginning() -> None:
    """Where there is a twin for event loops, it is that which is called, by whoever goes on."""

    def blocks(_: str) -> str:
        raise AssertionError("it would block the loop")

    found = flow.begin(flow.call(blocks, "v", twin=later))
    assert isinstance(found, flow.Waiting)
    assert await flow.resume(found) == "v"
    plain = flow.begin(flow.call(blocks, "v", twin=str.upper))
    assert isinstance(plain, flow.Waiting)
    assert await flow.resume(plain) == "V"


class Unhashable(type):
    """A metaclass whose classes cannot be looked up."""

    __hash__ = None  # type: ignore[assignment]


def test_a_result_of_no_known_kind_is_a_failure_of_the_call(runner: Runner) -> None:
    """What cannot be told awaitable or not fails the attempt, and each is counted once."""
    calls = 0

    def handler(_: Any) -> Any:
        nonlocal calls
        calls += 1
        return Unhashable("Odd", (), {})()

    with pytest.raises(TypeError):
        runner(attempt(handler, "v", Attempts(limit=3, wait=0)))
    assert calls == 3
