"""The pictures' numbers: rejections over time by reason; a template draws them as SVG."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mqauth.review import Index

COLUMNS: Final = 40
WIDTH: Final = 800
HEIGHT: Final = 160
SERIES: Final = 6
OTHER: Final = "other reasons"
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


def timeline(index: Index) -> Timeline:
    """Return rejections over time by reason, counted by the index itself."""
    sizes = index.reasons()
    names, totals = [name for name, _ in sizes[:SERIES]], [count for _, count in sizes[:SERIES]]
    total = sum(count for _, count in sizes)
    if len(sizes) > SERIES:
        names, totals = [*names, OTHER], [*totals, total - sum(totals)]
    span = index.span(_FOREVER)
    if span is None:
        return Timeline(names=names, totals=totals, untimed=total)
    first, last = span
    step = max((last - first) / COLUMNS, _SECOND / COLUMNS)
    columns = _columns(index.columns(first, step, COLUMNS, before=_FOREVER), names)
    highest = max((column.total() for column in columns.values()), default=0)
    bars = [bar for at in sorted(columns) for bar in _stacked(at, columns[at], highest, first + at * step)]
    untimed = max(0, total - sum(column.total() for column in columns.values()))
    return Timeline(
        names=names, totals=totals, bars=bars, highest=highest, untimed=untimed, first=first, last=last
    )


def _columns(found: Iterable[tuple[str, int, int]], names: Sequence[str]) -> dict[int, Counter[int]]:
    """Return letters of each column by series."""
    places = {name: number for number, name in enumerate(names)}
    columns: dict[int, Counter[int]] = defaultdict(Counter)
    for reason, at, count in found:
        columns[at][places.get(reason, len(names) - 1)] += count
    return columns


def _stacked(at: int, column: Counter[int], highest: int, start: float) -> Iterator[Bar]:
    """Yield a column's bars from the bottom up."""
    width, base = WIDTH / COLUMNS, float(HEIGHT)
    for series in sorted(column):
        height = HEIGHT * column[series] / highest
        base -= height
        yield Bar(round(at * width + 1, 1), round(base, 2), round(width - 2, 1), round(height, 2), series,
                  column[series], start)  # fmt: skip
