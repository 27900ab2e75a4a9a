"""Single ids of the in-memory replay store: small, and without long pauses. Knows no rule of replay.

A key is one int of id and scope. Held ids have an entry; a done id keeps only its place, as one int. The
collector of cycles looks into no dict of ints, so that a million done ids cost it nothing.
"""

from __future__ import annotations

from typing import Final

from mqauth.claimrequest import ClaimRequest
from mqauth.forgetting import SHARDS, Bucket, Node
from mqauth.message import Place
from mqauth.places import Packed, Places

_ID_BITS: Final = 160
_SCOPES: Final = 1 << 16
_big_endian: Final = int.from_bytes


class Entry(Node):
    """What a store knows of one id; ``owner`` is ``None`` once it is done."""

    __slots__ = ("lease_ends", "owner", "place")

    def __init__(self, owner: str | None, place: Place | None, lease_ends: float) -> None:
        self.owner = owner
        self.place = place
        self.lease_ends = lease_ends

    @property
    def ids(self) -> int:
        """Itself."""
        return 1


class IdTable:
    """Entries of single ids, by scope.

    Args:
        done: where done ids are kept, ``SHARDS`` dicts; who forgets them takes them out there.
        places: packs places.
    """

    def __init__(self, done: list[dict[int, Packed]], places: Places) -> None:
        self._done = done
        self._held: list[dict[int, Entry]] = [{} for _ in range(SHARDS)]
        self._scopes: dict[str, int] = {}
        self._places = places

    def find(self, request: ClaimRequest) -> tuple[int, Entry | None]:
        """Return the key of an id, and what is known of it.

        Raises:
            OverflowError: the table has as many scopes as its keys can tell apart.
        """
        high = self._scopes.get(request.scope)
        if high is None:
            high = self._number(request.scope)
        key = _big_endian(request.id) | high
        shard = key % SHARDS
        entry = self._held[shard].get(key)
        if entry is None:
            packed = self._done[shard].get(key)
            if packed is not None:
                entry = Entry(None, self._places.unpack(packed), 0.0)
        return key, entry

    def add(self, key: int, request: ClaimRequest, lease_ends: float, bucket: Bucket) -> None:
        """Hold an unknown key."""
        entry = Entry(request.owner, request.place, lease_ends)
        entry.key, entry.home = key, self._held[key % SHARDS]
        entry.home[key] = entry
        entry.join(bucket)

    def take(self, _key: int, entry: Entry, bucket: Bucket) -> None:
        """Keep a held key at least as long as a bucket."""
        entry.stay(bucket)

    def finish(self, key: int, entry: Entry, _request: ClaimRequest) -> None:
        """Make a held key done: only its place is kept."""
        bucket = entry.bucket
        self.remove(key, entry, _request)
        self._done[key % SHARDS][key] = self._places.pack(entry.place)
        if bucket is not None:
            bucket.done.append(key)

    def remove(self, key: int, entry: Entry, _request: ClaimRequest) -> None:
        """Take a held key out before its time."""
        del entry.home[key]
        entry.leave()

    def _number(self, scope: str) -> int:
        """Return the number of a new scope, as the high bits of its keys."""
        if len(self._scopes) >= _SCOPES:
            raise OverflowError("too many scopes")
        high = self._scopes[scope] = len(self._scopes) << _ID_BITS
        return high
