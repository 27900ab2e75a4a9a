"""Cuts a failing plan down to the fewest faults with which the same invariant still breaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from tests.simulation.faults import Fault
from tests.simulation.runner import Play, Result, run

MOST: Final = 150
"""Plays that a reduction may take."""


def reduced(failed: Result, play_one: Callable[[Play], Result] = run, most: int = MOST) -> Result:
    """Return a result that breaks an invariant of ``failed``, with as few faults as can be found.

    Args:
        failed: what is to be reduced.
        play_one: plays.
        most: plays that it may take.
    """
    best, left = failed, most

    def try_it(play: Play) -> bool:
        nonlocal best, left
        if left <= 0:
            return False
        left -= 1
        result = play_one(play)
        if not result.broken & failed.broken:
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


def _without(faults: Sequence[Fault], size: int) -> list[list[Fault]]:
    """Return the faults without each part of a size."""
    return [[*faults[:at], *faults[at + size :]] for at in range(0, len(faults), size)]


def _plainer(play: Play) -> list[Play]:
    """Return the play with less of what is no fault."""
    settings = play.settings
    return [
        replace(play, settings=replace(settings, hostile=0)),
        replace(play, settings=replace(settings, hostile=0, batch=1)),
    ]
