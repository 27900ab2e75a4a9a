"""Little patience for plug-ins below ``enforce``: one that failed or was slow is not asked again for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from mqauth.clock import Clock
from mqauth.errors import Cause, Unavailable
from mqauth.flow import Flow, is_awaitable

R = TypeVar("R")
PATIENCE: Final = 0.25
"""Seconds that a plug-in may take before it is left alone for a while."""
PAUSE: Final = 30.0
"""Seconds for which it is not asked again."""
_TRANSIENT: Final = frozenset((Cause.CLAIM_HELD, Cause.KEY_PENDING, Cause.APPEND_TIME_UNAVAILABLE))


class Breaker:
    """Keeps a plug-in that failed or was slow from being asked again for a while.

    Args:
        cause: of the error that is raised in its place.
        clock: measures it.
    """

    def __init__(self, cause: Cause, clock: Clock) -> None:
        self._cause = cause
        self._monotonic = clock.monotonic
        self._closed_from = float("-inf")

    def refuse(self) -> None:
        """Refuse to ask during the pause.

        Raises:
            Unavailable: with the cause.
        """
        if self._monotonic() < self._closed_from:
            raise Unavailable(self._cause, f"it failed or was slow within the last {PAUSE:g} s")

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a plug-in, or refuse to; what is awaitable is measured until it was awaited."""
        self.refuse()
        began = self._monotonic()
        try:
            result = function(*args)
        except Exception as error:
            self._note(began, error)
            raise
        if is_awaitable(result):
            return self._awaited(result, began)
        self._note(began)
        return result

    def watch(self, flow: Flow[R]) -> Flow[R]:
        """Run a flow that asks a plug-in, or refuse to."""
        self.refuse()
        began = self._monotonic()
        try:
            found = yield from flow
        except Exception as error:
            self._note(began, error)
            raise
        self._note(began)
        return found

    async def _awaited(self, result: Any, began: float) -> Any:
        try:
            found = await result
        except Exception as error:
            self._note(began, error)
            raise
        self._note(began)
        return found

    def _note(self, began: float, error: Exception | None = None) -> None:
        now = self._monotonic()
        failed = error is not None and getattr(error, "cause", None) not in _TRANSIENT
        if failed or now - began > PATIENCE:
            self._closed_from = now + PAUSE
