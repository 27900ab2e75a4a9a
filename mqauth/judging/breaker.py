"""Little patience for plug-ins below ``enforce``: one that failed or was slow is not asked again for a while."""

from __future__ import annotations

from typing import Final, TypeVar

from mqauth.clock import Clock
from mqauth.errors import Cause, Unavailable
from mqauth.flow import Flow

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

    def _note(self, began: float, error: Exception | None = None) -> None:
        now = self._monotonic()
        failed = error is not None and getattr(error, "cause", None) not in _TRANSIENT
        if failed or now - began > PATIENCE:
            self._closed_from = now + PAUSE
