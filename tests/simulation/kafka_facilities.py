"""The services beside the broker in the Kafka simulation: store, audit, policy and keys, called by threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from mqauth import Allow, Cause, MemoryReplayStore, Unavailable
from mqauth.audit.record import AuditRecord
from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.wire.keys import KeySet
from tests.simulation.threads import Killed, Process, Threads

TIMEOUT: Final = 2.0
"""Seconds after which a client of a facility gives up."""
LATENCY: Final = (0.0002, 0.003)


class Reach:
    """Whether facilities are in reach.

    Args:
        threads: the time.
    """

    def __init__(self, threads: Threads) -> None:
        self.threads = threads
        self.out: dict[str, str] = {}

    def ask(self, process: Process, name: str, act: Callable[[], Any]) -> Any:
        """Make a round trip; the facility acts when the request arrives.

        Raises:
            ConnectionRefusedError: it is out of reach.
            Unavailable: it does not answer.
        """
        if not process.alive:
            raise Killed
        threads = self.threads
        threads.sleep(threads.draw.uniform(*LATENCY))
        how = self.out.get(name)
        if how == "refused":
            raise ConnectionRefusedError(111, f"{name} refuses connections")
        result = act() if how != "silent" else None
        if how in ("silent", "answer lost"):
            threads.sleep(TIMEOUT)
            raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "no answer in time")
        threads.sleep(threads.draw.uniform(*LATENCY))
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

    def __init__(self, process: Process, reach: Reach, core: MemoryReplayStore, claims: dict[Any, Claim]) -> None:
        self._process = process
        self._reach = reach
        self._core = core
        self._claims = claims

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Take a lease."""
        return self._ask(lambda: self._claim(request))  # type: ignore[no-any-return]

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus]:
        """Take leases."""
        return self._ask(lambda: [self._claim(request) for request in requests])  # type: ignore[no-any-return]

    def confirm(self, request: ClaimRequest, /) -> None:
        """Make a claim done."""
        self._ask(lambda: self._end(self._core.confirm, request))

    def release(self, request: ClaimRequest, /) -> None:
        """Forget a claim."""
        self._ask(lambda: self._end(self._core.release, request))

    def _claim(self, request: ClaimRequest) -> ClaimStatus:
        status = self._core.claim(request)
        if status is ClaimStatus.FRESH:
            since = self._reach.threads.agenda.now
            self._claims[request.id] = Claim(request.owner, self._process.name, (request.place or ())[2:], since)
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

    def __init__(self, process: Process, reach: Reach, records: list[dict[str, Any]]) -> None:
        self._process = process
        self._reach = reach
        self._records = records

    def write(self, record: AuditRecord, /) -> None:
        """Keep a record."""
        self._reach.ask(self._process, "audit", lambda: self._records.append(record.as_dict()))


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
        return self._reach.ask(self._process, "policy", lambda: self._rules.decide(verified))


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
