"""When each facility is out of reach, of whom, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
        return self.facility == facility and self.service in (None, process.partition("#")[0])

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
        found = [each for each in self._all if each.ended == math.inf and each.concerns(facility, process)]
        return max(found, key=lambda each: (each.service is not None, each.begun)).how if found else None

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

    def between(self, facility: str, process: str, since: float, until: float) -> list[Outage]:
        """Return those that kept a process from a facility at some time between two."""
        return [
            each
            for each in self._all
            if each.concerns(facility, process) and each.begun <= until and since <= each.ended
        ]

    def lasting(self, facility: str, process: str, since: float, until: float, gap: float) -> float:
        """Return when requests came through again after an outage that began between two times.

        Args:
            facility: which one.
            process: whose requests.
            since: virtual seconds.
            until: likewise.
            gap: seconds between two outages in which the process may not have asked; they count as one.
        """
        stops = [each for each in self._all if each.concerns(facility, process) and each.stops_requests]
        begins, over = until, 0.0
        for each in sorted(stops, key=lambda each: each.begun):
            if each.begun <= begins and each.ended >= since:
                begins, over = max(begins, each.ended + gap), max(over, each.ended)
        return over
