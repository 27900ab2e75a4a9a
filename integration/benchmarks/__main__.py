"""``python -m integration.benchmarks``: what ``client`` measures and the rivals, on brokers it starts, with plots.

``--write`` measures scale and flood too, and puts tables, plots and the JSON file into docs/.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from integration.benchmarks import flood, pages, plots, rivals, scale
from integration.benchmarks.client import report as text
from integration.benchmarks.client import run
from integration.documentation import ROOT
from integration.services import Service, launch_all, prepare_all

DOCS = ROOT / "docs"
SCALE_MESSAGES = 1_000_000
FORGED = 100_000


def main() -> int:
    """Bring the brokers up, or use those of the environment, measure, and print or write."""
    parser = argparse.ArgumentParser(
        prog="python -m integration.benchmarks", description=main.__doc__
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds, coarser figures"
    )
    parser.add_argument(
        "--json", action="store_true", help="print medians and ratios as JSON"
    )
    parser.add_argument(
        "--output", type=Path, help="write every figure to this JSON file"
    )
    parser.add_argument("--plots", type=Path, help="draw plots into this folder")
    parser.add_argument(
        "--write",
        action="store_true",
        help="measure scale and flood too, and write docs/",
    )
    arguments = parser.parse_args()
    prepare_all()
    running = launch_all()
    with running.rabbitmq as broker, running.kafka as log, running.redis:
        report = compare(broker, log, quick=arguments.quick)
        found = figures(report)
        if arguments.write:
            write(found, DOCS)
            found["failed"] |= more(found, run.address_of(log.url), tenth=arguments.quick)
            write(found, DOCS)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    if arguments.plots is not None:
        plots.draw(found, arguments.plots)
    print(json.dumps(report.short()) if arguments.json else "\n".join(text.lines(report)))
    for what, why in found["failed"].items():
        say(f"failed: {what}: {why}")
    return 1 if found["failed"] else 0


def figures(report: run.Report) -> dict[str, Any]:
    """Return every figure of a report, with what is known of the rivals beside it."""
    found = report.whole() | {"failed": report.failed()}
    found["packages"] |= run.versions(rivals.PACKAGES)
    if report.amount.kept:
        found["kept_bytes"]["handwritten"] = rivals.kept_bytes(report.amount.kept)
    return found


def compare(broker: Service, log: Service, *, quick: bool) -> run.Report:
    """Measure what ``python -m integration.benchmarks.client`` measures, and the rivals."""
    urls = {"rabbitmq": broker.url, "kafka": log.url}
    report = run.measure(
        run.amount_of(quick=quick), urls, others=rivals.rivals(), progress=Progress()
    )
    report.servers = {"RabbitMQ": broker.version, "Apache Kafka": log.version}
    return report


def more(found: dict[str, Any], address: str, *, tenth: bool) -> dict[str, str]:
    """Add scale and flood to the figures, and return what failed, so that one does not cost the others.

    Args:
        found: the figures.
        address: ``host:port`` of Kafka.
        tenth: a tenth of the messages.
    """
    part = 10 if tenth else 1
    failed: dict[str, str] = {}
    for name, measure in {
        "scale": partial(
            scale.measure, address, messages=SCALE_MESSAGES // part, say=say
        ),
        "flood": partial(flood.flood, FORGED // part, say=say),
    }.items():
        try:
            found[name] = measure()
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    return failed


def write(found: dict[str, Any], docs: Path) -> None:
    """Put the figures into the documentation: a JSON file, plots, and tables between the marks of two pages."""
    (docs / "performance.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    plots.draw(found, docs / "performance")
    for page in ("performance.md", "sizing.md"):
        path = docs / page
        path.write_text(pages.filled(path.read_text("utf-8"), found), "utf-8")


def say(line: str) -> None:
    """Tell people on standard error what goes on."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Tells what is measured, a line for each comparison."""

    def __init__(self) -> None:
        self._began, self._last = time.monotonic(), ""

    def __call__(self, what: str) -> None:
        """Print the first round of a comparison."""
        comparison = what.rpartition(",")[0]
        if comparison != self._last:
            self._last = comparison
            say(f"{time.monotonic() - self._began:5.0f} s  {comparison}")


if __name__ == "__main__":
    sys.exit(main())
