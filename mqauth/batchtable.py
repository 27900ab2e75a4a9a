"""Ids in batches, of the in-memory replay store: one record a token, which is an encoding and no rule of replay.

A token keeps which of its ids are done as the bits of an int, and their places in the order of their indexes,
eight bytes each; ids between them take no room. Held ids have an entry each.
"""

from __future__ import annotations

from array import array
from typing import Final

from mqauth.claimrequest import ClaimRequest
from mqauth.forgetting import Bucket, Node
from mqauth.idtable import Entry
from mqauth.places import NOWHERE, Packed, Places

_SHARDS: Final = 64
_SCOPES: Final = 1 << 14  # of 4 KiB each
_NOBODY: Final[dict[int, Entry]] = {}  # never written


class _Token(Node):
    """What is known of the ids of one token."""

    __slots__ = ("done", "held", "places")

    def __init__(self, home: dict[bytes, _Token], key: bytes) -> None:
        self.home, self.key = home, key
        self.bucket = None
        self.done = 0
        self.held = _NOBODY
        self.places: array[int] | list[Packed] | None = None  # None: all are nowhere

    @property
    def ids(self) -> int:
        """Held ones and done ones."""
        return len(self.held) + self.done.bit_count()

    def place(self, index: int) -> Packed:
        """Return the place of a done id."""
        return NOWHERE if self.places is None else self.places[self._rank(index)]

    def finish(self, index: int, place: Packed) -> None:
        """Make an id done that is not; a place of more than eight bytes turns all of them into objects."""
        if self.places is None and place != NOWHERE:
            self.places = array("Q", bytes(8 * self.done.bit_count()))
        if self.places is not None:
            rank = self._rank(index)
            try:
                self.places.insert(rank, place)  # type: ignore[arg-type]
            except (OverflowError, TypeError):
                self.places = list(self.places)
                self.places.insert(rank, place)
        self.done |= 1 << index

    def _rank(self, index: int) -> int:
        """Return how many done ids stand before an index."""
        if not self.done >> index:
            return self.done.bit_count()
        return (self.done & ((1 << index) - 1)).bit_count()


class BatchTable:
    """Entries of ids in batches, by scope and token.

    Args:
        places: packs places.
    """

    def __init__(self, places: Places) -> None:
        self._scopes: dict[str, list[dict[bytes, _Token]]] = {}
        self._places = places

    def find(self, request: ClaimRequest) -> tuple[_Token, Entry | None]:
        """Return the record of a token, new where there is none, and what is known of an id.

        Raises:
            OverflowError: the table has as many scopes as it may.
        """
        shards = self._scopes.get(request.scope)
        if shards is None:
            shards = self._new(request.scope)
        key, index = request.id[:-2], request.index or 0
        home = shards[key[-1] % _SHARDS]
        token = home.get(key)
        if token is None:
            return _Token(home, key), None
        entry = token.held.get(index)
        if entry is None and token.done >> index & 1:
            entry = Entry(None, self._places.unpack(token.place(index)), 0.0)
        return token, entry

    def add(self, token: _Token, request: ClaimRequest, lease_ends: float, bucket: Bucket) -> None:
        """Hold an unknown id."""
        if token.bucket is None:
            token.home[token.key] = token
            token.join(bucket)
        else:
            token.stay(bucket)
        if token.held is _NOBODY:
            token.held = {}
        token.held[request.index or 0] = Entry(request.owner, request.place, lease_ends)

    def take(self, token: _Token, _entry: Entry, bucket: Bucket) -> None:
        """Keep a token at least as long as a bucket."""
        token.stay(bucket)

    def finish(self, token: _Token, entry: Entry, request: ClaimRequest) -> None:
        """Make a held id done: only its place is kept."""
        self._unhold(token, request)
        token.finish(request.index or 0, self._places.pack(entry.place))

    def remove(self, token: _Token, _entry: Entry, request: ClaimRequest) -> None:
        """Take a held id out before its time, and with the last one its token."""
        self._unhold(token, request)
        if token.held is _NOBODY and not token.done:
            del token.home[token.key]
            token.leave()

    def _unhold(self, token: _Token, request: ClaimRequest) -> None:
        """Take a held id out."""
        del token.held[request.index or 0]
        if not token.held:
            token.held = _NOBODY

    def _new(self, scope: str) -> list[dict[bytes, _Token]]:
        """Return the dicts of a new scope."""
        if len(self._scopes) >= _SCOPES:
            raise OverflowError("too many scopes with batches")
        shards: list[dict[bytes, _Token]] = [{} for _ in range(_SHARDS)]
        self._scopes[scope] = shards
        return shards
