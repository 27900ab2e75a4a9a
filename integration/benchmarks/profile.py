"""``python -m integration.benchmarks.profile``: where the time of signing and judging goes, by module.

cProfile charges Python calls more than what C does in one, so that shares are told, not microseconds.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, Final

from integration.benchmarks.client.inprocess import BATCH_NAME, PLACE, Cell, Operations
from integration.benchmarks.client.workload import BATCH

_SIGNATURE: Final = ("method 'sign' of", "method 'verify' of", "_sodium.crypto_sign")
_HASHING: Final = ("hashlib", "sha256", "digest")
_SMALL: Final = 0.01


def measure(count: int = 10 * BATCH) -> dict[str, dict[str, float]]:
    """Return the share of each module in signing and in the verdict, single and in batches.

    Args:
        count: messages of each.
    """
    found: dict[str, dict[str, float]] = {}
    for name, kind in (("single", "EdDSA"), ("batch", BATCH_NAME)):
        operations = Operations(Cell(kind=kind), count)
        for operation in ("sign", "verdict"):
            found[f"{name} {operation}"] = shares(getattr(operations, operation))
    return found


def shares(work: Callable[[], object]) -> dict[str, float]:
    """Return the share of time spent in each module itself, the largest first, small ones together."""
    work()
    profiler = cProfile.Profile()
    profiler.runcall(work)
    stats: Any = pstats.Stats(profiler)
    spent: Counter[str] = Counter()
    for (file, _line, function), (_calls, _all, itself, _cumulative, _callers) in stats.stats.items():
        spent[_module(file, function)] += itself
    total = sum(spent.values())
    large = {name: round(time / total, 3) for name, time in spent.most_common() if time / total >= _SMALL}
    return large | {"other": round(1 - sum(large.values()), 3)}


def _module(file: str, function: str) -> str:
    """Return what a function belongs to."""
    if any(part in function for part in _SIGNATURE):
        return "the signature"
    if file == "~":
        return "hashing" if any(part in function for part in _HASHING) else "built-in functions"
    parts = PurePath(file).parts
    if "mqauth" in parts:
        own = parts[len(parts) - parts[::-1].index("mqauth") :]
        return ".".join(own).removesuffix(".py")
    return parts[-2] if "site-packages" in parts else f"{PurePath(file).stem} (standard library)"


def rows(found: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Return a row for each module, the dearest of the verdict first."""
    names = dict.fromkeys(name for column in reversed(found.values()) for name in column if name != "other")
    return [
        [name, *(f"{column[name]:.0%}" if name in column else "" for column in found.values())]
        for name in (*names, "other")
    ]


def main() -> None:
    """Print the shares."""
    argparse.ArgumentParser(prog="python -m integration.benchmarks.profile", description=main.__doc__).parse_args()
    print(json.dumps({"messages to": PLACE, **measure()}, indent=1))


if __name__ == "__main__":
    main()
