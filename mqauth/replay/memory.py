"""The replay store of one process, in memory: bounded, small for each id, and without long pauses.

Theory of operation
===================

The store answers one question for every message: may this delivery be handled? The answer is the table of
``mqauth.replay.rules``; what this module adds is how a million ids are kept so that each takes some hundred bytes,
and so that no claim waits for the others.

**Keys.** An id of 16 bytes (18 in a batch, where its last two are the message's index) becomes one int, with the
number of its scope in the bits above. A dict of ints costs Python's collector of cycles nothing: it looks into
dicts that hold other objects only. With an object for each id, every full collection would walk a million of
them. That is why what is done is kept as ints.

**Leases.** A claim makes an entry: its owner, its place, and when its lease ends by the monotonic clock. There
are only as many entries as messages are being handled. The end of a lease removes nothing: it only lets a
redelivery take the claim over, as the table says.

**Done.** ``confirm`` replaces the entry by the place alone, packed into one int: the offset, and in its last 16
bits the number of its log. 0 is no place. In a batch one record stands for all ids of the token: an int whose
bits say which of them are done, and an array of their places, eight bytes each. A done id takes about 120 bytes,
90 without a place; in a batch of 64 about 13, and 4.

**Forgetting.** An id may be forgotten once no copy of its message could be accepted any more. Ids that expire
within the same ten seconds stand in one *bucket*. Each claim looks at the earliest bucket and, if its time is
over, removes at most 16 ids of each kind. So ids leave as fast as they come, and never many at once. An id is
forgotten only when both clocks say so: the monotonic one, by which buckets are numbered, and the wall clock, by
which tokens expire. A wall clock that is set forward or back lets no copy in.

**No pauses.** A dict is copied as it grows, so done ids and batches are spread over 256 dicts, each of which
grows by itself. With forgetting in small steps, and ints that the collector skips, the longest of a million
claims takes about a millisecond or less (decision 72; ``integration/benchmarks_replay.py`` measures it).

For example, at monotonic second 1003 the wall clock says 12:00:00, and a message in partition 0 of ``orders`` at
offset 7 is claimed, of which a copy could be accepted until 12:01:05::

    claim     held[key] = (owner, place, lease ends 1063), in bucket 107 (1003 + 65 = 1068 seconds, rounded up)
    confirm   held[key] goes, done[key & 255][key] = 7 << 16 | 1, for log 1 is ("", "orders", 0)
    claim     of a copy at offset 9: another place, so REPLAYED
    claim     of whatever comes at monotonic second 1070, wall clock 12:01:07: bucket 107 is over, done[...] goes
"""

from __future__ import annotations

import heapq
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import Cause, Unavailable, require
from mqauth.replay.rules import ClaimRequest, ClaimStatus, Entry, judge
from mqauth.wire.message import Place

DEFAULT_CAPACITY: Final = 1_000_000
_SHARD: Final = 255  # the bits of a key that say which of the dicts it is in
_WIDTH: Final = 10.0  # seconds of one bucket
_FORGOTTEN: Final = 16  # at most so many ids, and as many tokens, are forgotten at each claim
_ID_BITS: Final = 160
_SCOPES: Final = 1 << 16
_INDEX_BITS: Final = 16
_LOG_BITS: Final = 16
_LOGS: Final = 1 << _LOG_BITS
_NOWHERE: Final = 0  # no place, packed
_FRESH: Final = ClaimStatus.FRESH  # Python 3.11 takes its time to look a member of an enum up
_TUPLE: Final = tuple.__new__
_big_endian: Final = int.from_bytes
Packed = int | Place


class MemoryReplayStore:
    """Remembers the claims of this process only; it is bounded, and forgets no live id to make room.

    Args:
        capacity: ids held at once; beyond it claims raise ``replay_store_full``. Of a batch only the ids that were
            claimed count; one that was claimed alone takes at most 600 bytes once it is done.

    Raises:
        ConfigurationError: the capacity is not positive.
    """

    in_process: Final = True

    def __init__(self, capacity: int = DEFAULT_CAPACITY, *, clock: Clock = SYSTEM_CLOCK) -> None:
        require(capacity >= 1, "capacity is at least 1")
        self._capacity = capacity
        self._clock = clock
        self._size = 0
        self._scopes = _Scopes(0), _Scopes(1)  # of single ids, and of ids in batches
        self._held: dict[int, tuple[Entry, _Bucket]] = {}
        self._done: list[dict[int, Packed]] = [{} for _ in range(_SHARD + 1)]
        self._batches: list[dict[int, _Batch]] = [{} for _ in range(_SHARD + 1)]
        self._buckets: dict[int, _Bucket] = {}
        self._order: list[int] = []
        self._places = Places()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._size

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

    def confirm(self, request: ClaimRequest, /) -> None:
        """Make the claim done, if this owner still holds it."""
        with self._lock:
            key = _big_endian(request.id) | self._scopes[request.index is not None][request.scope]
            held = self._held.get(key)
            if held is None or held[0].owner != request.owner:
                return
            entry, bucket = held
            del self._held[key]
            bucket.held.remove(key)
            if not self._held:
                # a dict or set that was large once keeps its size until it is cleared
                self._held.clear()
                bucket.held.clear()
            place = self._places.pack(entry.place)
            if request.index is None:
                self._done[key & _SHARD][key] = place
                bucket.done.append(key)
            else:
                self._finish(key >> _INDEX_BITS, request.index, place, bucket)

    def release(self, request: ClaimRequest, /) -> None:
        """Forget the claim, if this owner still holds it."""
        with self._lock:
            key = _big_endian(request.id) | self._scopes[request.index is not None][request.scope]
            held = self._held.get(key)
            if held is not None and held[0].owner == request.owner:
                del self._held[key]
                held[1].held.remove(key)
                self._size -= 1

    def first_place(self, request: ClaimRequest, /) -> Place | None:
        """Return where the first delivery of an id was, ``None`` where that is not known."""
        with self._lock:
            key = _big_endian(request.id) | self._scopes[request.index is not None][request.scope]
            held = self._held.get(key)
            entry = self._ended(key, request.index) if held is None else held[0]
            return None if entry is None else entry.place

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus]:
        """Claim each, in order.

        Raises:
            Unavailable: ``replay_store_full``; what was claimed until then may be claimed again by its owners.
        """
        with self._lock:
            now, wall = self._clock.monotonic(), self._clock.now()
            return [self._claim(request, now, wall) for request in requests]

    def _claim(self, request: ClaimRequest, now: float, wall: float) -> ClaimStatus:
        if self._order and self._order[0] * _WIDTH <= now:
            self._forget(self._buckets[self._order[0]], wall)
        key = _big_endian(request.id) | self._scopes[request.index is not None][request.scope]
        held = self._held.get(key)
        entry = self._ended(key, request.index) if held is None else held[0]
        status = _FRESH if entry is None and not request.renew else judge(entry, request, now)
        if status is not _FRESH:
            return status
        if held is None and self._size >= self._capacity:
            raise Unavailable(Cause.REPLAY_STORE_FULL, f"{self._capacity} live ids")
        # the bucket in which it is forgotten; one that is claimed again may move to a later one, and to no earlier
        expires = request.expires
        number = int((now + expires - wall if expires > wall else now) / _WIDTH) + 1
        bucket = self._buckets.get(number) or self._begun(number)
        if held is None:
            self._size += 1
        else:
            held[1].held.remove(key)
            bucket = bucket if bucket.number > held[1].number else held[1]
        if bucket.expires < expires:  # noqa: PLR1730 - max() costs a tenth of the claim
            bucket.expires = expires
        bucket.held.add(key)
        # whoever takes a claim over keeps the place of the first: copies are judged by that
        place = request.place if entry is None else entry.place
        self._held[key] = _TUPLE(Entry, (request.owner, place, now + request.lease)), bucket
        return status

    def _ended(self, key: int, index: int | None) -> Entry | None:
        """Return what is known of an id that is done, ``None`` if it is not."""
        packed: Packed | None = None
        if index is None:
            packed = self._done[key & _SHARD].get(key)
        else:
            token = key >> _INDEX_BITS
            batch = self._batches[token & _SHARD].get(token)
            if batch is not None and batch.done >> index & 1:
                packed = batch.place(index)
        return None if packed is None else Entry(None, self._places.unpack(packed), 0.0)

    def _finish(self, token: int, index: int, place: Packed, bucket: _Bucket) -> None:
        """Make an id of a batch done, and keep its record for as long as the last of its ids."""
        batches = self._batches[token & _SHARD]
        batch = batches.get(token)
        if batch is None:
            batch = batches[token] = _Batch(bucket)
            bucket.tokens.append(token)
        elif batch.bucket.number < bucket.number:
            batch.bucket = bucket
            bucket.tokens.append(token)
        batch.finish(index, place)

    def _begun(self, number: int) -> _Bucket:
        bucket = self._buckets[number] = _Bucket(number)
        heapq.heappush(self._order, number)
        return bucket

    def _forget(self, bucket: _Bucket, wall: float) -> None:
        """Forget some ids of each kind in the earliest bucket, if its time is over by the wall clock too."""
        # later buckets are not looked at before this one is empty, so that a wall clock set back keeps them all
        if bucket.expires >= wall:
            return
        for _ in range(min(_FORGOTTEN, len(bucket.held))):
            del self._held[bucket.held.pop()]
            self._size -= 1
        for key in bucket.done[-_FORGOTTEN:]:
            del self._done[key & _SHARD][key]
            self._size -= 1
        for token in bucket.tokens[-_FORGOTTEN:]:
            # a record that has moved to a later bucket stands in this one, too, and is kept
            batches = self._batches[token & _SHARD]
            if batches[token].bucket is bucket:
                self._size -= batches.pop(token).done.bit_count()
        del bucket.done[-_FORGOTTEN:], bucket.tokens[-_FORGOTTEN:]
        if not (bucket.held or bucket.done or bucket.tokens):
            del self._buckets[heapq.heappop(self._order)]


@dataclass(slots=True, eq=False)
class _Bucket:
    """Ids that are forgotten together, and the latest wall time at which one of them expires.

    Attributes:
        held: the keys of held ids, a set, for they may leave before their time.
        done: the keys of done ids, which only time removes.
        tokens: the keys of batches with done ids; one that has moved to a later bucket stands here, too.
    """

    number: int
    expires: float = 0.0
    held: set[int] = field(default_factory=set)
    done: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Batch:
    """Which ids of a batch are done, as the bits of an int, and their places in the order of their indexes."""

    bucket: _Bucket
    done: int = 0
    places: array[int] | list[Packed] | None = None  # None while no id has a place

    def place(self, index: int) -> Packed:
        """Return the packed place of a done id."""
        return _NOWHERE if self.places is None else self.places[(self.done & ((1 << index) - 1)).bit_count()]

    def finish(self, index: int, place: Packed) -> None:
        """Make an id done that is not; a place of more than eight bytes turns the array into a list of objects."""
        if self.places is None and place != _NOWHERE:
            self.places = array("Q", bytes(8 * self.done.bit_count()))
        if self.places is not None:
            before = (self.done & ((1 << index) - 1)).bit_count()
            try:
                self.places.insert(before, place)  # type: ignore[arg-type]
            except (OverflowError, TypeError):
                self.places = list(self.places)
                self.places.insert(before, place)
        self.done |= 1 << index


class _Scopes(dict[str, int]):
    """Scopes as the high bits of keys; those of batches are odd, so that no key is of both kinds."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self._kind = kind

    def __missing__(self, scope: str) -> int:
        """Return the bits of a new scope.

        Raises:
            OverflowError: there are 65,536 scopes already.
        """
        require(len(self) < _SCOPES, "too many scopes", OverflowError)
        high = self[scope] = (2 * len(self) + self._kind) << _ID_BITS
        return high


class Places:
    """Packs a place into one int: the number of its log in the last 16 bits, and its offset above.

    A place that would not come back exactly stays as it is.
    """

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str, int], int] = {}
        self._logs: list[tuple[str, str, int]] = [("", "", 0)]  # number 0 is for no place

    def pack(self, place: Place | None) -> Packed:
        """Return a place in its smallest form."""
        if place is None:
            return _NOWHERE
        log, offset = place[:3], place[3]
        number = self._numbers.get(log)
        if number is None:
            if len(self._logs) >= _LOGS:
                return place
            number = self._numbers[log] = len(self._logs)
            self._logs.append(log)
        return offset << _LOG_BITS | number if offset >= 0 else place

    def unpack(self, packed: Packed) -> Place | None:
        """Return the place that was packed."""
        if not isinstance(packed, int):
            return packed
        if packed == _NOWHERE:
            return None
        return (*self._logs[packed & (_LOGS - 1)], packed >> _LOG_BITS)
