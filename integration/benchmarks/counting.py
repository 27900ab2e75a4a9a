"""What a piece of work takes, counted and not timed: other work on the machine does not change it.

Instructions of Python by module, of the thread that works alone. What a call into C costs is not in them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

import mqauth

_PACKAGE: Final = Path(mqauth.__file__).parent


def instructions(work: Callable[[], Any]) -> Counter[str]:
    """Return how many instructions of Python some work takes, by module of mqauth; all others are ``other``."""
    found: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _argument: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            found[frame.f_code.co_filename] += 1
        return note

    sys.settrace(note)
    try:
        work()
    finally:
        sys.settrace(None)
    counted: Counter[str] = Counter()
    for path, count in found.items():
        counted[_module(path)] += count
    return counted


def _module(path: str) -> str:
    file = Path(path)
    return str(file.relative_to(_PACKAGE)) if file.is_relative_to(_PACKAGE) else "other"


def told(counts: dict[str, Counter[str]], records: int) -> str:
    """Return a table of instructions a record, a column for each kind of work, the largest of the last one first.

    Args:
        counts: what ``instructions`` returned, by kind of work.
        records: of each.
    """
    last = list(counts.values())[-1]
    rows = [
        f"| {module} | " + " | ".join(f"{each[module] / records:.0f}" for each in counts.values()) + " |"
        for module, count in last.most_common()
        if count >= records
    ]
    total = "| all | " + " | ".join(f"{each.total() / records:.0f}" for each in counts.values()) + " |"
    return "\n".join([f"| module | {' | '.join(counts)} |", "|---|" + "---:|" * len(counts), *rows, total])
