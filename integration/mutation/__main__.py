"""Put every small fault into the named modules, or into all; print the scores, and what nobody has explained."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from integration.mutation import MODULES
from integration.mutation.report import SURVIVED, Report, explained
from integration.mutation.trial import Trials, faults_of


def main() -> int:
    """Run the command; 1 where a survivor is not explained, 2 where it cannot run."""
    chosen = _parser().parse_args()
    os.nice(19)
    trials, report = Trials(), Report(explained())
    if not trials.sound():
        print(
            "the vectors tell of a fault where there is none: run tests/test_vectors.py"
        )
        return 2
    _run(trials, report, chosen.modules or MODULES, again=chosen.again)
    print(report.line(None))
    return 1 if report.open else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m integration.mutation", description=__doc__
    )
    parser.add_argument(
        "modules",
        nargs="*",
        metavar="MODULE",
        help="below mqauth: wire.claims",
        type=_module,
    )
    parser.add_argument("--again", action="store_true", help="try what is explained, too")
    return parser


def _module(name: str) -> str:
    if name not in MODULES:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(MODULES)}")
    return name


def _run(trials: Trials, report: Report, modules: Sequence[str], *, again: bool) -> None:
    for module in modules:
        begun, tried = time.monotonic(), []
        for fault in faults_of(module):
            if again or not report.is_explained(fault.key):
                tried.append(fault)
            else:
                report.add(fault.key, SURVIVED)
        for fault, told in trials.run(tried):
            report.add(fault.key, told)
            if told == SURVIVED and not report.is_explained(fault.key):
                state = "open" if report.open[-1:] == [fault.key] else "explained"
                where = " | ".join(map(str, fault.key))
                print(f"  {state}: {where} | {fault.text}", flush=True)
        print(report.line(module), f"in {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
