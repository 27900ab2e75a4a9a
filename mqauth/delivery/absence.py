"""Since when a consumer does not consume although it wants to, and what it waits for."""

from __future__ import annotations

import logging
from typing import Final

from mqauth.clock import Clock
from mqauth.errors import Cause

LONG: Final = 60.0
"""Seconds after which not consuming is a cause of its own."""
_DOWN: Final = "the connection is down"
_LOG: Final = logging.getLogger("mqauth.delivery")


class Absence:
    """The time that a consumer takes to consume again.

    Args:
        queue: its queue's name.
        clock: tells the time.
    """

    def __init__(self, queue: str, clock: Clock) -> None:
        self._queue = queue
        self._clock = clock
        self._began: tuple[float, float] | None = None
        self._why = _DOWN

    @property
    def lasts(self) -> bool:
        """Whether it is not consuming, and wants to."""
        return self._began is not None

    def begin(self) -> None:
        """Note that it is not consuming, and wants to."""
        self._began, self._why = (self._clock.monotonic(), self._clock.now()), _DOWN

    def end(self) -> None:
        """Note that it consumes again."""
        self._began = None

    def failed(self, error: BaseException | None) -> None:
        """Log what kept it from consuming, and that it is tried again."""
        self._why = str(error) or type(error).__name__
        _LOG.warning("cannot consume %s now, trying again: %s", self._queue, self._why)

    def long(self) -> tuple[Cause, float, str] | None:
        """Return the cause, since when (UTC seconds) and what it waits for, once it has been so for a minute."""
        if self._began is None or self._clock.monotonic() - self._began[0] < LONG:
            return None
        return Cause.BROKER_UNAVAILABLE, self._began[1], f"cannot consume: {self._why}"
