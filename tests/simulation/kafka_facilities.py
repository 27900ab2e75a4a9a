"""What stands beside the broker in the Kafka simulation: services, settings, and the facts of a seed."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from mqauth import Allow, Cause, MemoryReplayStore, Unavailable
from mqauth.audit.record import AuditRecord
from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.wire.keys import KeySet
from tests.simulation.threads import Killed, Process, Threads

TIMEOUT: Final = 2.0
"""Seconds after which a client of a facility gives up."""
LATENCY: Final = (0.0002, 0.003)


R = TypeVar("R")
Steps = Generator[float, None, R]
"""What takes time: yields the seconds that pass before it goes on."""


def carried_out(threads: Threads, steps: Steps[R]) -> R:
    """Carry steps out on a thread."""
    while True:
        try:
            seconds = next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        threads.sleep(seconds)


async def awaited(steps: Steps[R]) -> R:
    """Carry steps out on an event loop."""
    while True:
        try:
            seconds = next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        await asyncio.sleep(seconds)


class Reach:
    """Whether facilities are in reach.

    Args:
        threads: the time.
        on_loop: whether they are asked on event loops: what is asked is to be awaited.
    """

    def __init__(self, threads: Threads, *, on_loop: bool = False) -> None:
        self.threads = threads
        self.out: dict[str, str] = {}
        self._on_loop = on_loop

    def ask(self, process: Process, name: str, act: Callable[[], Any]) -> Any:
        """Make a round trip; the facility acts when the request arrives.

        Raises:
            ConnectionRefusedError: it is out of reach.
            Unavailable: it does not answer.
        """
        steps = self._asking(process, name, act)
        return awaited(steps) if self._on_loop else carried_out(self.threads, steps)

    def _asking(self, process: Process, name: str, act: Callable[[], Any]) -> Steps[Any]:
        if not process.alive:
            raise Killed
        draw = self.threads.draw
        yield draw.uniform(*LATENCY)
        how = self.out.get(name)
        if how == "refused":
            raise ConnectionRefusedError(111, f"{name} refuses connections")
        result = act() if how != "silent" else None
        if how in ("silent", "answer lost"):
            yield TIMEOUT
            raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "no answer in time")
        yield draw.uniform(*LATENCY)
        return result


class Claim(NamedTuple):
    """A claim in the store, by its owner and process, for a partition and an offset, since a time."""

    owner: str
    process: str
    place: tuple[Any, ...]
    since: float


class Store:
    """A replay store of all processes.

    Args:
        process: who asks.
        reach: whether it is in reach.
        core: the store of all.
        claims: who holds what, by id; for the invariants.
    """

    def __init__(
        self,
        process: Process,
        reach: Reach,
        core: MemoryReplayStore,
        claims: dict[Any, Claim],
    ) -> None:
        self._process = process
        self._reach = reach
        self._core = core
        self._claims = claims

    def claim(self, request: ClaimRequest, /) -> Any:
        """Take a lease."""
        return self._ask(lambda: self._claim(request))

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> Any:
        """Take leases."""
        return self._ask(lambda: [self._claim(request) for request in requests])

    def confirm(self, request: ClaimRequest, /) -> Any:
        """Make a claim done."""
        return self._ask(lambda: self._end(self._core.confirm, request))

    def confirm_many(self, requests: Sequence[ClaimRequest], /) -> Any:
        """Make claims done."""
        return self._ask(
            lambda: [self._end(self._core.confirm, request) for request in requests]
        )

    def release(self, request: ClaimRequest, /) -> Any:
        """Forget a claim."""
        return self._ask(lambda: self._end(self._core.release, request))

    def _claim(self, request: ClaimRequest) -> ClaimStatus:
        status = self._core.claim(request)
        if status is ClaimStatus.FRESH:
            since = self._reach.threads.agenda.now
            self._claims[request.id] = Claim(
                request.owner, self._process.name, (request.place or ())[2:], since
            )
        return status

    def _end(self, act: Callable[[ClaimRequest], Any], request: ClaimRequest) -> None:
        act(request)
        found = self._claims.get(request.id)
        if found is not None and found.owner == request.owner:
            del self._claims[request.id]

    def _ask(self, act: Callable[[], Any]) -> Any:
        return self._reach.ask(self._process, "store", act)


class SingleStore:
    """A store without ``claim_many``."""

    def __init__(self, store: Store) -> None:
        self.claim, self.confirm, self.release = store.claim, store.confirm, store.release


class Audit:
    """An audit sink on a disk that can be full.

    Args:
        process: who writes.
        reach: whether it can be written.
        records: what was written.
    """

    def __init__(
        self, process: Process, reach: Reach, records: list[dict[str, Any]]
    ) -> None:
        self._process = process
        self._reach = reach
        self._records = records

    def write(self, record: AuditRecord, /) -> Any:
        """Keep a record."""
        return self._reach.ask(
            self._process, "audit", lambda: self._records.append(record.as_dict())
        )


class Rules:
    """A policy on another host.

    Args:
        process: who asks.
        reach: whether it is in reach.
        rules: what it says.
    """

    def __init__(self, process: Process, reach: Reach, rules: Allow) -> None:
        self._process = process
        self._reach = reach
        self._rules = rules
        self.version = rules.version

    def decide(self, verified: Any, /) -> Any:
        """Return the decision."""
        return self._reach.ask(
            self._process, "policy", lambda: self._rules.decide(verified)
        )


class Keys:
    """A source of keys that can be out of reach.

    Args:
        reach: whether it is.
        keys: what it has.
    """

    def __init__(self, reach: Reach, keys: KeySet) -> None:
        self._reach = reach
        self._keys = keys

    def key_set(self) -> KeySet:
        """Return the keys."""
        if "keys" in self._reach.out:
            raise Unavailable(Cause.KEYS_UNAVAILABLE, "no keys yet")
        return self._keys

    def refresh(self, _kid: str, _received: float, /) -> KeySet:
        """Return the same keys."""
        return self.key_set()


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
    handlings: defaultdict[bytes, list[Handling]] = field(
        default_factory=lambda: defaultdict(list)
    )
    handled: set[tuple[int, int]] = field(default_factory=set)
    starts: dict[Any, int] = field(default_factory=dict)
    """Where the group has begun with each partition."""
    claims: dict[Any, Claim] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    rough: list[tuple[str, float, float]] = field(default_factory=list)
    """Process, and from when to when something happened to it after which messages may be handled again."""
    deaths: list[str] = field(default_factory=list)
