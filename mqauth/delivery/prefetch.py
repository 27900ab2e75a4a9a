"""How many deliveries a consumer of a queue asks for at once, and when it asks for one alone.

Since when a consumer does not consume although it wants to, and what it waits for.
"""

from __future__ import annotations

import logging
from typing import Final

from mqauth.clock import Clock
from mqauth.errors import Cause

STEADY: Final = 60.0
"""Seconds of consuming after which a connection's death is no longer in a row with the one before."""
DEATHS_IN_A_ROW: Final = 3
RESTORE_AFTER: Final = 600.0
"""Seconds of calm after which a window of 1 is opened again."""


class Prefetch:
    """The prefetch, which falls to 1 after three connection deaths in a row.

    Each death counts against every message of the window at a quorum queue's delivery limit, so one message
    that kills the reader would take its healthy neighbours with it.

    Args:
        prefetch: deliveries at once.
    """

    def __init__(self, prefetch: int) -> None:
        self.prefetch = self.now = prefetch
        self.deaths = self.in_a_row = 0
        self.is_cautious = False
        self._since: float | None = None

    @property
    def narrowed(self) -> bool:
        """Whether the window has fallen to 1."""
        return self.now < self.prefetch

    def opened(self, now: float) -> None:
        """Note that consuming begins, at monotonic seconds, or goes on under another tag."""
        self._since = now if self._since is None else self._since

    def closed(self) -> None:
        """Note that consuming ended by our own will."""
        self._since = None

    def lost(self, now: float, *, channel_alone: bool = False) -> bool:
        """Count a loss while consuming; tell whether it was one.

        Args:
            now: monotonic seconds.
            channel_alone: the broker closed the channel and not its connection; that is no death in a row.
        """
        if self._since is None:
            return False
        steady = now - self._since >= STEADY
        self._since = None
        self.deaths += 1
        if not channel_alone:
            self.in_a_row = 1 if steady else self.in_a_row + 1
        return True

    def narrow(self) -> bool:
        """Fall to 1 after the third death in a row; tell whether it fell now."""
        if self.in_a_row < DEATHS_IN_A_ROW or self.narrowed or self.prefetch == 1:
            return False
        self.now = 1
        return True

    def caution(self) -> None:
        """Fall to 1, so that one delivery alone finds out whether a cause of all is over."""
        self.now, self.is_cautious = 1, True

    def restore(self) -> None:
        """Open the window again."""
        self.now, self.in_a_row, self.is_cautious = self.prefetch, 0, False


OUTAGE_AFTER: Final = 60.0
"""Seconds after which not consuming is a cause of its own."""
_DOWN: Final = "the connection is down"
_LOG: Final = logging.getLogger("mqauth.delivery")


class Outage:
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
        if self._began is None or self._clock.monotonic() - self._began[0] < OUTAGE_AFTER:
            return None
        return Cause.BROKER_UNAVAILABLE, self._began[1], f"cannot consume: {self._why}"
