"""Cuts a failing plan down to the fewest faults with which the same invariant still breaks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final

from tests.simulation.faults import Fault
from tests.simulation.runner import Play, Result, run

GRAVEST: Final = (
    "no forgery is handled", "no honest message is condemned", "handled once",
    "no message over the limit without a letter",
    "a letter has a record", "no protocol error", "no consumer dies", "a stop leaves no claim", "a stop ends",
    "a clean-up is not cut short", "every honest message is handled",
)  # fmt: skip
"""Invariants, the gravest first; what is not here comes last."""
MOST: Final = 150
"""Plays that a reduction may take."""


def reduced(failed: Result, play_one: Callable[[Play], Result] = run, most: int = MOST) -> Result:
    """Return a result that breaks the gravest invariant of ``failed``, with as few faults as can be found.

    Args:
        failed: what is to be reduced.
        play_one: plays.
        most: plays that it may take.
    """
    best, left = failed, most
    target = gravest(failed.broken)

    def try_it(play: Play) -> bool:
        nonlocal best, left
        if left <= 0:
            return False
        left -= 1
        result = play_one(play)
        if target not in result.broken:
            return False
        best = result
        return True

    size = max(1, len(best.play.faults) // 2)
    while size:
        if not any(try_it(replace(best.play, faults=faults)) for faults in _without(best.play.faults, size)):
            size //= 2
        else:
            size = min(size, max(1, len(best.play.faults) // 2))
        if not best.play.faults:
            break
    for settings in _plainer(best.play):
        try_it(settings)
    return best


def gravest(broken: Collection[str]) -> str:
    """Return the gravest of some broken invariants."""
    known = [name for name in GRAVEST if name in broken]
    return known[0] if known else min(broken)


def _without(faults: Sequence[Fault], size: int) -> list[list[Fault]]:
    """Return the faults without each part of a size."""
    return [[*faults[:at], *faults[at + size :]] for at in range(0, len(faults), size)]


def _plainer(play: Play) -> list[Play]:
    """Return the play without hostile messages, and the same without batches."""
    settings = play.settings
    return [
        replace(play, settings=replace(settings, hostile=0)),
        replace(play, settings=replace(settings, hostile=0, batch=1)),
    ]
