"""Bounded memories: ``Memo`` of what pure functions return, and ``Recent`` of the latest entries.

Most of a verdict is the same for thousands of messages: where the token stands among these header names, how
this destination is spelt, what this producer's token header says. A ``Memo`` remembers such results. Its key is
the whole argument, compared byte for byte and never by a digest, so what it returns is what the function would
return.

Anyone may send us header names, destinations and tokens, so a memo is bounded in bytes: a count of entries would
let a hostile sender make each of them a thousand times as large as an honest one. When the next entry has no
room, the memo forgets everything. Finding a value then needs no bookkeeping, and only a flood of different
arguments pays for that.

For example, ``place = Memo(spell)`` turns ``spell("orders")`` into ``place["orders"]``: the first look-up calls
``spell``, and every later one is a plain look-up in a dict.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Final, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
CAPACITY: Final = 4 * 1024 * 1024
"""Bytes that one memo may take, unless it is told otherwise."""
_SHARE: Final = (
    8  # one entry may take an eighth of a memo; a larger one is not remembered
)
_ENTRY: Final = 1024
_TEXT: Final = 192
_CHARACTER: Final = 4


def size_of(key: Any) -> int:
    """Return the bytes that a key takes together with what is made of it, at most; measured, and rounded up.

    Args:
        key: text, bytes or another scalar, or a tuple of keys.
    """
    return _ENTRY + _held_by(key)


class Memo(dict[K, V]):
    """What a function returned, by its argument.

    Args:
        function: called with an argument that is not remembered. What it raises is not remembered.
        size: returns the bytes that an argument takes together with its result, at most.
        capacity: bytes of all entries together.
    """

    def __init__(
        self,
        function: Callable[[K], V] | None = None,
        *,
        size: Callable[[K], int] = size_of,
        capacity: int = CAPACITY,
    ) -> None:
        super().__init__()
        self._function = function
        self._size = size
        self._capacity = capacity
        self._held = 0
        self._lock = threading.RLock()

    def __missing__(self, key: K) -> V:
        """Call the function, and remember what it returns."""
        if self._function is None:
            raise KeyError(key)
        value = self._function(key)
        self.keep(key, value, self._size(key))
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        # copied and pickled empty: what is remembered can be made again, and a lock cannot be pickled
        return partial(type(self), size=self._size, capacity=self._capacity), (
            self._function,
        )

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self._held = 0

    def keep(self, key: K, value: V, size: int) -> None:
        """Remember a value of so many bytes, unless there is one already or it is larger than its share."""
        with self._lock:
            if key not in self and self.charge(size):
                self[key] = value

    def charge(self, size: int) -> bool:
        """Count bytes that are about to be kept inside a value; tell whether they may be kept."""
        with self._lock:
            if size > self._capacity // _SHARE:
                return False
            if self._held + size > self._capacity:
                self.clear()
            self._held += size
            return True


class Recent(dict[K, V]):
    """The latest entries within a bound: the one that was kept the longest ago is forgotten first.

    Where several owners share it, the owner that has the most entries loses its oldest one: who makes many entries
    pushes out none of the others. It is not safe for threads to change.

    Args:
        capacity: of all sizes together.
        size: of an entry; by default each counts as one.
        owner: whose entry a key is; by default all have one owner.
    """

    def __init__(
        self,
        capacity: int,
        size: Callable[[K, V], int] = lambda _key, _value: 1,
        owner: Callable[[K], object] = lambda _key: None,
    ) -> None:
        super().__init__()
        self._capacity = capacity
        self._size = size
        self._owner = owner
        self._entries = Counter[object]()
        self.held = 0

    def keep(self, key: K, value: V) -> None:
        """Keep an entry as the newest, in place of what was kept under its key."""
        self.drop(key)
        self.held += self._size(key, value)
        self[key] = value
        self._entries[self._owner(key)] += 1
        while self.held > self._capacity and len(self) > 1:
            most = max(self._entries, key=self._entries.__getitem__)
            self.drop(next(each for each in self if self._owner(each) == most))

    def drop(self, key: K) -> V | None:
        """Forget an entry, and return its value; ``None`` where there is none."""
        if key not in self:
            return None
        value, owner = self.pop(key), self._owner(key)
        self.held -= self._size(key, value)
        self._entries[owner] -= 1
        if not self._entries[owner]:
            del self._entries[owner]
        return value

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self._entries.clear()
        self.held = 0


def _held_by(key: Any) -> int:
    if isinstance(key, tuple):
        # Names of headers: a record may have 330,000 of them, and a call for each is dear.
        if set(map(type, key)) == {str}:
            return _TEXT * len(key) + _CHARACTER * sum(map(len, key))
        return sum(map(_held_by, key))
    return _TEXT + (_CHARACTER * len(key) if isinstance(key, str | bytes) else 0)
