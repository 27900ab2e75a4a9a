"""One message of an id in flight at a time: aiormq 7.2 tells a returned message by its id alone.

Of two messages of one id on one channel, of which the broker returns one, aiormq would give the return to the
other's caller too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary

from aio_pika.abc import AbstractExchange


@dataclass(slots=True)
class _Turn:
    """Who is publishing under one message id, and how many wait for their turn."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


_TURNS: Final[WeakKeyDictionary[Any, dict[str, _Turn]]] = WeakKeyDictionary()


@asynccontextmanager
async def turn(exchange: AbstractExchange, message_id: str) -> AsyncIterator[None]:
    """Keep two messages of one id from being in flight on one channel: aiormq would swap their outcomes."""
    turns = _TURNS.setdefault(getattr(exchange, "channel", exchange), {})
    turn = turns.setdefault(message_id, _Turn())
    turn.users += 1
    try:
        async with turn.lock:
            yield
    finally:
        turn.users -= 1
        if not turn.users:
            turns.pop(message_id, None)
