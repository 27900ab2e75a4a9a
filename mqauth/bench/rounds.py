"""Alternating rounds: A, B, C, A, B, C, ... so that a machine that slows down slows all; medians, ratios, spread.

Knows nothing of messages but how many there were. A ratio is taken within each round, between neighbours in
time, and its median is told; so it holds still where the rates do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

Seconds: TypeAlias = Callable[[], float]
Progress: TypeAlias = Callable[[str], None]
_MILLISECONDS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One round of one variant.

    Args:
        messages: how many.
        wall: seconds they took.
        cpu: CPU seconds of this process, all its threads.
        latencies: seconds of each message by itself, where they were taken.
    """

    messages: int
    wall: float
    cpu: float
    latencies: tuple[float, ...] = ()

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.wall

    @property
    def microseconds(self) -> float:
        """Microseconds a message."""
        return self.wall / self.messages * 1e6

    @property
    def cpu_per_1000(self) -> float:
        """CPU seconds per 1,000 messages."""
        return self.cpu / self.messages * 1000


class Stopwatch:
    """Measures one round between ``start`` and ``stop``.

    Args:
        wall: reads a monotonic clock, seconds.
        cpu: reads the CPU time of this process, seconds.
    """

    def __init__(self, wall: Seconds = time.perf_counter, cpu: Seconds = time.process_time) -> None:
        self._clocks = wall, cpu
        self._began = 0.0, 0.0

    def start(self) -> None:
        """Begin to measure."""
        wall, cpu = self._clocks
        self._began = wall(), cpu()

    def stop(self, messages: int) -> Measured:
        """Return what was measured since ``start``."""
        wall, cpu = self._clocks
        return Measured(messages=messages, wall=wall() - self._began[0], cpu=cpu() - self._began[1])


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to do the same work: its name, and what does one round of it."""

    name: str
    run: Callable[[], Measured]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some figures, and their quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, figures: Iterable[float]) -> Spread:
        """Return the spread of at least one figure; between two figures it is interpolated."""
        ordered = sorted(figures)
        return cls(*(quantile(ordered, share) for share in (0.25, 0.5, 0.75)))

    def as_list(self) -> list[float]:
        """Return lower quartile, median, upper quartile."""
        return [self.low, self.median, self.high]


@dataclass(slots=True)
class Rounds:
    """What alternating rounds found.

    Args:
        measured: the rounds of each variant, in the order of the variants; equally many for each.
        failed: why a variant has no more rounds.
    """

    measured: dict[str, list[Measured]]
    failed: dict[str, str]

    def rate(self, name: str) -> float | None:
        """Return a variant's median of messages a second, ``None`` where it did not come to an end."""
        found = self.measured.get(name)
        return Spread.of(one.rate for one in found).median if found else None

    def ratio(self, name: str, base: str) -> Spread | None:
        """Return the rate of a variant as a share of another's, round by round."""
        ours, theirs = self.measured.get(name), self.measured.get(base)
        if not ours or not theirs:
            return None
        return Spread.of(a.rate / b.rate for a, b in zip(ours, theirs, strict=True))

    def summary(self, base: str) -> dict[str, dict[str, object]]:
        """Return all figures of each variant, for JSON; those that failed say why."""
        told: dict[str, dict[str, object]] = {name: self._told(name, base) for name in self.measured}
        return told | {name: {"failed": why} for name, why in self.failed.items()}

    def _told(self, name: str, base: str) -> dict[str, object]:
        """Return the figures of one variant."""
        rounds = self.measured[name]
        ratio = self.ratio(name, base)
        figures: dict[str, object] = {
            "rate": _rounded(Spread.of(one.rate for one in rounds), 1),
            "us": _rounded(Spread.of(one.microseconds for one in rounds), 3),
            "cpu_s_per_1000": _rounded(Spread.of(one.cpu_per_1000 for one in rounds), 5),
            "ratio": None if ratio is None else _rounded(ratio, 3),
        }
        taken = sorted(latency for one in rounds for latency in one.latencies)
        if taken:
            figures |= {f"p{n}_ms": round(quantile(taken, n / 100) * _MILLISECONDS, 3) for n in (50, 99)}
        return figures


def alternate(
    variants: Sequence[Variant],
    rounds: int,
    *,
    warm_up: int = 1,
    progress: Progress = lambda _: None,
    enough: Callable[[], bool] = lambda: False,
) -> Rounds:
    """Run every variant in turn, round after round.

    A round that raises is tried once more; a variant that raises again is told as failed, and the others go on.

    Args:
        variants: in the order they take turns.
        rounds: measured rounds of each, at least 1.
        warm_up: rounds before them that do not count.
        progress: told the name of each round before it is run.
        enough: asked before each measured round but the first; once it says so there are no more.
    """
    found = Rounds({variant.name: [] for variant in variants}, {})
    for number in range(warm_up + rounds):
        if number > warm_up and enough():
            break
        for variant in variants:
            if variant.name not in found.failed:
                progress(variant.name)
                _take(variant, found, counts=number >= warm_up)
    return found


def _take(variant: Variant, found: Rounds, *, counts: bool) -> None:
    """Run one round and keep what it measured; one contender that breaks does not cost the others theirs."""
    for last in (False, True):
        try:
            measured = variant.run()
        except Exception as error:
            if last:
                found.failed[variant.name] = f"{type(error).__name__}: {error}"
                del found.measured[variant.name]
            continue
        if counts:
            found.measured[variant.name].append(measured)
        return


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of sorted figures, interpolated (Hyndman and Fan, 1996, type 7).

    Args:
        ordered: at least one, ascending.
        share: 0 to 1.
    """
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def rates(
    found: Rounds, names: Iterable[str], base: str, pairs: Mapping[str, tuple[str, str]]
) -> dict[str, object]:
    """Return the short form: median rates of some variants, and all ratios.

    Args:
        found: the rounds.
        names: variants whose rate is told, ``None`` for one that failed.
        base: what every other variant is held against.
        pairs: further ratios: their name to variant and base.
    """
    wanted = {name: (name, base) for name in (*found.measured, *found.failed) if name != base}
    wanted.update(pairs)
    ratios = {name: _median(found.ratio(*pair)) for name, pair in wanted.items()}
    told: dict[str, object] = {name: _short(found.rate(name)) for name in names}
    return told | {"ratio": ratios}


def _median(spread: Spread | None) -> float | None:
    return None if spread is None else round(spread.median, 3)


def _short(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 1)


def _rounded(spread: Spread, places: int) -> list[float]:
    return [round(figure, places) for figure in spread.as_list()]
