"""When the in-memory replay store forgets: what expires together stands in one bucket, emptied a little at a time.

Two kinds stand in a bucket: keys of done ids, which only time removes and so take one place in a list, and
nodes, which may leave earlier and so are linked in a ring: joining and leaving cost the same however many
there are, and what has left leaves nothing behind.
"""

from __future__ import annotations

import heapq
from typing import Any, Final, Protocol

SHARDS: Final = 251
"""Dicts a large table is spread over: a dict is copied as it grows, and small ones keep each copy short."""
WIDTH: Final = 10.0
"""Seconds of one bucket."""


class Ring(Protocol):
    """A link of a ring: a node, or the bucket where the ring begins and ends."""

    before: Any
    after: Any


class Node:
    """What stands in a dict under its key, and in a bucket's ring; ``bucket`` is ``None`` outside."""

    __slots__ = ("after", "before", "bucket", "home", "key")

    before: Ring
    after: Ring
    bucket: Bucket | None
    home: dict[Any, Any]
    key: Any

    @property
    def ids(self) -> int:
        """How many ids go with it."""
        raise NotImplementedError

    def join(self, bucket: Bucket) -> None:
        """Stand in a bucket's ring, as its last."""
        last = bucket.before
        self.before, self.after, self.bucket = last, bucket, bucket
        last.after = bucket.before = self

    def stay(self, bucket: Bucket) -> None:
        """Move to a bucket where it is a later one."""
        if self.bucket is not None and bucket.number > self.bucket.number:
            self.leave()
            self.join(bucket)

    def leave(self) -> None:
        """Leave the ring."""
        self.before.after, self.after.before = self.after, self.before
        self.bucket = None


class Bucket:
    """What is forgotten together, and the latest wall time at which any of it expires."""

    __slots__ = ("after", "before", "done", "expires", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.expires = 0.0
        self.done: list[int] = []
        self.before: Any = self
        self.after: Any = self

    def __bool__(self) -> bool:
        return bool(self.done) or self.after is not self


class Buckets(dict[int, Bucket]):
    """Buckets by monotonic time; none is emptied before the earlier ones, so that a wall clock set back holds all.

    Args:
        done: the dicts whose keys the lists of done ids name, by ``key % SHARDS``.
    """

    def __init__(self, done: list[dict[int, Any]]) -> None:
        super().__init__()
        self._done = done
        self._order: list[int] = []

    def __missing__(self, number: int) -> Bucket:
        """Return a new bucket."""
        bucket = self[number] = Bucket(number)
        heapq.heappush(self._order, number)
        return bucket

    def forget(self, monotonic: float, wall: float, limit: int) -> int:
        """Forget up to ``limit`` keys and as many nodes of the earliest bucket whose time is over on both clocks.

        Returns:
            How many ids were forgotten.
        """
        if not self._order or self._order[0] * WIDTH > monotonic:
            return 0
        bucket = self[self._order[0]]
        if bucket.expires >= wall:
            return 0
        forgotten = self._forget_done(bucket, limit) + _forget_nodes(bucket, limit)
        if not bucket:
            bucket.before = bucket.after = None  # no cycle for the collector
            del self[heapq.heappop(self._order)]
        return forgotten

    def _forget_done(self, bucket: Bucket, limit: int) -> int:
        """Forget done ids; each key of the list is in its dict, for only this removes it."""
        keys, shards = bucket.done[-limit:], self._done
        del bucket.done[-limit:]
        for key in keys:
            del shards[key % SHARDS][key]
        return len(keys)


def _forget_nodes(bucket: Bucket, limit: int) -> int:
    """Forget what is linked in a bucket's ring."""
    forgotten = 0
    for _ in range(limit):
        node = bucket.after
        if node is bucket:
            break
        node.leave()
        del node.home[node.key]
        forgotten += node.ids
    return forgotten
