"""The only module that knows sync from async: a flow asks for calls, a runner makes them.

A flow is a generator that yields ``Call`` objects and is sent their results. ``run`` makes plain calls,
``arun`` awaits what is awaitable; ``begin`` makes plain calls until one is to be awaited, and ``resume`` goes on.
Handler retries are asked for the same way and done by tenacity.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from functools import lru_cache, partial
from types import GeneratorType
from typing import Any, Final, Generic, NamedTuple, NoReturn, ParamSpec, TypeGuard, TypeVar, cast

import tenacity

from mqauth.errors import Cause, ConfigurationError, RejectNow, RetryLater, Unavailable


class ColourError(ConfigurationError):
    """A coroutine came back where nobody awaits; never a handler's failure, so it stops the consumer."""


P = ParamSpec("P")
R = TypeVar("R")
MAX_ATTEMPTS: Final = 100
OUR_FAULT: Final = (Unavailable, ColourError)
"""What a plug-in raises that is not the world's failure to be named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """How often a handler may fail before its message is dead-lettered.

    Args:
        limit: attempts in all, 1 to 100.
        wait: longest wait before the third attempt, seconds; the second follows at once, later waits
            double, with full jitter.
        wait_max: no wait is longer, seconds.
        final: exception types that are not tried again; keep the handler's own signals among them.
    """

    limit: int = 3
    wait: float = 0.1
    wait_max: float = 5.0
    final: tuple[type[Exception], ...] = (RetryLater, RejectNow)

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_ATTEMPTS or not 0 <= self.wait <= self.wait_max:
            raise ConfigurationError(f"attempts are 1 to {MAX_ATTEMPTS}, and waits grow from wait to wait_max")


class Call(NamedTuple):
    """One wished-for call, with the attempts it may take and its twin for event loops."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    attempts: Attempts | None = None
    twin: Callable[..., Any] | None = None


Flow = Generator[Call, Any, R]


@dataclass(slots=True)
class Waiting(Generic[R]):
    """A flow that was begun and waits for one call.

    Args:
        flow: to be gone on with.
        wish: the call.
        made: returns what it came to, an awaitable, or raises; ``None`` where it is yet to be made.
    """

    flow: Flow[R]
    wish: Call
    made: Callable[[], Awaitable[Any]] | None = None


def call(function: Callable[P, R | Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> Flow[R]:
    """Ask the runner for one call and return its result."""
    if kwargs:
        raise TypeError("calls take positional arguments")
    return cast(R, (yield Call(function, args)))


def either(
    function: Callable[P, R | Awaitable[R]],
    twin: Callable[P, R | Awaitable[R]] | None,
    *args: P.args,
    **kwargs: P.kwargs,
) -> Flow[R]:
    """Ask for a call that may block: ``run`` makes it, ``arun`` its twin, where it has one."""
    if kwargs:
        raise TypeError("calls take positional arguments")
    return cast(R, (yield Call(function, args, twin=twin)))


def attempt(function: Callable[[Any], Any], argument: Any, attempts: Attempts) -> Flow[Any]:
    """Ask the runner for a call that may be tried again."""
    return (yield Call(function, (argument,), attempts))


def asked(cause: Cause, function: Callable[..., Any], *args: Any) -> Flow[Any]:
    """Call a plug-in here and now, and ask the runner only to await what it returned.

    Raises:
        Unavailable: with ``cause``, whatever the plug-in raised but ``OUR_FAULT``.
    """
    result = at_once(cause, function, *args)
    return result if result is None else (yield from answered(cause, result))


def at_once(cause: Cause, function: Callable[..., Any], *args: Any) -> Any:
    """Call a plug-in here and now, and return what is yet to be ``answered``: a result, or what is to be awaited.

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
    """Return a result, awaited by the runner where it is awaitable.

    Raises:
        Unavailable: with ``cause``, whatever awaiting it raised but ``OUR_FAULT``.
    """
    return (yield from guarded(cause, settling(result)))


def settling(result: Any) -> Flow[Any]:
    """Return a result, awaited by the runner where it is awaitable."""
    return (yield Call(_itself, (result,))) if is_awaitable(result) else result


def guarded(cause: Cause, wished: Flow[R], *, passing: tuple[type[Exception], ...] = OUR_FAULT) -> Flow[R]:
    """Make a call of which every failure but ``passing`` is the world's.

    Raises:
        Unavailable: with ``cause``.
    """
    try:
        return (yield from wished)
    except passing:
        raise
    except Exception as error:
        raise Unavailable(cause, type(error).__name__) from error


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
            if result is not None:
                result = _settled(result)
        except Exception as raised:
            try:
                result = _again(wish, raised)
            except Exception as last:
                error = last


async def arun(flow: Flow[R], result: Any = None, error: Exception | None = None) -> R:
    """Run a flow inside an event loop; plug-ins of either colour serve.

    Args:
        flow: a new one, or one that waits.
        result: of the call it waits for.
        error: or why that failed.
    """
    while True:
        try:
            wish = flow.send(result) if error is None else flow.throw(error)
        except StopIteration as stop:
            return cast(R, stop.value)
        result, error, failed = None, None, None
        try:
            result = (wish.function if wish.twin is None else wish.twin)(*wish.arguments)
            if result is not None and is_awaitable(result):
                result = await result
        except Exception as raised:
            failed = raised
        if failed is not None:  # outside of the first error's ``except``: later ones have no part in it
            try:
                result = await _again_awaited(wish, failed)
            except Exception as last:
                error = last


def begin(flow: Flow[R]) -> R | Waiting[R]:
    """Run a flow inside an event loop as far as nothing is to be awaited; ``resume`` goes on.

    What a call raised that is no ``Exception`` is raised by ``resume``, whose caller has the flow's work in hand.
    """
    result: Any = None
    error: Exception | None = None
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
            if not isinstance(raised, Exception) or _retrying(wish, raised) is not None:
                return Waiting(flow, wish, partial(_raised, raised))
            error = raised


async def resume(waiting: Waiting[R]) -> R:
    """Go on with a flow that was begun, to its end."""
    result, error, failed = None, None, None
    try:
        result = await _made(waiting)
    except Exception as raised:
        failed = raised
    if failed is not None:
        try:
            result = await _again_awaited(waiting.wish, failed)
        except Exception as last:
            error = last
    return await arun(waiting.flow, result, error)


def is_async(function: object) -> bool:
    """Tell whether calling a function or object gives a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object's method, not callability, is asked for
    )


def is_awaitable(result: object) -> TypeGuard[Awaitable[Any]]:
    """Tell whether a result is still to be awaited."""
    kind: Any = type(result)
    return _is_awaited(kind) or (kind is GeneratorType and inspect.isawaitable(result))


@lru_cache(maxsize=256)
def _is_awaited(kind: Any) -> bool:
    """Tell whether a type is one to await; looked up once, since an ``Enum`` takes a microsecond to say no."""
    return hasattr(kind, "__await__")


async def settled(result: Any) -> Any:
    """Return a result, awaited where it is awaitable."""
    return await result if is_awaitable(result) else result


def refuse_async(**plugins: object) -> None:
    """Refuse asynchronous plug-ins where only ``run`` can serve them.

    Raises:
        ConfigurationError: one of them is asynchronous; it would be deferred for ever.
    """
    for name, plugin in plugins.items():
        if is_async(plugin):
            raise ConfigurationError(f"{name} is asynchronous, and this consumer is not")


def _again(wish: Call, error: Exception) -> Any:
    """Make the attempts left after a first failure, which is raised where none is."""
    retrying = _retrying(wish, error)
    if retrying is None:
        raise error
    return tenacity.Retrying(**retrying)(_plain, wish)


async def _made(waiting: Waiting[Any]) -> Any:
    """Return what the call of a flow that waits came to, awaited."""
    if waiting.made is not None:
        return await waiting.made()
    wish = waiting.wish
    result = (wish.twin or wish.function)(*wish.arguments)
    return await result if is_awaitable(result) else result


async def _again_awaited(wish: Call, error: Exception) -> Any:
    """Make the attempts left after a first failure, which is raised where none is."""
    retrying = _retrying(wish, error)
    if retrying is None:
        raise error
    return await tenacity.AsyncRetrying(**retrying)(_awaited, wish)


def _retrying(wish: Call, error: Exception) -> dict[str, Any] | None:
    """Return tenacity's settings for the attempts left after a first failure, ``None`` for none."""
    rule = wish.attempts
    if rule is None or rule.limit == 1 or isinstance(error, (ColourError, *rule.final)):
        return None
    waits = tenacity.wait_random_exponential(multiplier=rule.wait, max=rule.wait_max)
    return {
        "stop": tenacity.stop_after_attempt(rule.limit - 1),
        "wait": waits,
        "retry": tenacity.retry_if_exception(
            lambda raised: isinstance(raised, Exception) and not isinstance(raised, (ColourError, *rule.final))
        ),
        "reraise": True,
    }


def _plain(wish: Call) -> Any:
    """Call, and refuse a coroutine nobody would await."""
    return _settled(wish.function(*wish.arguments))


def _settled(result: Any) -> Any:
    """Return a result, and refuse a coroutine nobody would await."""
    if is_awaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise ColourError("an asynchronous plug-in or handler was given to a synchronous consumer")
    return result


async def _awaited(wish: Call) -> Any:
    """Call, or call the twin, and await what is awaitable."""
    function = wish.function if wish.twin is None else wish.twin
    result = function(*wish.arguments)
    return await result if is_awaitable(result) else result


def _raised(error: BaseException) -> NoReturn:
    """Raise what is given."""
    raise error


def _itself(result: Any) -> Any:
    """Return what is given, for a runner to await."""
    return result
