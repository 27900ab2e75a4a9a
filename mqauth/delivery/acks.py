"""Delivery tags of one channel, and the fewest acks that settle them.

An ack with ``multiple`` covers every delivery of the channel up to its tag (AMQP 0-9-1, ``basic.ack``). So its tag
must never reach past a delivery that is not settled, or that is somebody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from mqauth.judging.pipeline import Delivery

MAX_UNSENT: Final = 256
"""Number of settled deliveries at which their acks are sent at once."""


class Ack(NamedTuple):
    """One frame: ``basic.ack`` of a tag, and the deliveries that it settles."""

    tag: int
    multiple: bool
    deliveries: Sequence[Delivery]


class DeliveryTags:
    """The delivery tags of one channel: those that are open, and those that are settled and not acked yet.

    Attributes:
        shared: whether somebody else consumes on this channel too, or has.
    """

    def __init__(self) -> None:
        self._open: dict[int, None] = {}
        self._settled: dict[int, Delivery] = {}
        self._last = 0
        self.shared = False

    @property
    def waiting(self) -> int:
        """How many are settled and not acked."""
        return len(self._settled)

    @property
    def unacked(self) -> int:
        """How many the broker counts against the prefetch."""
        return len(self._open) + len(self._settled)

    def presses(self, window: int) -> bool:
        """Return whether acks must be sent at once, since the broker would soon send nothing.

        Args:
            window: how many unacked deliveries the broker allows.
        """
        return self.waiting >= min(max(1, window // 2), MAX_UNSENT) or self.unacked >= window

    def opened(self, tag: int) -> None:
        """Add a delivery; no ack covers it before it is settled."""
        # Tags count from 1 without gaps. A gap is a delivery to somebody else on this channel, and we cannot know
        # whether that one is settled: from then on each of ours is acked by itself.
        self.shared = self.shared or tag != self._last + 1
        self._last = max(self._last, tag)
        self._open[tag] = None

    def settled(self, tag: int, delivery: Delivery) -> None:
        """Note that an open delivery is to be acked."""
        del self._open[tag]
        self._settled[tag] = delivery

    def gone(self, tag: int) -> None:
        """Note that an open delivery needs no ack: it was given back, or acked by its handler."""
        self._open.pop(tag, None)

    def take(self) -> list[Ack]:
        """Return the acks of everything settled, in the order to be sent, and forget it.

        One ack is for all deliveries before the first open one, by the highest tag of ours, since the broker
        closes the channel for a tag that is not unacked. Each delivery behind it has an ack of its own.
        """
        settled, self._settled = self._settled, {}
        first_open = 0 if self.shared else next(iter(self._open), self._last + 1)
        before = [tag for tag in settled if tag < first_open]
        acks = [Ack(tag, False, (settled[tag],)) for tag in settled if tag >= first_open]
        if before:
            acks.insert(0, Ack(max(before), len(before) > 1, [settled[tag] for tag in before]))
        return acks

    def drop(self) -> list[Delivery]:
        """Return what is settled and will never be acked, since the channel ended, and forget it."""
        settled, self._settled = self._settled, {}
        return list(settled.values())
