"""Little patience for plug-ins below ``enforce``: one that failed or was slow is not asked again for a while."""

from __future__ import annotations

from typing import Final, TypeVar

from mqauth.clock import Backoff, Clock, Pause
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
        self._pause = Pause(Backoff(first=PAUSE, longest=PAUSE))

    def watch(self, flow: Flow[R]) -> Flow[R]:
        """Run a flow that asks a plug-in.

        Raises:
            Unavailable: with the cause, during the pause.
            Exception: what the flow raised.
        """
        began, failed = self._monotonic(), False
        if began < self._pause.until:
            raise Unavailable(self._cause, f"it failed or was slow within the last {PAUSE:g} s")
        try:
            return (yield from flow)
        except Exception as error:
            failed = getattr(error, "cause", None) not in _TRANSIENT
            raise
        finally:
            now = self._monotonic()
            if failed or now - began > PATIENCE:
                self._pause.failed(began, now)
