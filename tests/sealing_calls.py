"""Calls of ``Sealing.publish`` that a test can leave without a confirm."""

from __future__ import annotations

import asyncio
from typing import Any

from mqauth import Message
from mqauth.brokers.sealing import Sealing


def closed() -> OSError:
    """Return the error of a call after the end."""
    return OSError("closed")


class Calls:
    """Publishes messages, and confirms them when told.

    Args:
        sealing: seals them.

    Attributes:
        confirms: one for each call that is to return.
    """

    def __init__(self, sealing: Sealing) -> None:
        self.sealing = sealing
        self.confirms = asyncio.Queue[None]()
        self.calls: set[asyncio.Task[None]] = set()

    def start(self, *messages: Message) -> list[asyncio.Task[Any]]:
        """Publish messages; return for each a task that ends once it is sealed, or will not be."""
        return [asyncio.create_task(self._sealed(message)) for message in messages]

    async def _sealed(self, message: Message) -> Message:
        sealed: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        async def send(message: Message) -> None:
            sealed.set_result(message)
            await self.confirms.get()

        call = asyncio.create_task(self.sealing.publish(message, send))
        self.calls.add(call)
        try:
            await asyncio.wait((sealed, call), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            call.cancel()
            raise
        if not sealed.done():
            await call
        return sealed.result()
