"""Alternating rounds of variants (A, B, C, A, B, C, ...), and medians, ratios and quartiles over them.

On a machine that becomes slower, all variants become slower together. A ratio is taken within each round, between
neighbours in time, and reported as the median over the rounds; so it is steady where rates are not.
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
        cpu: CPU seconds of this process, in all its threads.
        latencies: seconds of each single message, if they were measured.
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

    def __init__(
        self, wall: Seconds = time.perf_counter, cpu: Seconds = time.process_time
    ) -> None:
        self._clocks = wall, cpu
        self._began = 0.0, 0.0

    def start(self) -> None:
        """Begin to measure."""
        wall, cpu = self._clocks
        self._began = wall(), cpu()

    def stop(self, messages: int) -> Measured:
        """Return what was measured since ``start``."""
        wall, cpu = self._clocks
        return Measured(
            messages=messages, wall=wall() - self._began[0], cpu=cpu() - self._began[1]
        )


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to do the work: its name, and a function that does one round of it."""

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
        """Return the spread of at least one figure, interpolated between figures."""
        ordered = sorted(figures)
        return cls(*(quantile(ordered, share) for share in (0.25, 0.5, 0.75)))

    def as_list(self) -> list[float]:
        """Return lower quartile, median, upper quartile."""
        return [self.low, self.median, self.high]


@dataclass(slots=True)
class Rounds:
    """The result of alternating rounds.

    Args:
        measured: the rounds of each variant, in the order of the variants; equally many for each.
        failed: by variant, the error that ended its rounds.
    """

    measured: dict[str, list[Measured]]
    failed: dict[str, str]

    def rate(self, name: str) -> float | None:
        """Return a variant's median of messages a second, ``None`` if it failed."""
        found = self.measured.get(name)
        return Spread.of(one.rate for one in found).median if found else None

    def ratio(self, name: str, base: str) -> Spread | None:
        """Return a variant's rate divided by another's, round by round; ``None`` if one of them failed."""
        ours, theirs = self.measured.get(name), self.measured.get(base)
        if not ours or not theirs:
            return None
        return Spread.of(a.rate / b.rate for a, b in zip(ours, theirs, strict=True))

    def summary(self, base: str) -> dict[str, dict[str, object]]:
        """Return all figures of each variant as JSON values, or the error of one that failed."""
        told: dict[str, dict[str, object]] = {
            name: self._told(name, base) for name in self.measured
        }
        return told | {name: {"failed": why} for name, why in self.failed.items()}

    def _told(self, name: str, base: str) -> dict[str, object]:
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
            figures |= {
                f"p{n}_ms": round(quantile(taken, n / 100) * _MILLISECONDS, 3)
                for n in (50, 99)
            }
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

    A round that raises is tried once more. A variant that raises again has failed, and the others go on.

    Args:
        variants: in the order in which they take turns.
        rounds: measured rounds of each, at least 1.
        warm_up: rounds before them that do not count.
        progress: called with the name of each variant before its round.
        enough: asked before each measured round but the first; once it returns true, there are no more rounds.
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
    """Return the short form: the median rates of some variants, and ratios of all.

    Args:
        found: the rounds.
        names: variants whose rate is included, ``None`` for one that failed.
        base: the variant that every other one is compared with.
        pairs: further ratios: name to variant and base.
    """
    wanted = {
        name: (name, base) for name in (*found.measured, *found.failed) if name != base
    }
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
