"""What a broker's benchmark asks of each contender, and the three comparisons made with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from mqauth.bench.rounds import Measured, Progress, Rounds, Variant, alternate

HEAVY: Final = frozenset(("message", "handwritten", "joserfc", "celery"))
"""One signature for each message: a quarter of the messages takes as long."""
WORK: Final = 100e-6
"""Seconds a handler works where one works."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured.

    Args:
        rounds: measured rounds of each contender.
        publish: messages of a publish round.
        consume: messages of a consume round.
        paced: messages of a latency round, sent at ``pace``; 0 for none.
        pace: messages a second.
        paced_rounds: latency rounds, which take as long on any machine.
        enough: once it says so, no comparison begins another round.
    """

    rounds: int
    publish: int
    consume: int
    paced: int
    pace: float = 200.0
    paced_rounds: int = 3
    enough: Callable[[], bool] = lambda: False


class Lane(Protocol):
    """One contender on one broker."""

    name: str

    def publish(self, count: int, /) -> Measured:
        """Publish so many messages, until the broker has confirmed the last."""
        ...

    def consume(self, count: int, work: float, /) -> Measured:
        """Consume so many messages that wait already, with a handler that works so many seconds on each."""
        ...

    def paced(self, count: int, pace: float, /) -> Measured:
        """Publish at a pace while consuming; latencies from the call that publishes to the handler."""
        ...

    def added(self) -> float:
        """Return the bytes a message has more than a bare one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFound:
    """What was found on one broker: comparisons by name, and bytes added a message by contender."""

    comparisons: Mapping[str, Rounds]
    added: Mapping[str, float]


def share(name: str, count: int) -> int:
    """Return how many of ``count`` messages a contender gets in one round."""
    return max(1, count // 4) if name in HEAVY else count


def compare(
    lanes: Sequence[Lane], effort: Effort, *, works: Iterable[float] = (0.0,), progress: Progress = lambda _: None
) -> BrokerFound:
    """Compare contenders in alternating rounds: publish, consume, latency.

    Args:
        lanes: the contenders.
        effort: how much.
        works: seconds a handler works, one comparison each; 0 is ``consume``, others ``consume_<n>us``.
        progress: told what is measured.
    """
    made = {"publish": _variants(lanes, lambda lane: partial(lane.publish, share(lane.name, effort.publish)))}
    for work in works:
        made[consume_name(work)] = _variants(lanes, partial(_consuming, effort.consume, work))
    found = {name: _alternated(name, variants, effort.rounds, effort, progress) for name, variants in made.items()}
    if effort.paced:
        timed = _variants(lanes, lambda lane: partial(lane.paced, effort.paced, effort.pace))
        found["paced"] = _alternated("latency", timed, effort.paced_rounds, effort, progress)
    return BrokerFound(comparisons=found, added={lane.name: round(lane.added(), 1) for lane in lanes})


def _alternated(name: str, variants: Sequence[Variant], rounds: int, effort: Effort, progress: Progress) -> Rounds:
    """Run one comparison."""
    return alternate(variants, rounds, progress=lambda who: progress(f"{name}, {who}"), enough=effort.enough)


def consume_name(work: float) -> str:
    """Return the name of a consume comparison."""
    return f"consume_{work * 1e6:.0f}us" if work else "consume"


def _consuming(count: int, work: float, lane: Lane) -> Callable[[], Measured]:
    """Return a consume round of a lane; one whose handler works gets fewer messages, it takes as long."""
    return partial(lane.consume, share(lane.name, count // 4 if work else count), work)


def _variants(lanes: Sequence[Lane], bind: Callable[[Lane], Callable[[], Measured]]) -> list[Variant]:
    """Return a variant of each lane."""
    return [Variant(lane.name, bind(lane)) for lane in lanes]
