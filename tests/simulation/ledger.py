"""The facts that the invariants check, and when each facility is out of reach."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

Label = bytes
"""A message is known by its body, which is unlike any other's."""


@dataclass(slots=True)
class Sent:
    """An honest message on its way: one attempt to publish an order.

    Args:
        order: its number.
        confirmed: whether the broker confirmed it; ``None`` while, or where, the outcome is unknown.
    """

    order: int
    label: Label
    confirmed: bool | None = None


@dataclass(slots=True, eq=False)
class Handling:
    """One run of a handler.

    Args:
        process: where; its name.
        begun: virtual seconds.
        ended: when it returned; ``None`` where it raised, or was cut short.
        how: what it ended with.
        cleaning: whether it was cancelled, and its clean-up did not end yet.
    """

    label: Label
    process: str
    begun: float
    ended: float | None = None
    how: str = "running"
    cleaning: bool = False


Event = tuple[float, str, int]
"""When, which process, and the number of the very message in its queue: a copy has another one."""


@dataclass(slots=True)
class Claim:
    """A claim that was made at the store and neither confirmed nor released."""

    owner: str
    process: str
    since: float


@dataclass
class Ledger:
    """The facts of one simulation."""

    sent: dict[Label, Sent] = field(default_factory=dict)
    forged: list[tuple[str, Label]] = field(default_factory=list)
    copies: defaultdict[Label, int] = field(default_factory=lambda: defaultdict(int))
    handlings: defaultdict[Label, list[Handling]] = field(
        default_factory=lambda: defaultdict(list)
    )
    deliveries: defaultdict[Label, list[Event]] = field(
        default_factory=lambda: defaultdict(list)
    )
    acks: defaultdict[Label, list[Event]] = field(
        default_factory=lambda: defaultdict(list)
    )
    losses: defaultdict[Label, list[tuple[float, str]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """When a process lost the channel of an unacked delivery."""
    over_limit: list[Label] = field(default_factory=list)
    claims: dict[Any, Claim] = field(default_factory=dict)
    _ends: dict[tuple[Any, str], float] = field(default_factory=dict)
    """When claims were last confirmed or released, by id and owner."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """What was found wrong while it ran: the invariant's name, and one line."""
    deaths: dict[str, float] = field(default_factory=dict)
    """When a process died that was killed, or ended by an exception of its handler."""
    stops: list[tuple[str, float, float | None]] = field(default_factory=list)
    """Process, and from when to when it stopped in order."""

    def problem(self, invariant: str, text: str) -> None:
        """Note that an invariant does not hold."""
        self.problems.append((invariant, text))

    def handled(self, label: Label) -> list[Handling]:
        """Return the successful handlings of a message."""
        return [found for found in self.handlings[label] if found.ended is not None]

    def claimed(self, key: Any, claim: Claim, sent: float) -> None:
        """Note a claim that was made, unless its end overtook it on the way: it was sent before that arrived."""
        if self._ends.get((key, claim.owner), -1.0) < sent:
            self.claims[key] = claim

    def unclaimed(self, key: Any, owner: str, now: float) -> None:
        """Note that a claim was confirmed or released."""
        self._ends[key, owner] = now
        found = self.claims.get(key)
        if found is not None and found.owner == owner:
            del self.claims[key]

    def claims_of(self, process: str) -> list[Claim]:
        """Return the claims that a process holds."""
        return [claim for claim in self.claims.values() if claim.process == process]


@dataclass(slots=True)
class Outage:
    """A time during which a facility is out of reach.

    Args:
        facility: which one.
        service: of which service it is out of reach; ``None`` for all of them.
        how: what becomes of a request, ``refused`` for example.
        begun: virtual seconds.
        ended: likewise; infinite while it lasts.
    """

    facility: str
    service: str | None
    how: str
    begun: float
    ended: float = math.inf

    def concerns(self, facility: str, process: str) -> bool:
        """Tell whether it keeps a process from a facility."""
        return self.facility == facility and self.service in (
            None,
            process.partition("#")[0],
        )

    @property
    def stops_requests(self) -> bool:
        """Whether no request comes to the facility; of some outages the answers alone are lost."""
        return self.how != "answer lost"


class Outages:
    """All outages of a simulation, in the order in which they began."""

    def __init__(self) -> None:
        self._all: list[Outage] = []

    def how(self, facility: str, process: str) -> str | None:
        """Return how a facility is out of reach of a process now, ``None`` where it is not."""
        found = [
            each
            for each in self._all
            if each.ended == math.inf and each.concerns(facility, process)
        ]
        return (
            max(found, key=lambda each: (each.service is not None, each.begun)).how
            if found
            else None
        )

    def begin(self, facility: str, service: str | None, how: str, now: float) -> None:
        """Let a facility be out of reach."""
        self._all.append(Outage(facility, service, how, now))

    def end(self, facility: str, service: str | None, now: float) -> bool:
        """Let it be in reach again, as far as this service is concerned; tell whether it was not."""
        found = [
            each
            for each in self._all
            if (each.facility, each.service, each.ended) == (facility, service, math.inf)
        ]
        for each in found:
            each.ended = now
        return bool(found)

    def between(
        self, facility: str, process: str, since: float, until: float
    ) -> list[Outage]:
        """Return those that kept a process from a facility at some time between two."""
        return [
            each
            for each in self._all
            if each.concerns(facility, process)
            and each.begun <= until
            and since <= each.ended
        ]

    def lasting(
        self, facility: str, process: str, since: float, until: float, gap: float
    ) -> float:
        """Return when requests came through again after an outage that began between two times.

        Args:
            facility: which one.
            process: whose requests.
            since: virtual seconds.
            until: likewise.
            gap: seconds between two outages in which the process may not have asked; they count as one.
        """
        stops = [
            each
            for each in self._all
            if each.concerns(facility, process) and each.stops_requests
        ]
        begins, over = until, 0.0
        for each in sorted(stops, key=lambda each: each.begun):
            if each.begun <= begins and each.ended >= since:
                begins, over = max(begins, each.ended + gap), max(over, each.ended)
        return over
