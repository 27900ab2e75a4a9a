"""A report as text for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from integration.benchmarks.client.contenders import BrokerResult
from integration.benchmarks.client.run import Report


def lines(report: Report) -> Iterator[str]:
    """Yield the lines of a report: in process at 1 KiB and five headers, then a table for each broker."""
    yield from _in_process(report.short()["in_process"])
    for name, found in report.brokers.items():
        yield ""
        yield from broker_lines(name, found)


def _in_process(cells: Mapping[str, Mapping[str, float | None]]) -> Iterator[str]:
    yield "in process, 1 KiB and 5 headers, us of CPU a message"
    yield f"{'':<12}{'sign':>9}{'verdict':>9}{'bare signature':>16}{'bare check':>12}"
    for name, cell in cells.items():
        figures = [_number(figure, 1) for figure in cell.values()]
        yield f"{name:<12}{figures[0]:>9}{figures[1]:>9}{figures[2]:>16}{figures[3]:>12}"


def broker_lines(name: str, found: BrokerResult) -> Iterator[str]:
    """Yield the tables of one broker."""
    for what, rounds in found.comparisons.items():
        summary = rounds.summary("bare")
        yield f"{name} {what}"
        yield f"{'':<14}{'msg/s':>10}{'ratio':>8}{'quartiles':>14}{'CPU s/1000':>12}{'p50 ms':>9}{'p99 ms':>9}"
        for contender, figures in summary.items():
            yield f"{contender:<14}{_figures(figures)}"
    yield f"{name}: bytes added a message: " + ", ".join(
        f"{who} {size:.0f}" for who, size in found.added.items()
    )


def _figures(figures: Mapping[str, Any]) -> str:
    if "failed" in figures:
        return f"  failed: {figures['failed']}"
    low, ratio, high = figures["ratio"] or (None, None, None)
    spread = "" if low is None else f"{low:.2f}-{high:.2f}"
    return (
        f"{figures['rate'][1]:>10,.0f}{_number(ratio, 2):>8}{spread:>14}{figures['cpu_s_per_1000'][1]:>12.4f}"
        f"{_number(figures.get('p50_ms'), 2):>9}{_number(figures.get('p99_ms'), 2):>9}"
    )


def _number(figure: float | None, places: int) -> str:
    return "-" if figure is None else f"{figure:.{places}f}"
