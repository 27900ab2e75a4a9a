"""How a remote key cache is, on request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of a key cache. Ages are in seconds, ``None`` where the event never happened.

    Args:
        source: the URL of the key set, without its query.
        state: ``"fresh"``; ``"stale"``, old but in use; or ``"unavailable"``, no set may be used.
        version: the version of the set in use.
        keys: the number of keys in it.
        age: the time since the last good answer was asked for.
        serves_for: the time until the set may no longer be used, unless a good answer comes.
        attempt_age: the time since the last attempt.
        failing_for: the time since the first failed attempt of the present outage.
        last_failure: the failure of the last attempt, ``None`` after a good answer.
        held: kids that are kept only because their loss or change was seen just once.
        skipped: the keys of the last document that cannot be used, one line each.
        counters: since the start, the ``attempts`` and what came of them, by the first word of each ``Note``.
    """

    source: str
    state: Literal["fresh", "stale", "unavailable"]
    version: str | None
    keys: int
    age: float | None
    serves_for: float | None
    attempt_age: float | None
    failing_for: float | None
    last_failure: str | None
    held: tuple[str, ...]
    skipped: tuple[str, ...]
    counters: Mapping[str, int]
