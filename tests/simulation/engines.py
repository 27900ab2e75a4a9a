"""Random schedules of facts for the pure engines, in virtual time; a failing one is cut down and printed."""

from __future__ import annotations

import gc
import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, NamedTuple

from tests.simulation.broken import Broken
from tests.simulation.log_play import LogPlay
from tests.simulation.queue_play import QueuePlay

LONGEST: Final = 40
"""Facts of a schedule, at most."""
SHARD: Final = 2000
"""Schedules that one process plays at a time."""
COLLECTED: Final = 200
"""Schedules after which garbage is collected."""
SHOWN: Final = 10
"""Failing schedules that are cut down and printed."""


class Fact(NamedTuple):
    """One fact: its name, and a number that decides its details."""

    name: str
    number: int


LOG_FACTS: Final = {
    "append": 7, "turn": 8, "begin": 8, "step": 8, "round": 16, "wait": 4, "outage": 3, "heal": 4, "rebalance": 2,
    "pause": 1, "others": 1, "commits_go": 2, "user_pauses": 1, "keys_changed": 2, "arm": 1, "stop": 1,
    "stop_late": 2, "kill": 1, "grow": 1,
}  # fmt: skip
QUEUE_FACTS: Final = {
    "publish": 7, "deliver": 8, "step": 14, "answer": 10, "round": 14, "rest": 2, "wait": 5, "outage": 3,
    "heal": 4, "end": 3, "hear": 2, "reopen": 3, "drop": 1, "mute": 1, "rivals": 4, "keys_changed": 2, "ring": 3,
    "renew": 2, "stop": 1, "again": 2, "stall": 1, "die": 1,
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
QUEUE: Final = Engine("queue", QUEUE_FACTS, QueuePlay)
ENGINES: Final = {"log": LOG, "queue": QUEUE}


class Schedule(NamedTuple):
    """The facts of a seed, or some of them."""

    seed: int
    facts: Sequence[Fact]


_DRAW: Final = random.Random(0)


def schedule(seed: int, engine: Engine = LOG) -> Schedule:
    """Return the whole schedule of a seed."""
    _DRAW.seed(seed)
    names, weights = list(engine.facts), list(accumulate(engine.facts.values()))
    count = 10 + _DRAW.getrandbits(16) % (LONGEST - 10)
    chosen = _DRAW.choices(names, cum_weights=weights, k=count)
    numbers = _DRAW.randbytes(2 * count)
    facts = [
        Fact(name, numbers[2 * at] << 8 | numbers[2 * at + 1])
        for at, name in enumerate(chosen)
    ]
    return Schedule(seed, facts)


def broken(
    played: Schedule, engine: Engine = LOG, tell: Callable[[str], None] | None = None
) -> tuple[str, str] | None:
    """Play a schedule; return the broken invariant and a description, or ``None`` if all hold."""
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
    """Return the shortest schedule found that breaks the same invariant."""
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


class Finding(NamedTuple):
    """A schedule that breaks an invariant."""

    seed: int
    invariant: str
    text: str


def findings(seeds: range, engine: Engine = LOG) -> list[Finding]:
    """Play schedules and return the findings."""
    found: list[Finding] = []
    logging.disable(logging.CRITICAL)
    gc.freeze()
    gc.disable()
    try:
        for seed in seeds:
            failure = broken(schedule(seed, engine), engine)
            if failure is not None:
                found.append(Finding(seed, *failure))
            if seed % COLLECTED == 0:
                gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
        logging.disable(logging.NOTSET)
    return found


def told(finding: Finding, engine: Engine) -> Iterator[str]:
    """Return the lines that describe a finding: the fewest facts that still show it."""
    yield f"{engine.name} {finding.seed}: {finding.text}"
    for fact in reduced(schedule(finding.seed, engine), finding.invariant, engine).facts:
        yield f"    {fact.name} {fact.number}"


def traced(seed: int, engine: Engine = LOG) -> list[str]:
    """Return the trace of a schedule."""
    lines: list[str] = []
    broken(schedule(seed, engine), engine, lines.append)
    return lines


def play(
    name: str,
    first: int,
    count: int,
    tell: Callable[[str], None],
    *,
    jobs: int | None = None,
) -> int:
    """Play schedules, report those that fail, and return their number.

    Args:
        name: of the engine.
        first: the first seed.
        count: how many.
        tell: given each line.
        jobs: processes at a time, one for each core by default.
    """
    started, engine = time.perf_counter(), ENGINES[name]
    shards = [
        range(at, min(at + SHARD, first + count))
        for at in range(first, first + count, SHARD)
    ]
    failing: list[Finding] = []
    with ProcessPoolExecutor(jobs or os.cpu_count()) as pool:
        for found in pool.map(_shard, [name] * len(shards), shards):
            failing.extend(found)
            for finding in found[: max(0, SHOWN - len(failing) + len(found))]:
                for line in told(finding, engine):
                    tell(line)
    took = time.perf_counter() - started
    tell(
        f"{name}: {count} schedules from {first} on, {len(failing)} failed, {count / took:.0f} a second"
    )
    return len(failing)


def _shard(name: str, seeds: range) -> list[Finding]:
    return findings(seeds, ENGINES[name])
