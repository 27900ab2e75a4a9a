"""The figures as Markdown tables, between the marks of a page: ``<!-- table NAME -->`` and ``<!-- end -->``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

_MARKED: Final = re.compile(r"(<!-- table ([\w -]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_SCALE: Final = frozenset(
    ("messages", "producers", "keys", "processes", "partitions", "group")
)
_OPTIONAL: Final = frozenset(("rabbitmq", "kafka", "flood", "scale"))
_CONTENDERS: Final = (
    "bare",
    "pipelined",
    "carried",
    "message",
    "batch",
    "handwritten",
    "joserfc",
    "celery",
)
_HEADS: Final = {
    "verdict_us": "verdict, us of CPU",
    "sign_us": "sign, us of CPU",
    "rss_mib": "process, MiB",
    "read_ms": "reading the set, ms",
    "document_kib": "document, KiB",
    "messages_a_second": "messages a second",
    "cpu_us": "us of CPU a message",
}
_PLOTS: Final = {
    "plot ratios": "Rates as a share of the bare client's, by contender",
    "plot in-process": "The signature and everything else, in microseconds",
    "plot sizes": "The verdict by body size and by number of headers",
    "plot scale": "The verdict's CPU time when there is more of something",
}


def filled(page: str, found: Mapping[str, Any]) -> str:
    """Return a page with its tables made anew; one whose figures are not there stays as it is.

    Args:
        page: Markdown with marks.
        found: the JSON file.

    Raises:
        KeyError: a mark names no table.
    """

    def made(marked: re.Match[str]) -> str:
        there = _is_measured(marked[2], found)
        return f"{marked[1]}{table(marked[2], found)}{marked[3]}" if there else marked[0]

    return _MARKED.sub(made, page)


def _is_measured(name: str, found: Mapping[str, Any]) -> bool:
    """Tell whether there are figures for a table."""
    part = "scale" if name in _SCALE else name.removeprefix("plot ")
    return part not in _OPTIONAL or part in found


def table(name: str, found: Mapping[str, Any]) -> str:
    """Return one table.

    Raises:
        KeyError: there is none of this name.
    """
    return "".join(f"{line}\n" for line in tables()[name](name, found))


def tables() -> dict[str, Callable[[str, Mapping[str, Any]], Iterator[str]]]:
    """Return what makes each table, by its name."""
    return {
        "machine": _machine, "in process": _in_process, "rabbitmq": _broker, "kafka": _broker, "flood": _flood,
        **dict.fromkeys(_SCALE, _scale), **dict.fromkeys(_PLOTS, _plot),
    }  # fmt: skip


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table: text to the left, figures to the right."""
    yield f"| {' | '.join(head)} |"
    yield f"|---|{'---:|' * (len(head) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _machine(_name: str, found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the figures were measured on."""
    told = found["machine"]
    software = {"Python": told["python"]} | found["servers"] | found["packages"]
    versions = ", ".join(f"{name} {version}" for name, version in software.items())
    yield f"{found['when'][:10]}: {told['cpu']}, {told['cores']} cores, {told['system']}; {versions}."


def _in_process(_name: str, found: Mapping[str, Any]) -> Iterator[str]:
    """Yield microseconds a message at 1 KiB and five headers, beside the bare signature's."""
    head = [
        "us a message",
        "sign",
        "of it the signature",
        "the rest",
        "verdict",
        "of it the signature",
        "the rest",
    ]
    yield from _grid(
        head, (_around(kind, cell) for kind, cell in found["short"]["in_process"].items())
    )


def _around(kind: str, cell: Mapping[str, float]) -> list[str]:
    """Return one row; in a batch 64 messages share one signature."""
    share = 64 if kind.startswith("batch") else 1
    row = [kind]
    for whole, part in (
        ("sign_us", "signature_sign_us"),
        ("verify_us", "signature_verify_us"),
    ):
        figures = (cell[whole], cell[part] / share, cell[whole] - cell[part] / share)
        row += [f"{figure:.1f}" for figure in figures]
    return row


def _broker(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    """Yield rates and ratios of one broker."""
    comparisons = found[name]
    works = [
        what for what in ("publish", "consume", "consume_100us") if what in comparisons
    ]
    spelt = {
        "publish": "publish",
        "consume": "consume",
        "consume_100us": "consume, handler 100 us",
    }
    head = ["", *(f"{spelt[what]}: msg/s, ratio (quartiles)" for what in works)]
    head += ["CPU s per 1,000: publish", "consume", "latency p50, p99 ms", "bytes added"]
    present = [who for who in _CONTENDERS if who in comparisons["publish"]]
    yield from _grid(
        head, ([f"`{who}`", *_row(comparisons, who, works)] for who in present)
    )


def _row(comparisons: Mapping[str, Any], who: str, works: Iterable[str]) -> Iterator[str]:
    """Yield the fields of one contender."""
    for what in works:
        yield _rate(comparisons[what][who])
    for what in ("publish", "consume"):
        found = comparisons[what][who]
        yield "failed" if "failed" in found else f"{found['cpu_s_per_1000'][1]:.3f}"
    paced = comparisons.get("paced", {}).get(who, {})
    yield (
        f"{paced['p50_ms']:.1f}, {paced['p99_ms']:.1f}" if "p50_ms" in paced else "failed"
    )
    yield f"{comparisons['added_bytes'][who]:.0f}"


def _rate(found: Mapping[str, Any]) -> str:
    """Return rate and ratio."""
    if "failed" in found:
        return "failed"
    low, median, high = found["ratio"] or (1.0, 1.0, 1.0)
    return f"{found['rate'][1]:,.0f}, {median:.2f} ({low:.2f}-{high:.2f})"


def _flood(_name: str, found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a flood of forged batch tokens cost."""
    told = found["flood"]
    rows = {
        "forged batch tokens, all `signature_invalid`": f"{told['tokens']:,}",
        "seconds in all": f"{told['seconds']:.0f}",
        "us a forged token: first 500, median, last 500": _figures(told["us_a_token"]),
        "CPU seconds per 1,000": f"{told['cpu_s_per_1000']:.3f}",
        "growth of the process at its peak, MiB": f"{told['peak_rss_grown_mib']:.1f}",
        "bytes kept a forged token": f"{told['kept_bytes_a_token']:.1f}",
        "us an honest sibling: before, amid (best), after": _figures(told["honest_us"]),
        "the honest batch's token is still remembered": "yes"
        if told["remembered"]
        else "NO",
    }
    yield from _grid(["flood", ""], rows.items())


def _plot(name: str, _found: Mapping[str, Any]) -> Iterator[str]:
    """Yield a plot."""
    yield f"![{_PLOTS[name]}](performance/{name.removeprefix('plot ')}.svg)"


def _figures(named: Mapping[str, float]) -> str:
    """Return some microseconds in a row."""
    return ", ".join(f"{figure:.0f}" for figure in named.values())


def _scale(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    """Yield one question of scale."""
    rows = found["scale"][name]
    yield from _grid(
        [_HEADS.get(key, key) for key in rows[0]],
        ([f"{figure:,}" for figure in row.values()] for row in rows),
    )
