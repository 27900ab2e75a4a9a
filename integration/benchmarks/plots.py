"""The plots of docs/performance.md, as SVG that is the same for the same figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from integration.benchmarks.client.inprocess import HEADERS, SIZES

_CONTENDERS: Final = (
    "pipelined",
    "carried",
    "message",
    "batch",
    "handwritten",
    "joserfc",
    "celery",
)
_COLOURS: Final = dict(
    zip(
        _CONTENDERS,
        ("#9a9a9a", "#4d4d4d", "#1f6fb4", "#0b3d66", "#d98032", "#c2a23a", "#7a4f9a"),
        strict=True,
    )
)
_SHARED: Final = 64
_STEP: Final = 0.11
_SALT: Final = {"svg.hashsalt": "mqauth", "svg.fonttype": "none", "font.size": 9}


def draw(found: Mapping[str, Any], folder: Path) -> None:
    """Draw every plot for which there are figures.

    Args:
        found: the JSON file.
        folder: made where it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_SALT):
        _save(_ratios(found), folder / "ratios.svg")
        _save(_parts(found), folder / "in-process.svg")
        _save(_sizes(found), folder / "sizes.svg")
        if "scale" in found:
            _save(_scale(found["scale"]), folder / "scale.svg")


def _save(figure: Figure, path: Path) -> None:
    """Write a plot without the date of the day."""
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")


def _ratios(found: Mapping[str, Any]) -> Figure:
    """Return dots: each contender's rate as a share of the bare client's, with quartiles."""
    works = [(broker, what) for broker in ("rabbitmq", "kafka") for what in ("publish", "consume", "consume_100us")
             if what in found.get(broker, {})]  # fmt: skip
    figure = Figure(figsize=(9, 3.8))
    axes = figure.subplots()
    for place, who in enumerate(_CONTENDERS):
        dots = [
            (at, found[broker][what].get(who, {}).get("ratio"))
            for at, (broker, what) in enumerate(works)
        ]
        _dots(
            axes, who, [(at + (place - 3) * _STEP, ratio) for at, ratio in dots if ratio]
        )
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.grid(axis="y", which="both", linewidth=0.3)
    axes.set_xticks(
        range(len(works)),
        [f"{broker}\n{what.replace('_', ' ')}" for broker, what in works],
    )
    axes.set_ylabel("rate as a share of the bare client's")
    axes.legend(
        ncols=len(_CONTENDERS),
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        frameon=False,
    )
    return figure


def _dots(axes: Any, who: str, dots: Sequence[tuple[float, Sequence[float]]]) -> None:
    """Draw one contender's dots."""
    at = [place for place, _ in dots]
    medians = [ratio[1] for _, ratio in dots]
    errors = [
        [ratio[1] - ratio[0] for _, ratio in dots],
        [ratio[2] - ratio[1] for _, ratio in dots],
    ]
    axes.errorbar(
        at, medians, yerr=errors, fmt="o", color=_COLOURS[who], label=who, elinewidth=1.2
    )


def _parts(found: Mapping[str, Any]) -> Figure:
    """Return stacked bars: the signature itself, and everything else, for signing and for the verdict."""
    cells = found["short"]["in_process"]
    figure = Figure(figsize=(9, 3.2))
    told = (
        ("sign", "sign_us", "signature_sign_us"),
        ("verdict", "verify_us", "signature_verify_us"),
    )
    for axes, (title, whole, part) in zip(figure.subplots(1, 2), told, strict=True):
        bare = [
            cell[part] / (_SHARED if kind.startswith("batch") else 1)
            for kind, cell in cells.items()
        ]
        rest = [
            max(0.0, cell[whole] - inner)
            for cell, inner in zip(cells.values(), bare, strict=True)
        ]
        axes.bar(list(cells), bare, color="#9a9a9a", label="signature")
        axes.bar(list(cells), rest, bottom=bare, color="#1f6fb4", label="everything else")
        axes.set_title(f"{title}, us a message")
        axes.tick_params(axis="x", rotation=30)
        axes.legend(frameon=False)
    return figure


def _sizes(found: Mapping[str, Any]) -> Figure:
    """Return lines: the verdict by body size, and by number of headers."""
    figure = Figure(figsize=(9, 3.2))
    by_size, by_headers = figure.subplots(1, 2)
    for kind in found["short"]["in_process"]:
        _line(by_size, kind, SIZES, [_verdict(found, kind, size, 5) for size in SIZES])
        _line(
            by_headers,
            kind,
            HEADERS,
            [_verdict(found, kind, 1024, count) for count in HEADERS],
        )
    for axes in (by_size, by_headers):
        axes.set_ylim(bottom=0)
    by_size.set_xscale("log")
    by_size.set_title("verdict, us, by bytes of body")
    by_headers.set_title("verdict, us, by number of headers")
    by_headers.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _line(axes: Any, label: str, xs: Iterable[float], ys: Iterable[float | None]) -> None:
    """Draw one line through the points there are."""
    points = [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None]
    axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=label)


def _verdict(
    found: Mapping[str, Any], kind: str, size: int, headers: int
) -> float | None:
    """Return the median of one field."""
    figures: Mapping[str, Sequence[float]] = found["in_process"].get(
        f"{kind} {size} {headers} verdict", {}
    )
    return figures["cpu_s_per_1000"][1] * 1000 if "cpu_s_per_1000" in figures else None


def _scale(found: Mapping[str, Any]) -> Figure:
    """Return lines that ought to be level: the CPU time of a verdict when there is more of something."""
    figure = Figure(figsize=(9, 2.8))
    told = (
        ("messages", "messages, in batches of 64"),
        ("producers", "producers"),
        ("keys", "keys in the set"),
    )
    for axes, (name, title) in zip(figure.subplots(1, 3), told, strict=True):
        _line(
            axes,
            name,
            [row[name] for row in found[name]],
            [row["verdict_us"] for row in found[name]],
        )
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_title(title)
    figure.axes[0].set_ylabel("verdict, us of CPU")
    return figure
