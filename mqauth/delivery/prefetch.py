"""How many deliveries a consumer of a queue asks for at once, and since when it gets none."""

from __future__ import annotations

import logging
from typing import Final

from mqauth.clock import Clock
from mqauth.errors import Cause

STEADY: Final = 60.0
"""Seconds of consuming after which a lost connection is no longer in a row with the one before."""
DEATHS_IN_A_ROW: Final = 3
RESTORE_AFTER: Final = 600.0
"""Seconds without a loss after which a window of 1 is opened again."""
OUTAGE_AFTER: Final = 60.0
"""Seconds without consuming after which health names that as a cause."""
_DOWN: Final = "the connection is down"
_LOG: Final = logging.getLogger("mqauth.delivery")


class Prefetch:
    """The prefetch, which falls to 1 after three lost connections in a row.

    A message that kills its reader takes the connection with it, and a quorum queue counts that against the
    delivery limit of every message in the window. With a window of 1 its healthy neighbours are not counted.

    Args:
        prefetch: deliveries at once.

    Attributes:
        now: the prefetch to ask for now.
        deaths: how often channel or connection was lost while consuming.
        in_a_row: how many connections were lost in a row.
        is_cautious: whether it fell to 1 to find out with one delivery whether an outage is over.
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
        """Note that consuming begins at ``now``, monotonic seconds, or goes on under another tag."""
        self._since = now if self._since is None else self._since

    def closed(self) -> None:
        """Note that we ended consuming ourselves."""
        self._since = None

    def lost(self, now: float, *, channel_alone: bool = False) -> bool:
        """Count a loss; return whether we were consuming.

        Args:
            now: monotonic seconds.
            channel_alone: whether the broker closed the channel and not its connection, which is no death in a
            row.
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
        """Fall to 1 after the third loss in a row; return whether it fell now."""
        if self.in_a_row < DEATHS_IN_A_ROW or self.narrowed or self.prefetch == 1:
            return False
        self.now = 1
        return True

    def caution(self) -> None:
        """Fall to 1, so that one delivery alone finds out whether an outage is over."""
        self.now, self.is_cautious = 1, True

    def restore(self) -> None:
        """Open the whole window again."""
        self.now, self.in_a_row, self.is_cautious = self.prefetch, 0, False


class Outage:
    """The time for which a consumer wants to consume, and cannot.

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
        """Whether it does not consume, and wants to."""
        return self._began is not None

    def begin(self) -> None:
        """Note that it does not consume, and wants to."""
        self._began, self._why = (self._clock.monotonic(), self._clock.now()), _DOWN

    def end(self) -> None:
        """Note that it consumes again."""
        self._began = None

    def failed(self, error: BaseException | None) -> None:
        """Log why it could not consume, and that it is tried again."""
        self._why = str(error) or type(error).__name__
        _LOG.warning("cannot consume %s now, trying again: %s", self._queue, self._why)

    def long(self) -> tuple[Cause, float, str] | None:
        """Return cause, begin (UTC seconds) and detail of an outage of a minute or more; ``None`` before."""
        if self._began is None or self._clock.monotonic() - self._began[0] < OUTAGE_AFTER:
            return None
        return Cause.BROKER_UNAVAILABLE, self._began[1], f"cannot consume: {self._why}"
