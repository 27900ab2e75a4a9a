"""Reading letters onto the shelf: shown while it goes on, and taken up again where the broker was lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, Final

from mqauth import review
from mqauth.clock import Clock
from mqauth.console.job import Job
from mqauth.console.shelf import Shelf
from mqauth.errors import Cause, Unavailable
from mqauth.flow import Flow
from mqauth.review import Index, LetterBox

WAITS: Final = (1.0, 2.0, 5.0)
"""Seconds between attempts to reach a broker that was lost; the last one goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The broker is out of reach.

    Args:
        since: UTC seconds.
        why: one line.
    """

    since: float
    why: str


class Reader:
    """Reads letter boxes onto a shelf, on the desk's thread.

    Args:
        box: the letters.
        run: runs a flow to its end.
        shelf: where the index goes.
        clock: says as of when.
        waits: seconds between attempts to reach a broker that was lost; the last one goes on.
    """

    def __init__(
        self,
        box: LetterBox,
        run: Callable[[Flow[Any]], Any],
        shelf: Shelf,
        *,
        clock: Clock,
        waits: Sequence[float] = WAITS,
    ) -> None:
        self.lost: Lost | None = None
        self._box, self._run, self._shelf, self._clock = box, run, shelf, clock
        self._waits = tuple(waits)
        self._closed = threading.Event()

    def close(self) -> None:
        """Let nothing be begun any more."""
        self._closed.set()

    def read(self, job: Job) -> None:
        """Read all letters; while the broker cannot be reached, try again until it can or the job is cancelled.

        Raises:
            Unavailable: cancelled before the broker was reached.
        """
        waits = chain(self._waits, repeat(self._waits[-1]))
        while not self._tried(job):
            if job.cancelled.wait(next(waits)):
                raise Unavailable(Cause.DEAD_LETTER_UNAVAILABLE, "not reached before it was cancelled")

    def read_what_is_left(self, job: Job) -> None:
        """Read all letters after an act, whose cancel is none of the reading."""
        job.begin_anew()
        if self._closed.is_set():
            job.cancelled.set()
        self.read(job)

    def _tried(self, job: Job) -> bool:
        """Read all letters, and tell whether the broker was there."""
        try:
            self._survey(job)
        except Unavailable as error:
            self.lost = self.lost or Lost(since=self._clock.now(), why=str(error))
            return False
        self.lost = None
        return True

    def _survey(self, job: Job) -> None:
        """Read all letters into a new index, shown at once where there is none that still holds."""
        fresh = Index(self._clock.now())

        def progress(seen: int) -> None:
            job.seen, job.total, self.lost = seen, max(seen, fresh.expected), None
            if self._shelf.stale:
                self._shelf.show(fresh)

        try:
            self._run(review.fill(fresh, self._box, progress=progress, cancelled=job.cancelled))
        finally:
            if fresh.complete or self._shelf.index is fresh:
                self._shelf.show(fresh)
                self._shelf.stale = not fresh.complete
            else:
                fresh.close()
