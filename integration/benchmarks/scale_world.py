"""What the questions of scale share: processes at once, a verifier of any keys, CPU time a message."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from typing import Any, Final

from integration.benchmarks.client.rounds import Measured, Spread
from mqauth import KeySet, Verifier
from mqauth.judging.verifier import Issuer
from mqauth.testing.forge import AUDIENCE, ISSUER

Say = Callable[[str], None]
PATIENCE: Final = 60.0


def cpu_us(measured: Iterable[Measured]) -> float:
    """Return the median CPU microseconds of a message, which a busy machine moves less than the wall's."""
    return round(Spread.of(one.cpu_per_1000 * 1000 for one in measured).median, 2)


def verifier_of(keys: KeySet) -> Verifier:
    """Return a verifier of one issuer."""
    return Verifier(keys={ISSUER: Issuer(keys=keys)}, audience=AUDIENCE)


def each_process(
    counts: Iterable[int],
    target: Callable[..., None],
    arguments: tuple[Any, ...],
    say: Say,
    what: str,
) -> list[dict[str, Any]]:
    """Run so many processes at once, and return what they did together."""
    rows: list[dict[str, Any]] = []
    for count in counts:
        found = _together(count, target, arguments)
        rate = sum(one.messages for one in found) / max(one.wall for one in found)
        rows.append({what: count, "messages_a_second": round(rate)})
        say(f"scale: {rows[-1]} on {os.cpu_count()} cores")
    return rows


def _together(
    count: int, target: Callable[..., None], arguments: tuple[Any, ...]
) -> list[Measured]:
    """Start processes, and return what each measured."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(count), context.Queue()
    children = [
        context.Process(target=target, args=(barrier, results, count, *arguments))
        for _ in range(count)
    ]
    for child in children:
        child.start()
    try:
        return [results.get(timeout=2 * PATIENCE) for _ in children]
    finally:
        for child in children:
            child.join(10)
            child.kill()
