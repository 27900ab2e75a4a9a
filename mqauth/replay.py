"""Replay told from redelivery: the claim table, in one place, and the in-memory store.

A claim is a lease on (scope, id). Held or done, it remembers where the broker put the delivery:

=====================  =======================  ==============================================
store says             exact place (Kafka)      no exact place (RabbitMQ)
=====================  =======================  ==============================================
unseen                 FRESH                    FRESH
held, same place       FRESH                    -
held, other place      REPLAYED                 redelivered: HELD until the lease is over, then
                                                FRESH; else REPLAYED
done, same place       REREAD                   -
done, other place      REPLAYED                 redelivered: DUPLICATE; else REPLAYED
=====================  =======================  ==============================================
"""

from __future__ import annotations

import hashlib
import heapq
import threading
from collections.abc import Awaitable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import Cause, ConfigurationError, Unavailable

DEFAULT_CAPACITY: Final = 1_000_000
DEFAULT_LEASE: Final = 60.0
_SLACK: Final = 64


class ClaimStatus(Enum):
    """What a claim found; compared by identity."""

    FRESH = "fresh"
    REREAD = "reread"
    HELD = "held"
    DUPLICATE = "duplicate"
    REPLAYED = "replayed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """A wish to handle one message.

    Args:
        scope: consumer group or queue; each scope may handle a message once.
        id: digest of (issuer, jti), never the token's text.
        owner: a nonce of this attempt; only it may confirm or release.
        place: exact coordinates of the delivery, or ``None``.
        redelivered: the broker's hint, used only without a place.
        lease: seconds the claim holds unless confirmed.
        expires: UTC seconds after which no copy can be accepted any more.
    """

    scope: str
    id: bytes
    owner: str
    place: str | None
    redelivered: bool
    lease: float
    expires: float


class ReplayStore(Protocol):
    """Remembers claims atomically, in this process or for all consumers; either colour."""

    def claim(self, request: ClaimRequest, /) -> ClaimStatus | Awaitable[ClaimStatus]:
        """Take the lease where the table allows it, and say what was found.

        Raises:
            Unavailable: ``replay_store_unavailable`` or ``replay_store_full``.
        """
        ...

    def confirm(self, request: ClaimRequest, /) -> Awaitable[None] | None:
        """Make the claim done; a former owner changes nothing."""
        ...

    def release(self, request: ClaimRequest, /) -> Awaitable[None] | None:
        """Forget the claim; a former owner changes nothing."""
        ...


@dataclass(slots=True)
class Entry:
    """What a store knows of one id; ``owner`` is ``None`` once it is done."""

    owner: str | None
    place: str | None
    lease_ends: float
    expires: float


def judge(entry: Entry | None, request: ClaimRequest, now: float) -> ClaimStatus:
    """Return what the table of this module says.

    Args:
        entry: what the store knows, ``None`` where the id is unseen.
        request: the claim.
        now: the clock the lease is counted by, seconds.
    """
    if entry is None:
        return ClaimStatus.FRESH
    if request.place is not None:
        if entry.place != request.place:
            return ClaimStatus.REPLAYED
        return ClaimStatus.REREAD if entry.owner is None else ClaimStatus.FRESH
    if not request.redelivered:
        return ClaimStatus.REPLAYED
    if entry.owner is None:
        return ClaimStatus.DUPLICATE
    return ClaimStatus.FRESH if entry.lease_ends <= now else ClaimStatus.HELD


def claim_id(issuer: str, jti: str) -> bytes:
    """Return the 16-byte id of a token: a digest of (issuer, jti), unambiguous whatever they hold."""
    raw = issuer.encode("utf-8", "surrogatepass")
    text = len(raw).to_bytes(4, "big") + raw + jti.encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).digest()[:16]


class MemoryReplayStore:
    """Claims of this process only; bounded, and never forgets a live id to make room.

    Args:
        capacity: ids held at once; beyond it claims raise ``replay_store_full``.

    Raises:
        ConfigurationError: the capacity is not positive.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY, *, clock: Clock = SYSTEM_CLOCK) -> None:
        if capacity < 1:
            raise ConfigurationError("capacity is at least 1")
        self._capacity = capacity
        self._clock = clock
        self._entries: dict[tuple[str, bytes], Entry] = {}
        self._expiry: list[tuple[float, str, bytes]] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Take the lease where the table allows it.

        Raises:
            Unavailable: ``replay_store_full``.
        """
        with self._lock:
            self._purge()
            entry = self._entries.get((request.scope, request.id))
            status = judge(entry, request, self._clock.monotonic())
            if status is ClaimStatus.FRESH:
                self._take(entry, request)
            return status

    def confirm(self, request: ClaimRequest, /) -> None:
        """Make the claim done, if this owner still holds it."""
        with self._lock:
            entry = self._entries.get((request.scope, request.id))
            if entry is not None and entry.owner == request.owner:
                entry.owner = None

    def release(self, request: ClaimRequest, /) -> None:
        """Forget the claim, if this owner still holds it."""
        with self._lock:
            entry = self._entries.get((request.scope, request.id))
            if entry is not None and entry.owner == request.owner:
                del self._entries[(request.scope, request.id)]
                self._compact()

    def _compact(self) -> None:
        """Drop the expiries of released ids, so that claim and release in turn do not grow the heap."""
        if len(self._expiry) > 2 * len(self._entries) + _SLACK:
            self._expiry = [(entry.expires, *key) for key, entry in self._entries.items()]
            heapq.heapify(self._expiry)

    def _take(self, entry: Entry | None, request: ClaimRequest) -> None:
        """Record the new owner; a new id needs room."""
        ends = self._clock.monotonic() + request.lease
        if entry is not None:
            entry.owner, entry.lease_ends = request.owner, ends
            return
        if len(self._entries) >= self._capacity:
            raise Unavailable(Cause.REPLAY_STORE_FULL, f"{self._capacity} live ids")
        key = (request.scope, request.id)
        self._entries[key] = Entry(request.owner, request.place, ends, request.expires)
        heapq.heappush(self._expiry, (request.expires, *key))

    def _purge(self) -> None:
        """Forget ids whose every copy would be refused as expired by now."""
        now = self._clock.now()
        while self._expiry and self._expiry[0][0] < now:
            expires, scope, identity = heapq.heappop(self._expiry)
            entry = self._entries.get((scope, identity))
            if entry is not None and entry.expires == expires:
                del self._entries[(scope, identity)]
