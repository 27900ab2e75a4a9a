"""What a consumer keeps an eye on: its prefetch window, the deaths of its connection, its health, signals."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aio_pika import exceptions

from mqauth.errors import Cause

STEADY: Final = 60.0
"""Seconds of consuming after which a connection's death is no longer in a row with the one before."""
DEATHS_IN_A_ROW: Final = 3
RESTORE_AFTER: Final = 600.0
"""Seconds of calm after which a window of 1 is opened again."""


class Window:
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

    def lost(self, now: float, error: BaseException | None) -> bool:
        """Count a loss while consuming; tell whether it was one.

        Args:
            now: monotonic seconds.
            error: why; what the broker says of the channel alone is no death in a row.
        """
        if self._since is None:
            return False
        steady = now - self._since >= STEADY
        self._since = None
        self.deaths += 1
        if not isinstance(error, exceptions.AMQPChannelError):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a consumer is doing.

    Args:
        consuming: whether the broker sends it messages now; not while everything it may hold is held.
        in_flight: deliveries being processed or held.
        deferred: how many of them are held.
        stalled_since: UTC seconds since which something is deferred, ``None`` where nothing is.
        cause: why the longest held delivery is deferred.
        detail: one line for people; also where nothing is deferred, and an error ended the consumer or the broker
            has blocked its connection.
        connection_deaths: how often channel or connection was lost.
        prefetch: the window now; 1 after three deaths in a row, and where an outage of audit or dead letters has
            lasted longer than a delivery may be held.
        unsettled: acks that could not be sent; the broker delivered again.
        party: the issuer or release authority whose keys the longest held delivery waits for.
        held: how many are deferred for each cause, and whose.
        at_limit: how many of them are at their last delivery, and stay unacked for as long as the process lives.
    """

    consuming: bool
    in_flight: int
    deferred: int
    stalled_since: float | None
    cause: Cause | None
    detail: str | None
    connection_deaths: int
    prefetch: int
    unsettled: int
    party: str | None
    held: Mapping[str, int]
    at_limit: int


class Signals:
    """Sets an event at SIGTERM and SIGINT while it is entered, where it is enabled."""

    def __init__(self, event: asyncio.Event, *, enabled: bool) -> None:
        self._event = event
        self._numbers = (signal.SIGTERM, signal.SIGINT) if enabled else ()

    def __enter__(self) -> None:
        for number in self._numbers:
            asyncio.get_running_loop().add_signal_handler(number, self._event.set)

    def __exit__(self, *_: object) -> None:
        for number in self._numbers:
            asyncio.get_running_loop().remove_signal_handler(number)
