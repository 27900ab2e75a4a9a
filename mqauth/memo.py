"""What pure functions returned, remembered within a bound of bytes."""

from __future__ import annotations

import threading
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
_SHARE: Final = 64


class Memo(Generic[K, V]):
    """Values by the whole input they follow from; when it is full all of them are forgotten.

    Anybody may write what is remembered here, so that its bytes are what counts, and no entry takes more than a
    64th of them. Forgetting all costs no bookkeeping at each look: only a flood of inputs comes to it.

    Args:
        capacity: bytes of all entries together, by what ``put`` is told.
    """

    __slots__ = ("_capacity", "_found", "_held", "_lock", "get")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._found: dict[K, V] = {}
        self._held = 0
        self._lock = threading.Lock()
        self.get = self._found.get
        """Return the value of an input, or ``None``."""

    def __len__(self) -> int:
        return len(self._found)

    def put(self, key: K, value: V, size: int) -> None:
        """Remember a value.

        Args:
            key: the whole input.
            value: what follows from it.
            size: bytes that both take.
        """
        if self.charge(size):
            self._found[key] = value

    def charge(self, size: int) -> bool:
        """Count bytes that are about to be kept, here or in a remembered value; make room where it is short.

        Returns:
            Whether they may be kept: one entry takes no more than its share.
        """
        if size > self._capacity // _SHARE:
            return False
        with self._lock:
            if self._held + size > self._capacity:
                self._found.clear()
                self._held = 0
            self._held += size
        return True
