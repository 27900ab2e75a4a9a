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
from enum import Enum
from functools import lru_cache
from typing import Any, Final, Protocol

from mqauth.batchtable import BatchTable
from mqauth.claimrequest import ClaimRequest as ClaimRequest  # noqa: PLC0414 - it is offered here
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import Cause, ConfigurationError, Unavailable
from mqauth.forgetting import SHARDS, WIDTH, Bucket, Buckets
from mqauth.idtable import Entry, IdTable
from mqauth.places import Packed, Places

DEFAULT_CAPACITY: Final = 1_000_000
DEFAULT_LEASE: Final = 60.0
_NO_MESSAGE: Final = bytes(4)  # where a message's id has the length of its issuer, which is never empty
_FORGOTTEN: Final = 16  # ids or tokens forgotten for each that is claimed
_FORGOTTEN_AT_ONCE: Final = 512  # for a poll that is no longer


class ClaimStatus(Enum):
    """What a claim found; compared by identity."""

    FRESH = "fresh"
    REREAD = "reread"
    HELD = "held"
    DUPLICATE = "duplicate"
    REPLAYED = "replayed"
    LOST = "lost"


_FRESH: Final = ClaimStatus.FRESH  # Python 3.11 takes its time to look a member up
_LOST: Final = ClaimStatus.LOST


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
    """A store that answers many wishes in one round trip; each counts as if it came alone, in order.

    One whose ``in_process`` is true answers at once, and is asked for some of a poll at a time: it has no round
    trips to save.
    """

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
    if entry is None:
        return _LOST if request.renew else _FRESH
    if entry.owner == request.owner:
        return _FRESH
    if request.renew:
        return _LOST
    if request.place is not None:
        if entry.place != request.place:
            return ClaimStatus.REPLAYED
        return ClaimStatus.REREAD if entry.owner is None else _FRESH
    if not request.redelivered:
        return ClaimStatus.REPLAYED
    if entry.owner is None:
        return ClaimStatus.DUPLICATE
    return _FRESH if entry.lease_ends <= now else ClaimStatus.HELD


def batch_id(token: bytes, index: int) -> bytes:
    """Return the 18-byte id of a message of a batch: its token's id and its index, big-endian."""
    return token + index.to_bytes(2, "big")


def claim_id(issuer: str, subject: str, jti: str) -> bytes:
    """Return the 16-byte id of a token (wire profile 1, section 8): no producer can make that of another's."""
    return hashlib.sha256(_producer(issuer, subject) + _utf8(jti)).digest()[:16]


@lru_cache(maxsize=256)
def _producer(issuer: str, subject: str) -> bytes:
    """Return what stands before the ``jti`` of each message of a producer."""
    return _sized(issuer) + _sized(subject)


def release_id(authority: str, letter: str) -> bytes:
    """Return the 16-byte id of a release (wire profile 1, section 12): no message has it, whatever its names."""
    return hashlib.sha256(_NO_MESSAGE + _sized(authority) + _utf8(letter)).digest()[:16]


def _sized(text: str) -> bytes:
    """Return a text in UTF-8 behind its length in 4 bytes."""
    raw = _utf8(text)
    return len(raw).to_bytes(4, "big") + raw


def _utf8(text: str) -> bytes:
    """Return a text in UTF-8; lone surrogates do not raise."""
    return text.encode("utf-8", "surrogatepass")


class MemoryReplayStore:
    """Claims of this process only; bounded, and never forgets a live id to make room.

    An id is forgotten only when the wall clock and the monotonic one both say so: a wall clock that steps
    lets no copy in. A done id takes about 120 bytes, 90 without a place; in a batch of 64 about 13, and 4.

    Args:
        capacity: ids held at once; beyond it claims raise ``replay_store_full``. A batch counts the ids
            claimed of it; one that was claimed alone takes at most 600 bytes once it is done.

    Raises:
        ConfigurationError: the capacity is not positive.
    """

    in_process: Final = True

    def __init__(self, capacity: int = DEFAULT_CAPACITY, *, clock: Clock = SYSTEM_CLOCK) -> None:
        if capacity < 1:
            raise ConfigurationError("capacity is at least 1")
        self._capacity = capacity
        self._clock = clock
        self._size = 0
        done: list[dict[int, Packed]] = [{} for _ in range(SHARDS)]
        places = Places()
        self._ids = IdTable(done, places)
        self._batches = BatchTable(places)
        self._buckets = Buckets(done)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._size

    def __bool__(self) -> bool:
        """An empty store is a store: ``store or MemoryReplayStore()`` would make another one."""
        return True

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Take the lease where the table allows it.

        Raises:
            Unavailable: ``replay_store_full``.
        """
        with self._lock:
            now, wall = self._clock.monotonic(), self._clock.now()
            self._size -= self._buckets.forget(now, wall, _FORGOTTEN)
            return self._claim(request, now, wall)

    def confirm(self, request: ClaimRequest, /) -> None:
        """Make the claim done, if this owner still holds it."""
        with self._lock:
            self._confirm(request)

    def release(self, request: ClaimRequest, /) -> None:
        """Forget the claim, if this owner still holds it."""
        with self._lock:
            table: _Table = self._ids if request.index is None else self._batches
            where, entry = table.find(request)
            if entry is not None and entry.owner == request.owner:
                table.remove(where, entry, request)
                self._size -= 1

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus]:
        """Claim each, in order.

        Raises:
            Unavailable: ``replay_store_full``; what was claimed before it may be claimed again.
        """
        with self._lock:
            now, wall = self._clock.monotonic(), self._clock.now()
            limit = min(_FORGOTTEN * len(requests), max(_FORGOTTEN_AT_ONCE, len(requests)))
            self._size -= self._buckets.forget(now, wall, limit)
            return [self._claim(request, now, wall) for request in requests]

    def confirm_many(self, requests: Sequence[ClaimRequest], /) -> None:
        """Make each claim done, if its owner still holds it."""
        with self._lock:
            for request in requests:
                self._confirm(request)

    def _claim(self, request: ClaimRequest, now: float, wall: float) -> ClaimStatus:
        """Judge one claim and take it where it is fresh."""
        table: _Table = self._ids if request.index is None else self._batches
        where, entry = table.find(request)
        status = _FRESH if entry is None and not request.renew else judge(entry, request, now)
        if status is not _FRESH:
            return status
        if entry is None and self._size >= self._capacity:
            raise Unavailable(Cause.REPLAY_STORE_FULL, f"{self._capacity} live ids")
        expires = request.expires
        bucket = self._buckets[int((now + expires - wall if expires > wall else now) / WIDTH) + 1]
        if bucket.expires < expires:  # noqa: PLR1730 - max() costs a tenth of the claim
            bucket.expires = expires
        if entry is None:
            table.add(where, request, now + request.lease, bucket)
            self._size += 1
        else:
            entry.owner, entry.lease_ends = request.owner, now + request.lease
            table.take(where, entry, bucket)
        return status

    def _confirm(self, request: ClaimRequest) -> None:
        """Make one claim done."""
        table: _Table = self._ids if request.index is None else self._batches
        where, entry = table.find(request)
        if entry is not None and entry.owner == request.owner:
            table.finish(where, entry, request)


class _Table(Protocol):
    """An encoding of entries; ``where`` is its own."""

    def find(self, request: ClaimRequest, /) -> tuple[Any, Entry | None]:
        """Return where an id stands or would stand, and what is known of it."""
        ...

    def add(self, where: Any, request: ClaimRequest, lease_ends: float, bucket: Bucket, /) -> None:
        """Hold an unknown id."""
        ...

    def take(self, where: Any, entry: Entry, bucket: Bucket, /) -> None:
        """Keep a held id at least as long as a bucket."""
        ...

    def finish(self, where: Any, entry: Entry, request: ClaimRequest, /) -> None:
        """Make a held id done."""
        ...

    def remove(self, where: Any, entry: Entry, request: ClaimRequest, /) -> None:
        """Take a held id out."""
        ...
