"""The index that pages are made from, whole or still being filled, and what the first page shows of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from mqauth.clock import Clock
from mqauth.console.pictures import Timeline, timeline
from mqauth.review import Group, Index

MAX_GROUPS: Final = 200
FRESH: Final = 1.0
"""Seconds for which the overview of an index that grows is not made anew."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What the first page shows of an index.

    Args:
        as_of: UTC seconds.
        total: open letters.
        kinds: number of groups.
        groups: the largest of them.
        picture: rejections over time.
        complete: whether all letters were read.
        expected: letters the broker said there were, about; 0 where it did not say.
    """

    as_of: float
    total: int
    kinds: int
    groups: Sequence[Group]
    picture: Timeline
    complete: bool
    expected: int


class Shelf:
    """One index, asked from any thread, and replaced as a whole.

    ``stale`` says that it does not hold any more, and is to be replaced by whatever is read next.

    Args:
        clock: says when an overview is old.
    """

    def __init__(self, clock: Clock) -> None:
        self.stale = True
        self._clock = clock
        self._lock = threading.RLock()
        self._index: Index | None = None
        self._overview: Overview | None = None
        self._made = 0.0

    @property
    def index(self) -> Index | None:
        """The index; for the thread that replaces it."""
        return self._index

    def show(self, index: Index | None) -> None:
        """Put an index in the place of the one before, which is forgotten."""
        with self._lock:
            old, self._index, self._overview = self._index, index, None
            self.stale = False
        if old is not None and old is not index:
            old.close()

    def ask(self, question: Callable[[Index], T], otherwise: T) -> T:
        """Ask the index, if there is one."""
        with self._lock:
            return otherwise if self._index is None else question(self._index)

    def overview(self) -> Overview | None:
        """Return what the first page shows, at most a second old; ``None`` before anything was read."""
        return self.ask(self._newest, None)

    def _newest(self, index: Index) -> Overview:
        """Return the overview, made anew where letters have come since."""
        now, known = self._clock.monotonic(), self._overview
        if known is not None and known.complete == index.complete and known.total == index.size:
            return known
        if known is not None and not index.complete and now - self._made < FRESH:
            return known
        self._overview, self._made = _overview(index), now
        return self._overview


def _overview(index: Index) -> Overview:
    """Return what the first page shows of an index as it is now."""
    return Overview(
        as_of=index.as_of, total=index.count(), kinds=index.kinds(), groups=index.groups(limit=MAX_GROUPS),
        picture=timeline(index), complete=index.complete, expected=index.expected,
    )  # fmt: skip
