"""How many deferred deliveries a consumer holds, by whose fault, and whether there is room beside them.

A queue cannot pass over a message: one that waits takes a place of the prefetch window. RabbitMQ counts unacked
deliveries by consumer, though (``basic.qos`` with ``global`` false; tried on 4.0.5), so that one who consumes anew
on the same channel has a window of its own, and what the former one holds takes no place in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Final, NamedTuple

from mqauth.errors import Cause

OWN_CAUSES: Final = frozenset((Cause.CLAIM_HELD, Cause.HANDLER_DEFERRED, Cause.APPEND_TIME_UNAVAILABLE))
"""Causes that concern one message."""
MAX_HELD: Final = 1000
MAX_BYTES: Final = 16 * 1024 * 1024
PER_PLACE: Final = 10
"""Deliveries held beside the window for each of its places, unless told otherwise."""


class _Entry(NamedTuple):
    """One held delivery: under which consumer tag it came, why it waits, and the bytes of its body."""

    tag: str
    cause: Cause | None
    party: str | None
    size: int

    @property
    def is_beside(self) -> bool:
        """Whether others need not wait for it."""
        return self.cause in OWN_CAUSES or self.party is not None


class Room:
    """What is held, by whose fault it is: one message's, one issuer's or release authority's, or everybody's.

    Args:
        max_held: deliveries held beside the window at most.
        issuers: the configured issuers; where none of them has keys, that is everybody's cause.
        max_bytes: of the bodies of those.
    """

    def __init__(
        self, max_held: int = MAX_HELD, *, issuers: Collection[str] = (), max_bytes: int = MAX_BYTES
    ) -> None:
        self._max_held = max_held
        self._max_bytes = max_bytes
        self._issuers = frozenset(issuers)
        self._entries: dict[int, _Entry] = {}
        self._by_tag = Counter[str]()
        self._without_keys = Counter[str]()
        self._beside = 0
        self._bytes = 0

    def put(self, key: int, *, tag: str, cause: Cause | None, party: str | None, size: int) -> None:
        """Hold a delivery, or note why it waits now."""
        self.take(key)
        self._count(entry := _Entry(tag, cause, party, size), 1)
        self._entries[key] = entry

    def take(self, key: int) -> None:
        """Hold a delivery no longer."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._count(entry, -1)

    def _count(self, entry: _Entry, step: int) -> None:
        """Count a delivery in or out."""
        if entry.cause is Cause.KEYS_UNAVAILABLE and entry.party is not None:
            self._without_keys[entry.party] += step
        if entry.is_beside:
            self._by_tag[entry.tag] += step
            self._beside += step
            self._bytes += step * entry.size
            self._by_tag += Counter()  # forgets what is 0

    @property
    def nobody_has_keys(self) -> bool:
        """Whether no configured issuer can serve, as far as what is held tells."""
        return bool(self._issuers) and all(self._without_keys[issuer] > 0 for issuer in self._issuers)

    def is_everyones(self, cause: Cause | None, party: str | None) -> bool:
        """Tell whether a cause is everybody's, so that the queue is to be suspended."""
        return not _Entry("", cause, party, 0).is_beside or (
            cause is Cause.KEYS_UNAVAILABLE and self.nobody_has_keys
        )

    def has_room(self) -> bool:
        """Tell whether more may be held beside the window."""
        return self._beside < self._max_held and self._bytes < self._max_bytes and not self.nobody_has_keys

    def wants_another(self, tag: str, window: int, active: int) -> bool:
        """Tell whether to consume anew: half of the window is held, and at most half of it is at work.

        Args:
            tag: of the present consumer.
            window: the prefetch; with 1 order was asked for, and nothing passes by.
            active: deliveries under way that are not held.
        """
        half = 2 * self._by_tag[tag] >= window and 2 * active <= window
        return window > 1 and half and self.has_room()

    def is_full(self, tag: str, window: int) -> bool:
        """Tell whether nothing more comes: the whole window is held, and there is no room beside it."""
        return self._by_tag[tag] >= window and (window == 1 or not self.has_room())

    def whose(self) -> dict[str, int]:
        """Return how many are held for each cause, and issuer or authority."""
        found = Counter(_named(entry.cause, entry.party) for entry in self._entries.values())
        return dict(found.most_common())


def _named(cause: Cause | None, party: str | None) -> str:
    """Return a cause with whose it is."""
    name = "" if cause is None else cause.value
    return name if party is None else f"{name} of {party}"
