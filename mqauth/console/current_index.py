"""The letters that pages show: the current index, how it is filled and replaced, and the overview made from it."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TYPE_CHECKING, Final, TypeVar

from mqauth.clock import Clock
from mqauth.errors import Cause, Unavailable
from mqauth.review import Group, Index, Session

if TYPE_CHECKING:
    from mqauth.console.backend import Job

WAITS: Final = (1.0, 2.0, 5.0)
"""Seconds between attempts to reach a broker that was lost; the last one is repeated."""
MAX_GROUPS: Final = 200
FRESH: Final = 1.0
"""Seconds for which the overview of an index that grows is not made again."""
COLUMNS: Final = 40
WIDTH: Final = 800
HEIGHT: Final = 160
SERIES: Final = 6
OTHER: Final = "other reasons"
_FOREVER: Final = 253_370_764_800.0
"""UTC seconds of the year 9999. A forged letter may name a later time, which no calendar has."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bar:
    """A piece of a column: place and size in the picture, its series, and the letters that it stands for."""

    x: float
    y: float
    width: float
    height: float
    series: int
    count: int
    start: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Rejections over time by reason, as the numbers of a picture that a template draws as SVG.

    Args:
        names: the series, the largest first.
        totals: letters of each series.
        bars: what to draw.
        highest: letters of the highest column.
        untimed: letters that name no time of a calendar.
        first, last: UTC seconds, ``None`` where no letter names a time.
    """

    names: Sequence[str] = ()
    totals: Sequence[int] = ()
    bars: Sequence[Bar] = ()
    highest: int = 0
    untimed: int = 0
    first: float | None = None
    last: float | None = None


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
        expected: about how many letters there are, 0 where the broker did not say.
    """

    as_of: float
    total: int
    kinds: int
    groups: Sequence[Group]
    picture: Timeline
    complete: bool
    expected: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The broker is out of reach, since so many UTC seconds and for this reason."""

    since: float
    why: str


class CurrentIndex:
    """The index that pages are made from. Any thread can ask it, and it is replaced as a whole.

    ``stale`` says that it does not hold any more, and is to be replaced by whatever is read next.

    Args:
        clock: tells how old an overview is.
    """

    def __init__(self, clock: Clock) -> None:
        self.stale = True
        self.index: Index | None = None
        self._clock = clock
        self._lock = threading.RLock()
        self._overview: Overview | None = None
        self._made = 0.0

    def show(self, index: Index | None) -> None:
        """Put an index in the place of the one before, which is deleted."""
        with self._lock:
            old, self.index, self._overview = self.index, index, None
            self.stale = False
        if old is not None and old is not index:
            old.close()

    def ask(self, question: Callable[[Index], T], otherwise: T) -> T:
        """Ask the index, if there is one; it is not replaced before it has answered."""
        with self._lock:
            return otherwise if self.index is None else question(self.index)

    def overview(self) -> Overview | None:
        """Return what the first page shows, at most a second old; ``None`` before anything was read."""
        return self.ask(self._newest_overview, None)

    def _newest_overview(self, index: Index) -> Overview:
        now, known = self._clock.monotonic(), self._overview
        if known is not None and known.complete == index.complete and known.total == index.size:
            return known
        # An index that grows has more letters every few milliseconds.
        if known is not None and not index.complete and now - self._made < FRESH:
            return known
        self._made = now
        self._overview = Overview(
            as_of=index.as_of, total=index.count(), kinds=index.kinds(), groups=index.groups(limit=MAX_GROUPS),
            picture=timeline(index), complete=index.complete, expected=index.expected,
        )  # fmt: skip
        return self._overview


class IndexReader:
    """Reads all letters into a new current index, on the thread of the backend's jobs.

    Args:
        session: the review session.
        current: where the new index goes.
        waits: seconds between attempts to reach a broker that was lost; the last one is repeated.
    """

    def __init__(self, session: Session, current: CurrentIndex, *, waits: Sequence[float] = WAITS) -> None:
        self.lost: Lost | None = None
        self._session, self._current, self._waits = session, current, tuple(waits)
        self._closed = threading.Event()

    def close(self) -> None:
        """Cancel whatever is read from now on."""
        self._closed.set()

    def read(self, job: Job) -> None:
        """Read all letters. While the broker is out of reach, try again until it is back or the job is cancelled.

        Raises:
            Unavailable: cancelled before the broker was reached.
        """
        if self._closed.is_set():
            job.cancelled.set()
        waits = chain(self._waits, repeat(self._waits[-1]))
        while not self._reached(job):
            if job.cancelled.wait(next(waits)):
                raise Unavailable(Cause.DEAD_LETTER_UNAVAILABLE, "not reached before it was cancelled")

    def _reached(self, job: Job) -> bool:
        """Read all letters, and tell whether the broker was there."""
        try:
            self._read(job)
        except Unavailable as error:
            self.lost = self.lost or Lost(since=self._session.clock.now(), why=str(error))
            return False
        self.lost = None
        return True

    def _read(self, job: Job) -> None:
        """Read all letters into a new index. It is shown at once where the current one no longer holds."""
        fresh = Index(self._session.clock.now())

        def progress(seen: int) -> None:
            job.seen, job.total, self.lost = seen, max(seen, fresh.expected), None
            if self._current.stale:
                self._current.show(fresh)

        try:
            self._session.survey(progress=progress, cancelled=job.cancelled, into=fresh)
        finally:
            if fresh.complete or self._current.index is fresh:
                self._current.show(fresh)
                self._current.stale = not fresh.complete
            else:
                fresh.close()


def timeline(index: Index) -> Timeline:
    """Return rejections over time by reason; the index itself counts them."""
    sizes = index.reasons()
    names, totals = [name for name, _ in sizes[:SERIES]], [count for _, count in sizes[:SERIES]]
    total = sum(count for _, count in sizes)
    if len(sizes) > SERIES:
        names, totals = [*names, OTHER], [*totals, total - sum(totals)]
    span = index.span(_FOREVER)
    if span is None:
        return Timeline(names=names, totals=totals, untimed=total)
    first, last = span
    step = max(last - first, 1.0) / COLUMNS
    columns = _columns(index.columns(first, step, COLUMNS, before=_FOREVER), names)
    highest = max((column.total() for column in columns.values()), default=0)
    bars = [bar for at in sorted(columns) for bar in _stacked(at, columns[at], highest, first + at * step)]
    untimed = max(0, total - sum(column.total() for column in columns.values()))
    return Timeline(
        names=names, totals=totals, bars=bars, highest=highest, untimed=untimed, first=first, last=last
    )


def _columns(found: Iterable[tuple[str, int, int]], names: Sequence[str]) -> dict[int, Counter[int]]:
    """Return the letters of each column by series; reasons that have no series of their own are in the last."""
    places = {name: number for number, name in enumerate(names)}
    columns: dict[int, Counter[int]] = defaultdict(Counter)
    for reason, at, count in found:
        columns[at][places.get(reason, len(names) - 1)] += count
    return columns


def _stacked(at: int, column: Counter[int], highest: int, start: float) -> Iterator[Bar]:
    """Yield the bars of a column from the bottom up."""
    width, base = WIDTH / COLUMNS, float(HEIGHT)
    for series in sorted(column):
        height = HEIGHT * column[series] / highest
        base -= height
        yield Bar(round(at * width + 1, 1), round(base, 2), round(width - 2, 1), round(height, 2), series,
                  column[series], start)  # fmt: skip
