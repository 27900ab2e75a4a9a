"""How a consumer is doing, as users see it by ``health()``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mqauth.errors import Cause
from mqauth.judging.delivery import Outcome
from mqauth.judging.unverified import Verdict


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
        verdict = outcome.verdict
        if verdict is Verdict.ACCEPTED:
            self.handled += 1
        elif verdict is Verdict.REJECTED:
            self.rejected += 1
        elif verdict is Verdict.DUPLICATE:
            self.duplicate += 1
        elif verdict is Verdict.UNVERIFIED:
            self.unverified += 1
        else:
            self.deferred += 1


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of a consumer of a log.

    Args:
        consuming: whether it runs.
        in_flight: partitions that are being worked on.
        stalls: partitions that are deferred, the longest waiting first.
    """

    consuming: bool
    in_flight: int
    stalls: tuple[Stall, ...]

    @property
    def deferred(self) -> int:
        """How many partitions are deferred."""
        return len(self.stalls)

    @property
    def stalled_since(self) -> float | None:
        """UTC seconds since when the longest deferred one waits, ``None`` where none does."""
        return self.stalls[0].since if self.stalls else None

    @property
    def cause(self) -> Cause | None:
        """Why the longest deferred one waits."""
        return self.stalls[0].cause if self.stalls else None

    @property
    def detail(self) -> str | None:
        """One line that explains the longest deferral."""
        return self.stalls[0].detail if self.stalls else None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueHealth:
    """The state of a consumer of a queue.

    Args:
        consuming: whether the broker sends it messages now; not while it holds everything it may hold.
        in_flight: deliveries that are processed or held.
        deferred: how many of them are held.
        stalled_since: UTC seconds since which something is deferred, ``None`` where nothing is.
        cause: why the longest held delivery is deferred; ``broker_unavailable`` where none is, and for a minute
            nothing could be consumed or the broker has blocked the connection.
        detail: one line that explains it; also where nothing is deferred, and an error ended the consumer or the
            broker has blocked its connection.
        connection_deaths: how often channel or connection was lost.
        prefetch: the window now; 1 after three connections lost in a row, and while an outage of audit or dead
            letters lasts longer than a delivery may be held.
        unsettled: acks that could not be sent; the broker delivered the messages again.
        party: the issuer or release authority whose keys the longest held delivery waits for.
        held: how many deliveries are deferred for each cause, and for which party.
        at_limit: how many of them are at their last delivery, and stay unacked for as long as the process lives.
    """

    consuming: bool
    in_flight: int
    deferred: int
    stalled_since: float | None
    cause: Cause | None
    detail: str | None
    connection_deaths: int
    prefetch: int
    unsettled: int
    party: str | None
    held: Mapping[str, int]
    at_limit: int
