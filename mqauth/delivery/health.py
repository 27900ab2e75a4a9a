"""How a consumer is doing, as users see it by ``health()``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, TypeAlias

from mqauth.errors import Cause, Verdict
from mqauth.judging.delivery import Outcome
from mqauth.judging.rollout import Rollout
from mqauth.judging.verifier import Verifier

Settings: TypeAlias = Mapping[str, Mapping[str, str]]
NO_SETTINGS: Final[Settings] = {}
UNCOMMITTED: Final = 10.0
"""Seconds without a commit that succeeds, although one was asked for, after which that is told."""
STALLED_AFTER: Final = 60.0
"""Seconds of waiting after which a consumer is stalled."""


def told_of(rollout: Rollout | None, verifier: Verifier) -> Settings:
    """Return what a consumer's settings add to its health.

    Returns:
        ``rollout``: the rung of each pattern of destinations that is below ``enforce``, and what is exempt above;
        ``aliases``: where messages are accepted that were signed for another destination, and for which.
    """
    aliases = {
        alias.at: ", ".join(alias.signed_for) for alias in verifier.aliases.values()
    }
    exempt = (
        {}
        if rollout is None
        else {
            each.destination: f"enforce, exempt until {each.until}"
            for each in rollout.exemptions
        }
    )
    below = () if rollout is None else rollout.below
    rungs = {
        pattern: entry.rung.label for entry in below for pattern in entry.destinations
    }
    return {"rollout": exempt | rungs, "aliases": aliases}


_COUNTED: Final = {
    Verdict.REJECTED: "rejected",
    Verdict.DUPLICATE: "duplicate",
    Verdict.UNVERIFIED: "unverified",
}
_ACCEPTED: Final = Verdict.ACCEPTED


@dataclass(slots=True)
class Counts:
    """What became of a consumer's deliveries since it started, each time one was attempted."""

    handled: int = 0
    rejected: int = 0
    duplicate: int = 0
    unverified: int = 0
    deferred: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        # Nearly all are accepted, and hashing an enum's member is a call in Python.
        if outcome.verdict is _ACCEPTED:
            self.handled += 1
            return
        name = _COUNTED.get(outcome.verdict, "deferred")
        setattr(self, name, getattr(self, name) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A partition that is deferred.

    Args:
        topic, partition, offset: the record that waits; those behind it wait too.
        cause: what is out of reach.
        detail: one line that explains it.
        since: UTC seconds of the first deferral in a row.
    """

    topic: str
    partition: int
    offset: int
    cause: Cause | None
    detail: str | None
    since: float


class State(StrEnum):
    """How a consumer is, in one word."""

    OK = "ok"
    DEGRADED = "degraded"
    STALLED = "stalled"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of a consumer of either broker; a subclass adds what only that broker has.

    Args:
        consuming: whether it runs and takes new messages; one of a queue does not while it holds all it may.
        in_flight: deliveries, of a log partitions, that are processed or held.
        deferred: how many of them wait.
        stalled_since: UTC seconds since which something waits, ``None`` where nothing does.
        cause: why the longest waiting one waits; ``broker_unavailable`` where none does, and for a minute nothing
            could be consumed or the broker has blocked the connection.
        detail: one line that explains it and names what is out of reach; also where an error ended the consumer.
        running: whether it was started, and neither stopped nor ended by an error.
        at: UTC seconds of this look.
        silent: seconds since its loop or poll thread last moved.
        counts: what became of its deliveries since it started.
        rollout: the rung of each pattern of destinations that is not enforced, or has exemptions.
        aliases: where messages are accepted that were signed for another destination, and for which. They have a
            proof like any other, so that nothing is amiss.
    """

    consuming: bool
    in_flight: int
    deferred: int
    stalled_since: float | None
    cause: Cause | None
    detail: str | None
    running: bool = True
    at: float = 0.0
    silent: float = 0.0
    counts: Counts = field(default_factory=Counts)
    rollout: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def state(self) -> State:
        """``stopped``; ``stalled`` where something waits for over a minute; ``degraded``, anything is amiss."""
        if not self.running:
            return State.STOPPED
        if (
            self.stalled_since is not None
            and self.at - self.stalled_since > STALLED_AFTER
        ):
            return State.STALLED
        amiss = (
            self.deferred
            or self.cause is not None
            or self.rollout
            or self.silent > STALLED_AFTER
        )
        return State.DEGRADED if amiss else State.OK

    @property
    def reasons(self) -> tuple[str, ...]:
        """Lines for people on why it is not ``ok``."""
        lines = [] if self.running else ["not running"]
        if self.cause is not None or self.detail is not None:
            since = (
                ""
                if self.stalled_since is None
                else f" for {self.at - self.stalled_since:.0f} s"
            )
            lines.append(f"{self.cause or 'ended'}{since}: {self.detail or ''}")
        lines += [
            f"{destination} is at {rung}" for destination, rung in self.rollout.items()
        ]
        return (
            (*lines, f"nothing moved for {self.silent:.0f} s")
            if self.silent > STALLED_AFTER
            else tuple(lines)
        )

    def as_dict(self) -> dict[str, Any]:
        """Return state, reasons and everything else as JSON values."""
        return {"state": self.state.value, "reasons": list(self.reasons), **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogHealth(Health):
    """The state of a consumer of a log.

    Args:
        stalls: partitions that are deferred, the longest waiting first.
    """

    stalls: tuple[Stall, ...]

    @classmethod
    def of(
        cls,
        waiting: Iterable[Stall | None],
        *,
        consuming: bool,
        counts: Counts,
        uncommitted: float,
        **more: Any,
    ) -> LogHealth:
        """Return the health of a consumer by its stalls, the longest waiting first.

        Args:
            waiting: of each partition why it is deferred.
            consuming: whether it runs.
            counts: what became of its deliveries.
            uncommitted: seconds for which no commit has succeeded although one was asked for.
            more: other attributes.
        """
        stalls = sorted(
            (stall for stall in waiting if stall is not None),
            key=lambda stall: stall.since,
        )
        why: tuple[Cause | None, float | None, str | None] = None, None, None
        if stalls:
            why = stalls[0].cause, stalls[0].since, stalls[0].detail
        elif uncommitted >= UNCOMMITTED:
            failing = "no commit succeeds: what is handled meanwhile may come again"
            why = Cause.BROKER_UNAVAILABLE, more["at"] - uncommitted, failing
        cause, since, detail = why
        return cls(
            consuming=consuming,
            running=consuming,
            deferred=len(stalls),
            stalled_since=since,
            cause=cause,
            detail=detail,
            counts=replace(counts),
            stalls=tuple(stalls),
            **more,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueHealth(Health):
    """The state of a consumer of a queue.

    Args:
        connection_deaths: how often channel or connection was lost.
        prefetch: the window now; 1 after three connections lost in a row, and while an outage of audit or dead
            letters lasts longer than a delivery may be held.
        unsettled: acks that could not be sent; the broker delivered the messages again.
        party: the issuer or release authority whose keys the longest held delivery waits for.
        held: how many deliveries are deferred for each cause, and for which party.
        at_limit: how many of them are at their last delivery, and stay unacked for as long as the process lives.
    """

    connection_deaths: int
    prefetch: int
    unsettled: int
    party: str | None
    held: Mapping[str, int]
    at_limit: int
