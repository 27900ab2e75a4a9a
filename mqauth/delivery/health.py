"""What the engine is told and what it tells, in the terms of no client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mqauth.errors import Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A partition that waits for the world.

    Args:
        topic, partition, offset: the record that waits; those behind it wait too.
        cause: what is out of reach.
        detail: one line for people.
        since: UTC seconds of the first of these deferrals in a row.
    """

    topic: str
    partition: int
    offset: int
    cause: Cause | None
    detail: str | None
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a consumer of a log is.

    Args:
        consuming: it runs.
        in_flight: partitions being worked on.
        stalls: partitions that wait for the world, the longest waiting first.
    """

    consuming: bool
    in_flight: int
    stalls: tuple[Stall, ...]

    @property
    def deferred(self) -> int:
        """How many partitions wait for the world."""
        return len(self.stalls)

    @property
    def stalled_since(self) -> float | None:
        """UTC seconds since when the first of them waits, ``None`` where none does."""
        return self.stalls[0].since if self.stalls else None

    @property
    def cause(self) -> Cause | None:
        """Why the longest waiting one waits."""
        return self.stalls[0].cause if self.stalls else None

    @property
    def detail(self) -> str | None:
        """One line for people."""
        return self.stalls[0].detail if self.stalls else None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueHealth:
    """How a consumer of a queue is.

    Args:
        consuming: whether the broker sends it messages now; not while everything it may hold is held.
        in_flight: deliveries being processed or held.
        deferred: how many of them are held.
        stalled_since: UTC seconds since which something is deferred, ``None`` where nothing is.
        cause: why the longest held delivery is deferred; ``broker_unavailable`` where none is, and for a minute
            nothing could be consumed or the broker has blocked the connection.
        detail: one line for people; also where nothing is deferred, and an error ended the consumer or the broker
            has blocked its connection.
        connection_deaths: how often channel or connection was lost.
        prefetch: the window now; 1 after three deaths in a row, and where an outage of audit or dead letters has
            lasted longer than a delivery may be held.
        unsettled: acks that could not be sent; the broker delivered again.
        party: the issuer or release authority whose keys the longest held delivery waits for.
        held: how many are deferred for each cause, and whose.
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
