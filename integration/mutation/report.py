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
        explained: the reason by key, or by module and function.
    """

    def __init__(self, explained: Mapping[tuple[Any, ...], str]) -> None:
        self._explained = explained
        self._counts: Counter[tuple[str, str]] = Counter()
        self.open: list[Key] = []

    def is_explained(self, key: Key) -> bool:
        """Tell whether it is known why no vector can tell of a fault."""
        return key in self._explained or key[:2] in self._explained

    def add(self, key: Key, told: str) -> None:
        """Count a fault."""
        if told != SURVIVED:
            outcome = "killed"
        elif self.is_explained(key):
            outcome = "explained"
        else:
            outcome = "open"
            self.open.append(key)
        self._counts[key.module, outcome] += 1

    def line(self, module: str | None) -> str:
        """Return the line of a module, or of all: the score is of what is killed or open."""
        found = {outcome: self._count(module, outcome) for outcome in ("killed", "explained", "open")}
        tellable = found["killed"] + found["open"]
        score = 100 * found["killed"] / tellable if tellable else 100.0
        said = ", ".join(f"{count} {outcome}" for outcome, count in found.items())
        return f"{module or 'all'}: {score:.1f} % of {tellable} ({said})"

    def _count(self, module: str | None, outcome: str) -> int:
        return sum(
            count for (where, what), count in self._counts.items() if what == outcome and module in (None, where)
        )


def entries() -> list[dict[str, Any]]:
    """Return what stands in the file: of a function, all its faults, or those that are listed."""
    found: list[dict[str, Any]] = json.loads(FILE.read_text("utf-8"))["survivors"]
    return found


def explained() -> dict[tuple[Any, ...], str]:
    """Return the reasons by key, or by module and function where they hold of all faults of one."""
    found: dict[tuple[Any, ...], str] = {}
    for entry in entries():
        where = entry["module"], entry["function"]
        for fault in entry.get("faults", ()):
            found[Key(*where, *fault)] = entry["why"]
        if "faults" not in entry:
            found[where] = entry["why"]
    return found
