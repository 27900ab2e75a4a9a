"""The table behind the in-memory replay store: small, and forgetting without long pauses.

Knows no rule of replay. A key is one int of id and scope; a done id keeps only its place, packed into one
int where it ends in an offset. Ids are forgotten in buckets, a few at each call.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Final

_WIDTH: Final = 10.0  # seconds of one bucket
_DRAINED: Final = 16  # ids forgotten at one call
_SHARDS: Final = 256
_SCOPE_BITS: Final = 16
_PREFIX_BITS: Final = 20
_PREFIXES: Final = 1 << _PREFIX_BITS


@dataclass(slots=True)
class Entry:
    """What a store knows of one id; ``owner`` is ``None`` once it is done, ``bucket`` is its table's own."""

    owner: str | None
    place: str | None
    lease_ends: float
    expires: float
    bucket: int = 0


@dataclass(slots=True)
class _Bucket:
    """Ids that are forgotten together, and the latest wall time at which any of them expires."""

    expires: float = 0.0
    keys: list[int] = field(default_factory=list)


class IdTable:
    """Entries by key, each with a monotonic deadline and a wall time, forgotten when both are over."""

    def __init__(self) -> None:
        self._size = 0
        # A dict is copied as it grows: many small ones keep each copy short.
        self._shards: list[dict[int, Entry | int | str | None]] = [{} for _ in range(_SHARDS)]
        self._scopes: dict[str, int] = {}
        self._places = _Places()
        self._buckets: dict[int, _Bucket] = {}
        self._order: list[int] = []
        self._removed: dict[int, int] = {}

    def __len__(self) -> int:
        return self._size

    def key(self, scope: str, identity: bytes) -> int:
        """Return the key of an id in a scope.

        Raises:
            OverflowError: the table has as many scopes as its keys can tell apart.
        """
        number = self._scopes.get(scope)
        if number is None:
            if len(self._scopes) >> _SCOPE_BITS:
                raise OverflowError("too many scopes")
            number = self._scopes[scope] = len(self._scopes)
        return int.from_bytes(identity, "big") << _SCOPE_BITS | number

    def get(self, key: int) -> Entry | None:
        """Return what is known of a key; what is not done may be changed in place."""
        shard = self._shard(key)
        if key not in shard:
            return None
        found = shard[key]
        return found if isinstance(found, Entry) else Entry(None, self._places.unpack(found), 0.0, 0.0)

    def add(self, key: int, entry: Entry, deadline: float) -> None:
        """Add an unknown key.

        Args:
            key: its key.
            entry: what to remember; ``expires`` is the wall time before which it is not forgotten.
            deadline: the monotonic time before which it is not forgotten.
        """
        before = self._removed.get(key)
        entry.bucket = number = max(int(deadline / _WIDTH) + 1, before or 0)
        bucket = self._bucket(number)
        bucket.expires = max(bucket.expires, entry.expires)
        if number != before:
            bucket.keys.append(key)
        if before is not None:
            self._removed[key] = number
        self._shard(key)[key] = entry
        self._size += 1

    def finish(self, key: int, place: str | None) -> None:
        """Make a known key done: only its place is kept."""
        self._shard(key)[key] = self._places.pack(place)

    def remove(self, key: int, entry: Entry) -> None:
        """Take a known key out before its time; its bucket goes on listing it."""
        del self._shard(key)[key]
        self._size -= 1
        self._removed[key] = entry.bucket

    def forget(self, monotonic: float, wall: float) -> None:
        """Forget some of the keys whose time is over on both clocks."""
        if not self._order or self._order[0] * _WIDTH > monotonic:
            return
        number = self._order[0]
        bucket = self._buckets[number]
        if bucket.expires >= wall:
            return
        for key in bucket.keys[-_DRAINED:]:
            self._forget(key, number)
        del bucket.keys[-_DRAINED:]
        if not bucket.keys:
            heapq.heappop(self._order)
            del self._buckets[number]

    def _forget(self, key: int, number: int) -> None:
        """Forget a key of a bucket, unless it was added again to a later one."""
        if self._removed.get(key, number) != number:
            return
        self._removed.pop(key, None)
        shard = self._shard(key)
        if key in shard:
            del shard[key]
            self._size -= 1

    def _bucket(self, number: int) -> _Bucket:
        """Return a bucket, a new one where there is none."""
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = _Bucket()
            heapq.heappush(self._order, number)
        return bucket

    def _shard(self, key: int) -> dict[int, Entry | int | str | None]:
        """Return the dict of a key, by the last byte of its id."""
        return self._shards[key >> _SCOPE_BITS & (_SHARDS - 1)]


class _Places:
    """Places packed: what stands before the last slash has a number, the offset after it is one."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._prefixes: list[str] = []

    def pack(self, place: str | None) -> int | str | None:
        """Return a place in its smallest form; one that would not come back exactly stays as it is."""
        if place is None:
            return None
        prefix, _, offset = place.rpartition("/")
        if not (prefix and offset.isascii() and offset.isdecimal()) or (offset[0] == "0" and offset != "0"):
            return place
        number = self._numbers.get(prefix)
        if number is None:
            if len(self._prefixes) >= _PREFIXES:
                return place
            number = self._numbers[prefix] = len(self._prefixes)
            self._prefixes.append(prefix)
        return int(offset) << _PREFIX_BITS | number

    def unpack(self, packed: int | str | None) -> str | None:
        """Return the place as it was."""
        if not isinstance(packed, int):
            return packed
        return f"{self._prefixes[packed & (_PREFIXES - 1)]}/{packed >> _PREFIX_BITS}"
