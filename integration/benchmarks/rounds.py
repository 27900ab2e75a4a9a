"""Alternating rounds: A, B, A, B, ... so that a machine that slows down slows both; medians and their ratio."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One round of one variant: messages, wall seconds and CPU seconds of this process, all threads."""

    messages: int
    wall: float
    cpu: float

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.wall

    @property
    def cpu_per_thousand(self) -> float:
        """CPU seconds per 1,000 messages."""
        return self.cpu / self.messages * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Bare client against wrapped, over all rounds."""

    name: str
    bare: tuple[Measured, ...]
    wrapped: tuple[Measured, ...]

    def as_dict(self) -> dict[str, object]:
        """Return medians, spread and the ratio of the medians."""
        bare, wrapped = _summary(self.bare), _summary(self.wrapped)
        ratio = float(wrapped["rate"]) / float(bare["rate"])
        return {"name": self.name, "bare": bare, "wrapped": wrapped, "ratio": round(ratio, 3)}


class Stopwatch:
    """Measures one round between ``start`` and ``stop``."""

    def __init__(self) -> None:
        self._wall = self._cpu = 0.0

    def start(self) -> None:
        """Begin to measure."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self, messages: int) -> Measured:
        """Return what was measured since ``start``."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return Measured(messages=messages, wall=wall, cpu=cpu)


def alternate(name: str, rounds: int, bare: Callable[[], Measured], wrapped: Callable[[], Measured]) -> Comparison:
    """Run both variants in turn, after one unmeasured round of each.

    Args:
        name: stands in the table.
        rounds: measured rounds of each, at least 1.
        bare: runs one round with the client as it is.
        wrapped: runs one round through mqauth.
    """
    bare(), wrapped()
    pairs = [(bare(), wrapped()) for _ in range(rounds)]
    return Comparison(name=name, bare=tuple(a for a, _ in pairs), wrapped=tuple(b for _, b in pairs))


def table(comparisons: list[Comparison]) -> Iterator[str]:
    """Yield the lines of a table for people."""
    head = ("what", "bare msg/s", "wrapped msg/s", "ratio", "bare CPU s/1000", "wrapped CPU s/1000")
    yield "{:<18} {:>12} {:>14} {:>7} {:>16} {:>19}".format(*head)
    for comparison in comparisons:
        found = comparison.as_dict()
        bare, wrapped = _summary(comparison.bare), _summary(comparison.wrapped)
        yield (
            f"{comparison.name:<18} {bare['rate']:>12,.0f} {wrapped['rate']:>14,.0f} {found['ratio']:>7}"
            f" {bare['cpu_per_1000']:>16.4f} {wrapped['cpu_per_1000']:>19.4f}"
        )


def as_json(comparisons: list[Comparison]) -> str:
    """Return every comparison as JSON."""
    return json.dumps([comparison.as_dict() for comparison in comparisons], indent=2)


def _summary(measured: tuple[Measured, ...]) -> dict[str, float]:
    """Return the medians of one variant and the spread of its rate."""
    rates = [one.rate for one in measured]
    return {
        "rate": round(statistics.median(rates), 1),
        "rate_min": round(min(rates), 1),
        "rate_max": round(max(rates), 1),
        "cpu_per_1000": round(statistics.median(one.cpu_per_thousand for one in measured), 5),
    }
