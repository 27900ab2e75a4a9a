"""The settings of the Kafka simulation, and the facts that its invariants check."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.kafka_facilities import Claim
from tests.simulation.threads import Process


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a simulated deployment is set up.

    Args:
        consumers: how many.
        workers, interval: of ``Consumer``; the latter is its ``commit_interval``.
        most: records of a partition in one poll.
        many: whether the store takes many claims at once.
        work: seconds of a handler's work, at most.
        lease: of ``Pipeline``.
        session: seconds of silence after which the group gives partitions to others.
        orders, spread: how many are sent, in how many seconds.
        hostile: records of an attacker.
        batch: nothing; for the reduction.
        reset: ``auto_offset_reset`` of the clients: where they begin without an offset.
    """

    consumers: int
    workers: int
    interval: float
    most: int
    many: bool
    work: float
    lease: float
    session: float
    orders: int
    spread: float
    hostile: int
    batch: int = 1
    reset: str = "earliest"


@dataclass(slots=True)
class Behaviour:
    """What the handler does with one order.

    Args:
        how: ``later``, ``fail``, ``flaky``, ``reject``, ``slow`` or ``abort``.
        until: virtual seconds until which it asks for another time.
        seconds: how long it works.
        left: how often it still misbehaves.
    """

    how: str
    until: float = 0.0
    seconds: float = 0.0
    left: int = 1


@dataclass(slots=True, eq=False)
class Handling:
    """One run of a handler: its record, process, beginning and end."""

    label: bytes
    process: Process
    place: tuple[int, int]
    begun: float
    ended: float | None = None
    over: bool = False


@dataclass
class Ledger:
    """The facts that the invariants check."""

    sent: dict[bytes, int] = field(default_factory=dict)
    forged: list[tuple[str, bytes]] = field(default_factory=list)
    copied: set[bytes] = field(default_factory=set)
    handlings: defaultdict[bytes, list[Handling]] = field(default_factory=lambda: defaultdict(list))
    handled: set[tuple[int, int]] = field(default_factory=set)
    starts: dict[Any, int] = field(default_factory=dict)
    """Where the group has begun with each partition."""
    claims: dict[Any, Claim] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    rough: list[tuple[str, float, float]] = field(default_factory=list)
    """Process, and from when to when something happened to it after which messages may be handled again."""
    deaths: list[str] = field(default_factory=list)
