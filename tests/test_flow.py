"""Sync and async from one flow: same results, same errors, and no coroutine left unawaited."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mqauth import ConfigurationError, Pipeline, RejectNow, RetryLater, flow
from mqauth.flow import Attempts, ColourError, Flow
from mqauth.judging.delivery import Delivery, Step
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


def attempt(
    function: Callable[[Any], Any], argument: Any, attempts: Attempts
) -> Flow[int]:
    """Call a handler as the pipeline does, until it has returned; return how often it failed."""
    delivery = Delivery(
        message=honest_message("kafka:orders"), received=0.0, step=Step.HANDLE
    )
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


def test_errors_reach_the_flow_where_it_asked(runner: Runner) -> None:
    """A failing call can be caught in the flow, which goes on."""

    def wish() -> Flow[str]:
        try:
            yield from flow.call(Flaky(1), 1)
        except RuntimeError as error:
            return str((yield from flow.call("caught {}".format, str(error))))
        return "missed"

    assert runner(wish()) == "caught flaky"


@pytest.mark.parametrize("rule", [None, Attempts(limit=3, wait=0)])
def test_run_refuses_a_coroutine_and_closes_it(rule: Attempts | None) -> None:
    """A coroutine where nobody awaits is a ColourError at once, not tried again, and never a silent success."""
    calls = 0

    def asynchronous(value: int) -> Awaitable[int]:
        nonlocal calls
        calls += 1
        return later(value)

    wish = flow.call(asynchronous, 1) if rule is None else attempt(asynchronous, 1, rule)
    with pytest.raises(ColourError):
        flow.run(wish)
    assert calls == 1


def test_run_refuses_any_awaitable() -> None:
    """A future is refused like a coroutine."""

    class Later:
        def __await__(self) -> Any:
            yield

    with pytest.raises(ColourError):
        flow.run(flow.call(Later))


@pytest.mark.parametrize(
    ("failures", "limit", "calls"), [(0, 3, 1), (1, 3, 2), (2, 3, 3), (1, 2, 2)]
)
def test_attempts_are_made_until_one_succeeds(
    failures: int, limit: int, calls: int, runner: Runner
) -> None:
    """A handler that fails fewer times than its limit succeeds."""
    handler = Flaky(failures)
    assert runner(attempt(handler, "ok", Attempts(limit=limit, wait=0))) == failures
    assert handler.calls == calls


@pytest.mark.parametrize("failures", [1, 2, 3])
async def test_a_failure_while_beginning_counts(failures: int) -> None:
    """The first attempt counts wherever it was made, and the others wait for the event loop."""
    handler = Flaky(failures)
    found = flow.begin(attempt(handler, "v", Attempts(limit=3, wait=0)))
    assert isinstance(found, flow.Waiting)
    assert handler.calls == 1
    if failures == 3:
        with pytest.raises(RuntimeError, match="flaky"):
            await flow.resume(found)
    else:
        assert await flow.resume(found) == failures
    assert handler.calls == min(3, failures + 1)


async def test_a_flow_waits_only_for_what_is_awaited() -> None:
    """Plain calls are made while beginning, the rest after that; each once."""
    calls = list[str]()

    async def waits(value: str) -> str:
        calls.append(f"awaited {value}")
        return value

    def plain(value: str) -> str:
        calls.append(value)
        return value

    def wished() -> Flow[str]:
        first = yield from flow.call(plain, "a")
        second = yield from flow.call(waits, "b")
        return first + second + (yield from flow.call(plain, "c"))

    found = flow.begin(wished())
    assert isinstance(found, flow.Waiting)
    assert calls == ["a"]
    assert await flow.resume(found) == "abc"
    assert calls == ["a", "awaited b", "c"]
    assert flow.begin(flow.call(plain, "d")) == "d"


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


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit]
)
async def test_what_is_no_exception_is_kept(error: type[BaseException]) -> None:
    """A plain call that raises it is not tried again: who goes on has its delivery in hand, and is told."""
    handler = Flaky(3, error())  # type: ignore[arg-type]
    found = flow.begin(attempt(handler, "v", Attempts(limit=3, wait=0)))
    assert isinstance(found, flow.Waiting)
    with pytest.raises(error):
        await flow.resume(found)
    assert handler.calls == 1


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


async def test_a_later_attempt_has_no_part_in_an_earlier_error() -> None:
    """Each attempt fails by itself: the first error is not the context of the others."""
    errors = [ValueError(number) for number in range(3)]
    left = list(errors)

    async def handler(_: Any) -> None:
        raise left.pop(0)

    with pytest.raises(ValueError, match="2"):
        await flow.arun(attempt(handler, "v", Attempts(limit=3, wait=0)))
    assert [error.__context__ for error in errors] == [None] * 3


@pytest.mark.parametrize("error", [RetryLater(), RejectNow(), KeyError("mine")])
def test_final_errors_are_not_tried_again(error: Exception, runner: Runner) -> None:
    """The handler's signals, and what is configured as final, end the attempts, first or later."""
    rule = Attempts(limit=5, wait=0, final=(RetryLater, RejectNow, KeyError))
    for before in (0, 1):
        handler = Flaky(before)

        def then(value: Any, handler: Flaky = handler) -> Any:
            handler(value)
            raise error

        with pytest.raises(type(error)):
            runner(attempt(then, 1, rule))
        assert handler.calls == before + 1


def test_plain_calls_are_made_once(runner: Runner) -> None:
    """Stores, sinks and policies are not retried by the runner; what the flow does not catch is raised."""
    store = Flaky(1)
    with pytest.raises(RuntimeError, match="flaky"):
        runner(flow.call(store, 1))
    assert store.calls == 1


@pytest.mark.parametrize("limit", [1, 3])
def test_a_handler_that_raises_stop_iteration_has_failed(
    limit: int, runner: Runner
) -> None:
    """StopIteration out of a handler must not end the flow as if it had returned."""
    with pytest.raises(RuntimeError):
        runner(
            attempt(Flaky(9, StopIteration("value")), 1, Attempts(limit=limit, wait=0))
        )


async def test_cancelling_a_handler_cancels_it() -> None:
    """Cancellation is no failure to be retried."""
    started = asyncio.Event()

    async def endless(value: int) -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(flow.arun(attempt(endless, 1, Attempts(wait=0))))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "settings",
    [{"limit": 0}, {"limit": 101}, {"limit": -1}, {"wait": -0.1}, {"wait": 6.0}, {"wait": math.nan},
    {"wait_max": 0.0}],
    ids=repr,
)  # fmt: skip
def test_attempts_out_of_bounds_are_refused(settings: dict[str, Any]) -> None:
    """At least one attempt, at most a hundred, and waits that grow."""
    with pytest.raises(ConfigurationError):
        Attempts(**settings)


def test_the_limits_of_attempts_pass() -> None:
    """1 and 100 attempts, and no wait at all, are allowed."""
    assert [Attempts(limit=limit, wait=0, wait_max=0).limit for limit in (1, 100)] == [
        1,
        100,
    ]


class Callables:
    """Methods and objects of both colours."""

    async def method(self) -> None:
        """Asynchronous."""

    async def __call__(self) -> None:
        """Asynchronous."""


def test_colours_are_told_apart() -> None:
    """Coroutine functions, methods and callable objects are asynchronous; their plain likes are not."""
    assert [
        flow.is_async(thing) for thing in (later, Callables().method, Callables())
    ] == [True] * 3
    assert [flow.is_async(thing) for thing in (len, Flaky(0), Flaky, 3)] == [False] * 4


def test_asynchronous_plugins_are_refused_by_name() -> None:
    """A synchronous consumer says at construction which plug-in it cannot serve."""
    flow.refuse_async(handler=len)
    with pytest.raises(ConfigurationError, match="store is asynchronous"):
        flow.refuse_async(handler=len, store=later)


async def test_settled_results_are_returned_and_awaitables_awaited() -> None:
    """Wrappers take plug-ins of either colour by one helper."""
    assert [await flow.settled(found) for found in (1, later(2))] == [1, 2]
    coroutine = later(3)
    assert [flow.is_awaitable(found) for found in (coroutine, 3, None)] == [
        True,
        False,
        False,
    ]
    assert await coroutine == 3
