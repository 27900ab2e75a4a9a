"""The pictures' numbers: rejections over time by reason; a template draws them as SVG."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mqauth.review import Group, Index

COLUMNS: Final = 40
WIDTH: Final = 800
HEIGHT: Final = 160
SERIES: Final = 6
OTHER: Final = "other reasons"
_PAGE: Final = 1000
_SECOND: Final = 1.0
_FOREVER: Final = 253_370_764_800.0
"""UTC seconds of the year 9999: later ones are of a forged letter."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A piece of a column: place and size in the picture, its series, and how many letters it stands for."""

    x: float
    y: float
    width: float
    height: float
    series: int
    count: int
    start: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Columns over time; ``first`` and ``last`` are UTC seconds, ``None`` where no letter names a time.

    Args:
        names: the series, the largest first.
        totals: letters of each.
        bars: what to draw.
        highest: letters of the highest column.
        untimed: letters that name no time a calendar has.
    """

    names: Sequence[str] = ()
    totals: Sequence[int] = ()
    bars: Sequence[Bar] = ()
    highest: int = 0
    untimed: int = 0
    first: float | None = None
    last: float | None = None


def timeline(index: Index, groups: Sequence[Group]) -> Timeline:
    """Return rejections over time by reason.

    Args:
        index: read once from end to end, a page at a time.
        groups: all groups of it.
    """
    sizes = Counter[str]()
    for group in groups:
        sizes[group.reason] += group.count
    names = [name for name, _ in sizes.most_common(SERIES)]
    totals = [sizes[name] for name in names]
    if len(sizes) > SERIES:
        names, totals = [*names, OTHER], [*totals, sizes.total() - sum(totals)]
    edges = [at for group in groups for at in (group.first, group.last) if at is not None and _real(at)]
    if not edges:
        return Timeline(names=names, totals=totals, untimed=sizes.total())
    first, last = min(edges), max(edges)
    step = max((last - first) / COLUMNS, _SECOND / COLUMNS)
    columns, untimed = _columns(index, names, first, step)
    highest = max((column.total() for column in columns.values()), default=0)
    bars = [bar for at in sorted(columns) for bar in _stacked(at, columns[at], highest, first + at * step)]
    return Timeline(
        names=names, totals=totals, bars=bars, highest=highest, untimed=untimed, first=first, last=last
    )


def _columns(index: Index, names: Sequence[str], first: float, step: float) -> tuple[dict[int, Counter[int]], int]:
    """Return letters of each column by series, and how many have no place in time."""
    places = {name: number for number, name in enumerate(names)}
    columns: dict[int, Counter[int]] = defaultdict(Counter)
    untimed = 0
    for reason, moment in _moments(index):
        if moment is None or not _real(moment):
            untimed += 1
            continue
        at = min(COLUMNS - 1, max(0, int((moment - first) / step)))
        columns[at][places.get(reason, len(names) - 1)] += 1
    return columns, untimed


def _moments(index: Index) -> Iterator[tuple[str, float | None]]:
    """Yield reason and time of every letter."""
    after = 0
    while rows := index.page(after=after, limit=_PAGE):
        after = rows[-1].number
        for row in rows:
            yield row.reason, row.time


def _stacked(at: int, column: Counter[int], highest: int, start: float) -> Iterator[Bar]:
    """Yield a column's bars from the bottom up."""
    width, base = WIDTH / COLUMNS, float(HEIGHT)
    for series in sorted(column):
        height = HEIGHT * column[series] / highest
        base -= height
        yield Bar(round(at * width + 1, 1), round(base, 2), round(width - 2, 1), round(height, 2), series,
                  column[series], start)  # fmt: skip


def _real(moment: float) -> bool:
    """Tell whether a time is one that a calendar has."""
    return 0 <= moment < _FOREVER
