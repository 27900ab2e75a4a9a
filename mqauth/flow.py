"""The only module that knows synchronous from asynchronous: a flow asks for calls, and a runner makes them.

The rules of this library are written once, for consumers with an event loop and without one, whose plug-ins may
be either. Such a rule is a *flow*: a generator that yields ``Call`` objects and is sent their results. A
*runner* makes the calls. ``run`` makes plain calls and refuses a coroutine, which nobody would await. ``arun``
awaits what is awaitable. ``begin`` runs a flow on the spot until something has to be awaited, and ``resume``
goes on from there.

For example, ``yield from call(store.claim, request)`` is a plain call under ``run``, and under ``arun`` it is
awaited if ``store.claim`` returned an awaitable.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from functools import lru_cache, partial
from types import GeneratorType
from typing import Any, Final, Generic, NamedTuple, NoReturn, TypeGuard, TypeVar, cast

import tenacity

from mqauth.clock import Backoff
from mqauth.errors import (
    Cause,
    ConfigurationError,
    RejectNow,
    RetryLater,
    Unavailable,
    require,
)


class ColourError(ConfigurationError):
    """A coroutine came back where nobody awaits. No handler's failure: it stops the consumer."""


unwrap = inspect.unwrap
R = TypeVar("R")
MAX_ATTEMPTS: Final = 100
OUR_FAULT: Final = (Unavailable, ColourError)
"""What a plug-in raises that names its cause already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """How often a handler may fail before its message is dead-lettered.

    Args:
        limit: attempts in all, 1 to 100.
        wait: the longest wait before the third attempt, seconds. The second attempt follows at once, later waits
            double, and each is drawn at random from the upper half of its longest.
        wait_max: no wait is longer, seconds.
        final: exception types after which there is no other attempt; keep the handler's own signals among them.
    """

    limit: int = 3
    wait: float = 0.1
    wait_max: float = 5.0
    final: tuple[type[Exception], ...] = (RetryLater, RejectNow)

    def __post_init__(self) -> None:
        require(
            1 <= self.limit <= MAX_ATTEMPTS and 0 <= self.wait <= self.wait_max,
            f"attempts are 1 to {MAX_ATTEMPTS}, and waits grow from wait to wait_max",
        )


class Call(NamedTuple):
    """A call that a flow asks for.

    Args:
        function: what is called.
        arguments: positional ones.
        twin: what an event loop calls in its place.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    twin: Callable[..., Any] | None = None


Flow = Generator[Call, Any, R]
_SLEEP, _SLEEP_ON_LOOP = tenacity.Retrying().sleep, tenacity.AsyncRetrying().sleep


@dataclass(slots=True)
class Waiting(Generic[R]):
    """A flow that was begun and waits for one call.

    Args:
        flow: goes on once the call has an outcome.
        wish: the call.
        made: returns what the call returned, an awaitable, or raises what it raised; ``None`` if it is yet to be
            made.
    """

    flow: Flow[R]
    wish: Call
    made: Callable[[], Awaitable[Any]] | None = None


def call(
    function: Callable[..., R | Awaitable[R]],
    *args: Any,
    twin: Callable[..., R | Awaitable[R]] | None = None,
    cause: Cause | None = None,
    passing: tuple[type[Exception], ...] = OUR_FAULT,
) -> Flow[R]:
    """Ask the runner for one call, and return its result.

    Args:
        function: what is called.
        args: its arguments.
        twin: what ``arun`` calls in its place, where the call may block.
        cause: why the delivery waits where the call fails, since a plug-in is out of reach.
        passing: with a cause, errors that are raised as they are.

    Raises:
        Unavailable: with ``cause``.
        Exception: without one, whatever the call raised.
    """
    try:
        return cast(R, (yield Call(function, args, twin)))
    except passing:
        raise
    except Exception as error:
        if cause is None:
            raise
        raise Unavailable(cause, type(error).__name__) from error


def is_last(attempts: Attempts, failures: int, error: Exception) -> bool:
    """Tell whether no attempt follows so many failures in a row, of which ``error`` is the last."""
    return failures >= attempts.limit or isinstance(error, (ColourError, *attempts.final))


def pause(attempts: Attempts, failures: int) -> Flow[None]:
    """Wait as long as is due before the attempt that follows so many failures in a row."""
    waits = Backoff(first=attempts.wait, longest=attempts.wait_max)
    yield Call(
        _SLEEP, (waits.wait(failures - 1) if failures > 1 else 0.0,), _SLEEP_ON_LOOP
    )


def at_once(cause: Cause, function: Callable[..., Any], *args: Any) -> Any:
    """Call a plug-in on the spot, and return its result, or an awaitable that ``answered`` has awaited.

    Raises:
        Unavailable: with ``cause``, whatever the plug-in raised but ``OUR_FAULT``.
    """
    try:
        return function(*args)
    except OUR_FAULT:
        raise
    except Exception as error:
        raise Unavailable(cause, type(error).__name__) from error


def answered(cause: Cause, result: Any) -> Flow[Any]:
    """Return a result, which the runner awaits if it is awaitable.

    Raises:
        Unavailable: with ``cause``, whatever awaiting it raised but ``OUR_FAULT``.
    """
    try:
        return (yield from settling(result))
    except OUR_FAULT:
        raise
    except Exception as error:
        raise Unavailable(cause, type(error).__name__) from error


def settling(result: Any) -> Flow[Any]:
    """Return a result, which the runner awaits if it is awaitable."""
    return (yield Call(_itself, (result,))) if is_awaitable(result) else result


def run(flow: Flow[R]) -> R:
    """Run a flow without an event loop.

    Raises:
        ConfigurationError: a plug-in is asynchronous.
    """
    result: Any = None
    error: Exception | None = None
    while True:
        try:
            wish = flow.send(result) if error is None else flow.throw(error)
        except StopIteration as stop:
            return cast(R, stop.value)
        result, error = None, None
        try:
            result = wish.function(*wish.arguments)
            # A coroutine would be awaited by nobody.
            if result is not None and is_awaitable(result):
                if inspect.iscoroutine(result):
                    result.close()
                raise ColourError(
                    "an asynchronous plug-in or handler was given to a synchronous consumer"
                )
        except Exception as raised:
            error = raised


async def arun(flow: Flow[R]) -> R:
    """Run a flow inside an event loop; its plug-ins may be synchronous or asynchronous."""
    begun = begin(flow)
    return await resume(begun) if isinstance(begun, Waiting) else begun


def begin(
    flow: Flow[R], result: Any = None, error: Exception | None = None
) -> R | Waiting[R]:
    """Run a flow inside an event loop until something has to be awaited; ``resume`` goes on from there.

    An exception of a call that is no ``Exception`` is raised by ``resume``, whose caller looks after the flow by
    then.

    Args:
        flow: a new one, or one that waits for a call.
        result: of that call.
        error: why that call failed.
    """
    while True:
        try:
            wish = flow.send(result) if error is None else flow.throw(error)
        except StopIteration as stop:
            return cast(R, stop.value)
        result, error = None, None
        if wish.twin is not None:
            return Waiting(flow, wish)
        try:
            result = wish.function(*wish.arguments)
            if result is not None and is_awaitable(result):
                return Waiting(flow, wish, partial(_itself, result))
        except BaseException as raised:
            if not isinstance(raised, Exception):
                return Waiting(flow, wish, partial(_raised, raised))
            error = raised


async def resume(waiting: Waiting[R]) -> R:
    """Run a flow that was begun to its end."""
    begun: R | Waiting[R] = waiting
    while isinstance(begun, Waiting):
        wish, result, error = begun.wish, None, None
        try:
            if begun.made is not None:
                result = await begun.made()
            else:
                result = await settled((wish.twin or wish.function)(*wish.arguments))
        except Exception as raised:
            error = raised
        begun = begin(begun.flow, result, error)
    return begun


def is_async(function: object) -> bool:
    """Tell whether calling a function or an object returns a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object's method, not callability, is asked for
    )


def requires_two(function: Callable[..., object]) -> bool:
    """Return whether a function has to be called with two positional arguments at least."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = [
            each
            for each in inspect.signature(function).parameters.values()
            if each.kind in kinds
        ]
    # Some functions in C have no signature.
    except (TypeError, ValueError):
        return False
    return len(parameters) > 1 and parameters[1].default is inspect.Parameter.empty


def is_awaitable(result: object) -> TypeGuard[Awaitable[Any]]:
    """Tell whether a result is still to be awaited."""
    kind: Any = type(result)
    return _is_awaited(kind) or (kind is GeneratorType and inspect.isawaitable(result))


# by type, and nobody outside makes types; an ``Enum`` takes a microsecond to say no
@lru_cache(maxsize=256)
def _is_awaited(kind: Any) -> bool:
    return hasattr(kind, "__await__")


async def settled(result: Any) -> Any:
    """Return a result, awaited if it is awaitable."""
    return await result if is_awaitable(result) else result


def refuse_async(**plugins: object) -> None:
    """Refuse asynchronous plug-ins where only ``run`` can serve them.

    Raises:
        ConfigurationError: one of them is asynchronous; its messages would be deferred for ever.
    """
    for name, plugin in plugins.items():
        require(not is_async(plugin), f"{name} is asynchronous, and this consumer is not")


def _raised(error: BaseException) -> NoReturn:
    raise error


def _itself(result: Any) -> Any:
    return result
