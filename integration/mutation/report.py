"""What became of the faults, held against what is explained in ``survivors.json``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from integration.mutation.faults import Key

FILE: Final = Path(__file__).parent / "survivors.json"
SURVIVED: Final = ""
"""What is told of a fault that no vector tells of."""
WHY: Final = {
    "equivalent": "the code does the same with it",
    "performance": "it costs time or memory, and no verdict",
    "memo": "it changes what is remembered, and what is not remembered is worked out again",
    "text": "it changes the words of a detail, a log line or a repr",
    "outside": "the profile says nothing of it; a test of ours does, where one is named",
    "form": "a message that would show it has no JSON form",
}
"""The reasons why no vector can tell."""


class Report:
    """Counts faults by module.

    Args:
        explained: how many survivors of a module and function are explained; ``None`` for all of them.
    """

    def __init__(self, explained: Mapping[tuple[str, str], int | None]) -> None:
        self._explained = dict(explained)
        self._counts: Counter[tuple[str, str]] = Counter()
        self.open: list[Key] = []

    def is_explained(self, key: Key) -> bool:
        """Tell whether it is known why no vector can tell of any fault of a function."""
        return self._explained.get(key[:2], 0) is None

    def add(self, key: Key, told: str) -> None:
        """Count a fault."""
        if told != SURVIVED:
            outcome = "killed"
        elif (left := self._explained.get(key[:2], 0)) is None:
            outcome = "explained"
        elif left:
            # By number and not by line, so that a change of form explains itself.
            self._explained[key[:2]] = left - 1
            outcome = "explained"
        else:
            outcome = "open"
            self.open.append(key)
        self._counts[key.module, outcome] += 1

    def line(self, module: str | None) -> str:
        """Return the line of a module, or of all: the score is of what is killed or open."""
        found = {
            outcome: self._count(module, outcome)
            for outcome in ("killed", "explained", "open")
        }
        tellable = found["killed"] + found["open"]
        score = 100 * found["killed"] / tellable if tellable else 100.0
        said = ", ".join(f"{count} {outcome}" for outcome, count in found.items())
        return f"{module or 'all'}: {score:.1f} % of {tellable} ({said})"

    def _count(self, module: str | None, outcome: str) -> int:
        return sum(
            count
            for (where, what), count in self._counts.items()
            if what == outcome and module in (None, where)
        )


def entries() -> list[dict[str, Any]]:
    """Return what stands in the file: of a function, how many of its faults survive, or nothing where all do."""
    found: list[dict[str, Any]] = json.loads(FILE.read_text("utf-8"))["survivors"]
    return found


def explained() -> dict[tuple[str, str], int | None]:
    """Return how many survivors are explained by module and function, ``None`` where all are."""
    found: dict[tuple[str, str], int | None] = {}
    for entry in entries():
        where, known = (
            (entry["module"], entry["function"]),
            found.get((entry["module"], entry["function"]), 0),
        )
        found[where] = (
            None if known is None or "faults" not in entry else known + entry["faults"]
        )
    return found
