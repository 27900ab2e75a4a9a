"""``python -m integration.benchmarks.rollout_cost``: what a rollout costs a message, and that none costs nothing.

``--before FOLDER`` names a checkout without the feature: A and B take turns, each round in a process of its own.
Figures are CPU microseconds of one message from receipt to settlement, with a handler that does nothing, and the
instructions of Python that it takes, which other work on the machine does not change.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from datetime import date, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Final

from integration.benchmarks.client.inprocess import PLACE, Cell, Operations, judge_all
from integration.benchmarks.client.workload import BATCH, Refusals, guard

ROOT: Final = Path(__file__).resolve().parents[2]
BEFORE, NONE, ELSEWHERE, OBSERVED = "before", "no rollout", "another destination observed", "observed"
VARIANTS: Final = (NONE, ELSEWHERE, OBSERVED)
KINDS: Final = ("EdDSA", "batch64")


def main() -> None:
    """Measure in alternating rounds, and print a table of medians, ratios and quartiles."""
    parser = argparse.ArgumentParser(
        prog="python -m integration.benchmarks.rollout_cost", description=main.__doc__
    )
    parser.add_argument("--before", type=Path, help="a checkout without the feature")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--messages", type=int, default=4096, help="of a round")
    parser.add_argument("--child", nargs=2, metavar=("KIND", "VARIANT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        kind, variant = chosen.child
        print(microseconds(kind, variant, chosen.messages) if chosen.messages else instructions(kind, variant))
        return
    trees = {variant: ROOT for variant in VARIANTS}
    if chosen.before is not None:
        trees = {BEFORE: chosen.before.resolve()} | trees
    print("| token | variant | instructions | us of CPU a message | ratio (quartiles) |\n|---|---|---|---|---|")
    for kind in KINDS:
        found: dict[str, list[float]] = {variant: [] for variant in trees}
        for _ in range(chosen.rounds):
            for variant, tree in trees.items():
                found[variant].append(_round(tree, kind, variant, chosen.messages))
        first = next(iter(found))
        for variant, times in found.items():
            ratios = [one / other for one, other in zip(times, found[first], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            steps = int(_round(trees[variant], kind, variant, 0))
            print(
                f"| {kind} | {variant} | {steps:,} | {statistics.median(times):.1f}"
                f" | {middle:.3f} ({low:.3f}-{high:.3f}) |",
                flush=True,
            )


def _round(tree: Path, kind: str, variant: str, messages: int) -> float:
    """Return the figure of one round, measured by a process of its own on the code of a checkout."""
    argv = [sys.executable, "-P", __file__, "--child", kind, variant, "--messages", str(messages)]
    ran = subprocess.run(
        argv, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True, check=True, cwd=tree
    )
    return float(ran.stdout)


def microseconds(kind: str, variant: str, messages: int) -> float:
    """Return CPU microseconds of one message; the first half of the messages only warms up."""
    operations = Operations(Cell(kind=kind), 2 * messages)
    pipeline, letters, signed = _pipeline(operations, variant), Refusals(), operations.signed
    judge_all(pipeline, signed[:messages], letters)
    began = time.process_time()
    judge_all(pipeline, signed[messages:], letters)
    taken = time.process_time() - began
    letters.check()
    return taken / messages * 1e6


def _pipeline(operations: Operations, variant: str) -> Any:
    pipeline = guard(operations._forge, PLACE)
    if variant not in (ELSEWHERE, OBSERVED):
        return pipeline
    return _on_a_rung(pipeline, PLACE if variant == OBSERVED else "kafka:elsewhere")


def instructions(kind: str, variant: str) -> int:
    """Return how many instructions of Python one message takes, once some have been judged."""
    operations = Operations(Cell(kind=kind), 2 * BATCH)
    pipeline, letters, count = _pipeline(operations, variant), Refusals(), 0

    def note(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return note

    judge_all(pipeline, operations.signed[: BATCH + 1], letters)
    sys.settrace(note)
    try:
        judge_all(pipeline, operations.signed[BATCH + 1 : BATCH + 2], letters)
    finally:
        sys.settrace(None)
    letters.check()
    return count


def _on_a_rung(pipeline: Any, place: str) -> Any:
    from mqauth import Pipeline
    from mqauth.judging.rollout import WEEK, Rollout, RolloutEntry, Rung

    today = date.today()
    entry = RolloutEntry(
        destinations=(place,), rung=Rung.OBSERVE, since=today, until=today + timedelta(days=30), owner="bench",
        window=WEEK,
    )  # fmt: skip
    return Pipeline(
        verifier=pipeline.verifier, policy=pipeline.policy, replay=pipeline.replay, rollout=Rollout([entry])
    )


if __name__ == "__main__":
    main()
