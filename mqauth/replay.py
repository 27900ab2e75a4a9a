"""Replay told from redelivery: the claim table, in one place, and the in-memory store.

A claim is a lease on (scope, id). Held or done, it remembers where the broker put the delivery:

=====================  =======================  ==============================================
store says             exact place (Kafka)      no exact place (RabbitMQ)
=====================  =======================  ==============================================
unseen                 FRESH                    FRESH
held, same owner       FRESH                    FRESH
held, same place       FRESH                    -
held, other place      REPLAYED                 redelivered: HELD until the lease is over, then
                                                FRESH; else REPLAYED
done, same place       REREAD                   -
done, other place      REPLAYED                 redelivered: DUPLICATE; else REPLAYED
=====================  =======================  ==============================================

The same owner may claim again: a store's answer that was lost on the way must not turn an honest message
into a replay of itself. A renewal makes the owner's lease longer (FRESH), or changes nothing (LOST).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import Cause, ConfigurationError, Unavailable
from mqauth.idtable import Entry, IdTable

DEFAULT_CAPACITY: Final = 1_000_000
DEFAULT_LEASE: Final = 60.0


class ClaimStatus(Enum):
    """What a claim found; compared by identity."""

    FRESH = "fresh"
    REREAD = "reread"
    HELD = "held"
    DUPLICATE = "duplicate"
    REPLAYED = "replayed"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """A wish to handle one message.

    Args:
        scope: consumer group or queue; each scope may handle a message once.
        id: digest of (issuer, jti), never the token's text; in a batch with the index (``batch_id``).
        index: the message's place in its batch, also the last two bytes of ``id``; ``None`` for a single token.
        owner: a nonce of this delivery; only it may claim again, renew, confirm or release.
        place: exact coordinates of the delivery, or ``None``.
        redelivered: the broker's hint, used only without a place.
        lease: seconds the claim holds unless confirmed.
        expires: UTC seconds after which no copy can be accepted any more.
        renew: not a new claim, but a longer lease for its owner.
    """

    scope: str
    id: bytes
    owner: str
    place: str | None
    redelivered: bool
    lease: float
    expires: float
    renew: bool = False
    index: int | None = None


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


class BatchReplayStore(Protocol):
    """A store that answers many wishes in one round trip; each counts as if it came alone, in order."""

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus] | Awaitable[list[ClaimStatus]]:
        """Claim each; where it raises, some may be claimed, and the same owners may claim again.

        Raises:
            Unavailable: ``replay_store_unavailable`` or ``replay_store_full``.
        """
        ...

    def confirm_many(self, requests: Sequence[ClaimRequest], /) -> Awaitable[None] | None:
        """Make each claim done."""
        ...


def judge(entry: Entry | None, request: ClaimRequest, now: float) -> ClaimStatus:
    """Return what the table of this module says.

    Args:
        entry: what the store knows, ``None`` where the id is unseen.
        request: the claim.
        now: the clock the lease is counted by, seconds.
    """
    ours = entry is not None and entry.owner == request.owner
    if request.renew:
        return ClaimStatus.FRESH if ours else ClaimStatus.LOST
    if entry is None or ours:
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


def batch_id(token: bytes, index: int) -> bytes:
    """Return the 18-byte id of a message of a batch: its token's id and its index, big-endian."""
    return token + index.to_bytes(2, "big")


def claim_id(issuer: str, jti: str) -> bytes:
    """Return the 16-byte id of a token: a digest of (issuer, jti), unambiguous whatever they hold."""
    raw = issuer.encode("utf-8", "surrogatepass")
    text = len(raw).to_bytes(4, "big") + raw + jti.encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).digest()[:16]


class MemoryReplayStore:
    """Claims of this process only; bounded, and never forgets a live id to make room.

    An id is forgotten only when the wall clock and the monotonic one both say so: a wall clock that steps
    lets no copy in. A done id takes about 130 bytes, 100 without a place.

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
        self._table = IdTable()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._table)

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Take the lease where the table allows it.

        Raises:
            Unavailable: ``replay_store_full``.
        """
        with self._lock:
            return self._claim(request)

    def confirm(self, request: ClaimRequest, /) -> None:
        """Make the claim done, if this owner still holds it."""
        with self._lock:
            self._confirm(request)

    def release(self, request: ClaimRequest, /) -> None:
        """Forget the claim, if this owner still holds it."""
        with self._lock:
            key = self._table.key(request.scope, request.id)
            entry = self._table.get(key)
            if entry is not None and entry.owner == request.owner:
                self._table.remove(key, entry)

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus]:
        """Claim each, in order.

        Raises:
            Unavailable: ``replay_store_full``; what was claimed before it may be claimed again.
        """
        with self._lock:
            return [self._claim(request) for request in requests]

    def confirm_many(self, requests: Sequence[ClaimRequest], /) -> None:
        """Make each claim done, if its owner still holds it."""
        with self._lock:
            for request in requests:
                self._confirm(request)

    def _claim(self, request: ClaimRequest) -> ClaimStatus:
        """Judge one claim and take it where it is fresh."""
        now, wall = self._clock.monotonic(), self._clock.now()
        self._table.forget(now, wall)
        key = self._table.key(request.scope, request.id)
        entry = self._table.get(key)
        status = judge(entry, request, now)
        if status is not ClaimStatus.FRESH:
            return status
        if entry is not None and entry.expires >= request.expires:
            entry.owner, entry.lease_ends = request.owner, now + request.lease
            return status
        place = request.place if entry is None else entry.place
        if entry is not None:
            self._table.remove(key, entry)
        elif len(self._table) >= self._capacity:
            raise Unavailable(Cause.REPLAY_STORE_FULL, f"{self._capacity} live ids")
        entry = Entry(request.owner, place, now + request.lease, request.expires)
        self._table.add(key, entry, now + max(request.expires - wall, 0.0))
        return status

    def _confirm(self, request: ClaimRequest) -> None:
        """Make one claim done."""
        key = self._table.key(request.scope, request.id)
        entry = self._table.get(key)
        if entry is not None and entry.owner == request.owner:
            self._table.finish(key, entry.place)
