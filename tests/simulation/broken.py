"""The exception for an invariant of the engines' simulation that does not hold."""

from __future__ import annotations


class Broken(Exception):
    """An invariant does not hold.

    Args:
        invariant: its name.
        text: what breaks it.
    """

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant
