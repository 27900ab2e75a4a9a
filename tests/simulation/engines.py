"""Random schedules of facts for the pure engines, in no time but their own; a failing one is cut down and printed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, NamedTuple

from tests.simulation.log_play import Broken, LogPlay

LONGEST: Final = 60
"""Facts of a schedule, at most."""


class Fact(NamedTuple):
    """What happens next: its name, and a number that decides what the name leaves open."""

    name: str
    number: int


LOG_FACTS: Final = {
    "append": 8, "turn": 16, "begin": 14, "step": 12, "wait": 7, "outage": 2, "heal": 3, "rebalance": 2, "pause": 1,
    "others": 1, "commits_go": 2, "user_pauses": 1, "keys_changed": 1, "arm": 1, "stop": 1, "kill": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Engine:
    """An engine and how it is played.

    Args:
        name: for people.
        facts: how often each kind of fact comes.
        play: makes a play of a seed.
    """

    name: str
    facts: dict[str, int]
    play: Callable[[int, Callable[[str], None] | None], Any]


LOG: Final = Engine("log", LOG_FACTS, LogPlay)
ENGINES: Final = {"log": LOG}


class Schedule(NamedTuple):
    """The facts of a seed, or what is left of them."""

    seed: int
    facts: Sequence[Fact]


_DRAW: Final = random.Random(0)


def schedule(seed: int, engine: Engine = LOG) -> Schedule:
    """Return all of a seed's schedule."""
    _DRAW.seed(seed)
    names, weights = list(engine.facts), list(accumulate(engine.facts.values()))
    count = 10 + _DRAW.getrandbits(16) % (LONGEST - 10)
    chosen = _DRAW.choices(names, cum_weights=weights, k=count)
    numbers = _DRAW.randbytes(2 * count)
    return Schedule(seed, [Fact(name, numbers[2 * at] << 8 | numbers[2 * at + 1]) for at, name in enumerate(chosen)])


def broken(
    played: Schedule, engine: Engine = LOG, tell: Callable[[str], None] | None = None
) -> tuple[str, str] | None:
    """Play a schedule; return the invariant that it breaks and how, ``None`` where all hold."""
    play = engine.play(played.seed, tell)
    try:
        for name, number in played.facts:
            if tell is not None:
                tell(f"          {name} {number}")
            getattr(play, name)(number)
        play.finish()
    except Broken as found:
        return found.invariant, str(found)
    except Exception as error:
        if tell is not None:
            raise
        return "nothing is raised", repr(error)
    return None


def reduced(failing: Schedule, invariant: str, engine: Engine = LOG) -> Schedule:
    """Return a schedule that breaks the same invariant by as few facts as can be found."""
    facts = list(failing.facts)
    size = max(1, len(facts) // 2)
    while size:
        for at in range(0, len(facts), size):
            shorter = [*facts[:at], *facts[at + size :]]
            found = broken(Schedule(failing.seed, shorter), engine)
            if found is not None and found[0] == invariant:
                facts = shorter
                break
        else:
            size //= 2
    return Schedule(failing.seed, facts)
