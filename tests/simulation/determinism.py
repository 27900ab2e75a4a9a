"""Makes two runs of one seed equal: hashes, random numbers, and the clocks that clients read.

The clients' code is not changed. Sets of theirs that hold objects hashed by address are made ordered, and what
reads the machine's clock or entropy reads the simulation's.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator, MutableSet
from itertools import count
from typing import Any, Final

from tests.simulation.clock import EPOCH

HASH_SEED: Final = "0"
_SERIAL: Final = count(1)
_ENTROPY: Final = random.Random(0)


class OrderedSet(MutableSet[Any]):
    """A set that iterates in the order of insertion; ``pop`` removes the oldest item."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self._items = dict.fromkeys(items)

    def __contains__(self, item: object) -> bool:
        return item in self._items

    def __iter__(self) -> Iterator[Any]:
        return iter(tuple(self._items))

    def __len__(self) -> int:
        return len(self._items)

    def add(self, value: Any) -> None:
        """Add an item."""
        self._items[value] = None

    def discard(self, value: Any) -> None:
        """Remove an item if it is in the set."""
        self._items.pop(value, None)


class _Serial:
    """What is hashed by its number, so that a set of such has the same order in every run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.serial = next(_SERIAL)
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self.serial

    __eq__ = object.__eq__


class SerialTask(_Serial, asyncio.Task[Any]):
    """A task."""


class SerialFuture(_Serial, asyncio.Future[Any]):
    """A future."""


def begin(seed: int) -> None:
    """Seed everything random."""
    global _SERIAL  # noqa: PLW0603 - one counter for all loops of a seed
    _SERIAL = count(1)  # type: ignore[misc]
    random.seed(seed)
    _ENTROPY.seed(seed)


def install() -> None:
    """Replace the machine's entropy and clock; call it before mqauth and the clients are imported."""
    os.urandom = _ENTROPY.randbytes  # type: ignore[assignment]
    time.monotonic = _seconds
    time.time = lambda: EPOCH + _seconds()
    import aio_pika.tools
    import aiormq.base
    import aiormq.channel
    import aiormq.tools

    for module in (aio_pika.tools, aiormq.base, aiormq.channel):
        module.set = OrderedSet  # type: ignore[attr-defined]


def is_hashed() -> bool:
    """Tell whether text is hashed the same way in every run."""
    return os.environ.get("PYTHONHASHSEED") == HASH_SEED


def again_hashed() -> None:
    """Run this very command again with the hash seed fixed; does not return."""
    os.environ["PYTHONHASHSEED"] = HASH_SEED
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def _seconds() -> float:
    """Return the virtual seconds of the running process; 0 outside of one."""
    loop = asyncio._get_running_loop()
    return 0.0 if loop is None else loop.time()
