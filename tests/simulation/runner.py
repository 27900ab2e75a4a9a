"""Plays one seed, checks the invariants, ends a step that does not return, and cuts a failing plan down."""

from __future__ import annotations

import gc
import signal
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tests.simulation import determinism
from tests.simulation.faults import Fault, Plan
from tests.simulation.invariants import Problem, problems
from tests.simulation.scenario import Scenario
from tests.simulation.settings import Settings

WATCHDOG: Final = 600
"""Real seconds that one seed may take."""


class StuckError(BaseException):
    """A step of the simulation does not return."""


@dataclass(frozen=True, kw_only=True)
class Play:
    """One play: a seed with its whole plan, or with part of it.

    Args:
        seed: decides what settings and faults leave open.
        settings: of the deployment.
        faults: what goes wrong.
    """

    seed: int
    settings: Settings
    faults: Sequence[Fault]

    @classmethod
    def of(
        cls, seed: int, without: Collection[str] = (), client: str = "aio-pika"
    ) -> Play:
        """Return the play of a seed, without faults of some kinds."""
        settings = (
            Settings.of(seed) if client == "aio-pika" else Settings.of(seed).on_pika()
        )
        faults = [
            fault for fault in Plan(seed, settings).faults() if fault.kind not in without
        ]
        return cls(seed=seed, settings=settings, faults=faults)

    def as_dict(self) -> dict[str, Any]:
        """Return it for a plan's file."""
        faults = [fault.as_dict() for fault in self.faults]
        return {"seed": self.seed, "settings": self.settings.as_dict(), "faults": faults}

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Play:
        """Return what a plan's file says."""
        faults = [Fault(**fault) for fault in found["faults"]]
        return cls(
            seed=found["seed"],
            settings=Settings.from_dict(found["settings"]),
            faults=faults,
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a play.

    Args:
        play: what was played: a ``Play``, or a ``KafkaPlay``.
        problems: what broke an invariant.
        digest: of the trace.
        virtual: seconds that passed in it.
        real: seconds that it took.
    """

    play: Any
    problems: list[Problem] = field(default_factory=list)
    digest: str = ""
    virtual: float = 0.0
    real: float = 0.0

    @property
    def broken(self) -> frozenset[str]:
        """The invariants that do not hold."""
        return frozenset(name for name, _ in self.problems)


def run(
    play: Play, tell: Callable[[str], None] | None = None, *, strict: bool = False
) -> Result:
    """Play it to its end and judge it."""
    started = time.perf_counter()
    determinism.begin(play.seed)
    gc.disable()
    try:
        with _watchdog(), _quiet():
            scenario = Scenario(play.seed, play.settings, play.faults, tell)
            found, world = _played(scenario, strict=strict), scenario.world
            digest, virtual = world.digest, world.agenda.now
            del scenario, world
            gc.collect()
            real = time.perf_counter() - started
            return Result(
                play=play, problems=found, digest=digest, virtual=virtual, real=real
            )
    except StuckError as error:
        return Result(
            play=play,
            problems=[("a step returns", str(error))],
            real=time.perf_counter() - started,
        )
    finally:
        gc.enable()


def _played(scenario: Scenario, *, strict: bool) -> list[Problem]:
    """Play a scenario and return its problems, errors that nobody awaited included."""
    scenario.run()
    gc.collect()  # a task that nobody awaited says so when it is collected
    found = problems(scenario, strict=strict)
    _dismantle(scenario)
    return found


def _dismantle(scenario: Scenario) -> None:
    """Let the processes be garbage-collected without warnings."""
    for process in scenario.world.everyone.values():
        process.alive = False
        process.loop.dismantle()


@contextmanager
def _watchdog() -> Iterator[None]:
    """Raise ``StuckError`` where a seed takes too long, with the line it is at."""

    def bark(_number: int, frame: Any) -> None:
        raise StuckError(f"{frame.f_code.co_filename}:{frame.f_lineno}")

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(WATCHDOG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings about unfinished coroutines that are garbage-collected."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            yield
    finally:
        sys.unraisablehook = before


GRAVEST: Final = (
    "no forgery is handled", "no honest message is condemned", "handled once",
    "no message over the limit without a letter",
    "a letter has a record", "no protocol error", "no consumer dies", "a stop leaves no claim", "a stop ends",
    "a clean-up is not cut short", "every honest message is handled",
)  # fmt: skip
"""Invariants, the gravest first; what is not here comes last."""
MOST: Final = 150
"""Plays that a reduction may take."""


def reduced(
    failed: Result, play_one: Callable[[Any], Result] = run, most: int = MOST
) -> Result:
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
        if not any(
            try_it(replace(best.play, faults=faults))
            for faults in _without(best.play.faults, size)
        ):
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
