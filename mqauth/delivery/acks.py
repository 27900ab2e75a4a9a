"""Acks that say much in little: one for every settled delivery of a channel up to a tag.

An ack of *many* covers every delivery of the channel up to its tag (AMQP 0-9-1, ``basic.ack`` with ``multiple``),
so it must never reach past one that is not settled, nor past one that is somebody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from mqauth.judging.pipeline import Delivery

MAX_UNSENT: Final = 256
"""Settled deliveries that wait for nothing more."""


class Ack(NamedTuple):
    """One frame: ``basic.ack`` of a tag, and the deliveries it settles."""

    tag: int
    multiple: bool
    deliveries: Sequence[Delivery]


class DeliveryTags:
    """The delivery tags of one channel: which are open, which are settled and not acked yet.

    Tags count from 1 without gaps. A gap is a delivery to somebody else on this channel, whose state is not
    known here: from then on each delivery is acked by itself.

    Args:
        after: the last tag of the channel, where it is known that none up to it is unacked.
    """

    def __init__(self, after: int = 0) -> None:
        self._open: dict[int, None] = {}
        self._settled: dict[int, Delivery] = {}
        self._last = after
        self.shared = False

    @property
    def clean(self) -> int:
        """The last tag, where it is known that none up to it is unacked; else 0."""
        return 0 if self.shared or self._open or self._settled else self._last

    @property
    def waiting(self) -> int:
        """How many are settled and not acked."""
        return len(self._settled)

    @property
    def unacked(self) -> int:
        """How many the broker counts against the prefetch."""
        return len(self._open) + len(self._settled)

    def presses(self, window: int) -> bool:
        """Tell whether acks are to wait for nothing more: the broker would soon send nothing.

        Args:
            window: how many unacked deliveries the broker allows.
        """
        return self.waiting >= min(max(1, window // 2), MAX_UNSENT) or self.unacked >= window

    def opened(self, tag: int) -> None:
        """Note a delivery; nothing covers it before it is settled."""
        self.shared = self.shared or tag != self._last + 1
        self._last = max(self._last, tag)
        self._open[tag] = None

    def settled(self, tag: int, delivery: Delivery) -> None:
        """Note that an open delivery is to be acked."""
        del self._open[tag]
        self._settled[tag] = delivery

    def gone(self, tag: int) -> None:
        """Note that an open delivery was given back, or acked by its handler."""
        self._open.pop(tag, None)

    def take(self) -> list[Ack]:
        """Return the acks of everything settled, in the order to be sent, and forget it.

        One for all before the first open delivery, by the highest of their tags, which is unacked as the broker
        demands; one each for those behind it.
        """
        settled, self._settled = self._settled, {}
        first_open = 0 if self.shared else next(iter(self._open), self._last + 1)
        before = [tag for tag in settled if tag < first_open]
        acks = [Ack(tag, False, (settled[tag],)) for tag in settled if tag >= first_open]
        if before:
            whole = Ack(max(before), len(before) > 1, [settled[tag] for tag in before])
            acks.insert(0, whole)
        return acks

    def drop(self) -> list[Delivery]:
        """Return what is settled and will never be acked, and forget it."""
        settled, self._settled = self._settled, {}
        return list(settled.values())
