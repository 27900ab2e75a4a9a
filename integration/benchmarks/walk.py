"""How many functions of ours one accepted message enters.

Counted from receipt to settlement, in process, with a handler that does nothing, once the first messages have
been judged. What is imported from elsewhere or written in C is not counted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple

import mqauth
from integration.benchmarks.client.inprocess import PLACE, Cell, Operations, judge_all
from integration.benchmarks.client.workload import BATCH, Refusals, guard

_OURS: Final = str(Path(mqauth.__file__).parent)
_BEFORE: Final = BATCH + BATCH // 2


class Walk(NamedTuple):
    """What one message entered: distinct functions, distinct modules, and calls in all."""

    functions: int
    modules: int
    calls: int


def walked(kind: str) -> Walk:
    """Return the walk of one accepted message.

    Args:
        kind: an algorithm, or ``batch64``, as of ``integration.benchmarks.client.inprocess.Cell``.
    """
    operations = Operations(Cell(kind=kind), 2 * BATCH)
    pipeline, letters, entered = (
        guard(operations._forge, PLACE),
        Refusals(),
        list[CodeType](),
    )

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(_OURS):
            entered.append(frame.f_code)

    judge_all(pipeline, operations.signed[:_BEFORE], letters)
    sys.setprofile(note)
    try:
        judge_all(pipeline, operations.signed[_BEFORE : _BEFORE + 1], letters)
    finally:
        sys.setprofile(None)
    letters.check()
    return Walk(
        len(set(entered)), len({code.co_filename for code in entered}), len(entered)
    )
