"""How many deliveries a consumer of a queue asks for at once, and when it asks for one alone."""

from __future__ import annotations

from typing import Final

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
