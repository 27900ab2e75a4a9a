"""The replay store of one process, in memory: bounded, and it forgets no live id to make room.

An id is *held* while its handler runs and *done* afterwards; the table of ``mqauth.replay.rules`` says what a
claim of it finds. An id is forgotten once no copy of its message could be accepted any more. Ids that expire
within the same ten seconds stand in one *bucket*, and each claim removes a few ids of the earliest bucket that is
over, so that no claim waits for many. A bucket is over only when both clocks say so: the monotonic one, by which
it is numbered, and the wall clock, by which tokens expire. A wall clock that is set forward or back lets no copy
in.

Of a done id bytes and a plain tuple are kept, which Python's collector of cycles does not track.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import Cause, Unavailable, require
from mqauth.replay.rules import ClaimRequest, ClaimStatus, Entry, judge
from mqauth.wire.message import Place

DEFAULT_CAPACITY: Final = 1_000_000
_WIDTH: Final = 10.0  # seconds of one bucket
_FORGOTTEN: Final = 16  # at most so many ids are forgotten at each claim
_Key = tuple[str, bytes, int | None]


@dataclass(slots=True, eq=False)
class _Bucket:
    """Ids that are forgotten together, and the latest wall time at which one of them expires."""

    number: int
    expires: float = 0.0
    keys: set[_Key] = field(default_factory=set)


class MemoryReplayStore:
    """Remembers the claims of this process only.

    Args:
        capacity: ids at once; beyond it claims raise ``replay_store_full``.

    Raises:
        ConfigurationError: the capacity is not positive.
    """

    in_process: Final = True

    def __init__(
        self, capacity: int = DEFAULT_CAPACITY, *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        require(capacity >= 1, "capacity is at least 1")
        self._capacity = capacity
        self._clock = clock
        self._held: dict[_Key, tuple[Entry, _Bucket]] = {}
        self._done: dict[_Key, Place | None] = {}
        self._buckets: dict[int, _Bucket] = {}
        self._order: list[int] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held) + len(self._done)

    def __bool__(self) -> bool:
        """Return true: ``store or MemoryReplayStore()`` must not replace a store because it is empty."""
        return True

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Take or renew the lease if the table allows it.

        Raises:
            Unavailable: ``replay_store_full``.
        """
        with self._lock:
            return self._claim(request, self._clock.monotonic(), self._clock.now())

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus]:
        """Claim each, in order.

        Raises:
            Unavailable: ``replay_store_full``; what was claimed until then may be claimed again by its owners.
        """
        with self._lock:
            now, wall = self._clock.monotonic(), self._clock.now()
            return [self._claim(request, now, wall) for request in requests]

    def confirm(self, request: ClaimRequest, /) -> None:
        """Make the claim done, if this owner still holds it."""
        key = request.scope, request.id, request.index
        with self._lock:
            held = self._held.get(key)
            if held is not None and held[0].owner == request.owner:
                del self._held[key]
                self._done[key] = held[0].place

    def release(self, request: ClaimRequest, /) -> None:
        """Forget the claim, if this owner still holds it."""
        key = request.scope, request.id, request.index
        with self._lock:
            held = self._held.get(key)
            if held is not None and held[0].owner == request.owner:
                del self._held[key]
                held[1].keys.remove(key)

    def first_place(self, request: ClaimRequest, /) -> Place | None:
        """Return where the first delivery of an id was, ``None`` where that is not known."""
        key = request.scope, request.id, request.index
        with self._lock:
            held = self._held.get(key)
            return self._done.get(key) if held is None else held[0].place

    def _claim(self, request: ClaimRequest, now: float, wall: float) -> ClaimStatus:
        if self._order and self._order[0] * _WIDTH <= now:
            self._forget(self._buckets[self._order[0]], wall)
        key = request.scope, request.id, request.index
        held, entry = self._held.get(key), None
        if held is not None:
            entry = held[0]
        elif key in self._done:
            entry = Entry(None, self._done[key], 0.0)
        status = judge(entry, request, now)
        if status is not ClaimStatus.FRESH:
            return status
        if held is None and len(self._held) + len(self._done) >= self._capacity:
            raise Unavailable(Cause.REPLAY_STORE_FULL, f"{self._capacity} live ids")
        number = int((now + max(0.0, request.expires - wall)) / _WIDTH) + 1
        if held is not None:
            # claimed again it may move to a later bucket, and to no earlier
            held[1].keys.remove(key)
            number = max(number, held[1].number)
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = _Bucket(number)
            heapq.heappush(self._order, number)
        bucket.expires = max(bucket.expires, request.expires)
        bucket.keys.add(key)
        # whoever takes a claim over keeps the place of the first: copies are judged by that
        place = request.place if entry is None else entry.place
        self._held[key] = Entry(request.owner, place, now + request.lease), bucket
        return status

    def _forget(self, bucket: _Bucket, wall: float) -> None:
        """Forget some ids of the earliest bucket, if its time is over by the wall clock too.

        Later buckets are not looked at before it is empty, so that a wall clock that was set back keeps them all.
        """
        if bucket.expires >= wall:
            return
        for _ in range(min(_FORGOTTEN, len(bucket.keys))):
            key = bucket.keys.pop()
            self._held.pop(key, None)
            self._done.pop(key, None)
        if not bucket.keys:
            del self._buckets[heapq.heappop(self._order)]
