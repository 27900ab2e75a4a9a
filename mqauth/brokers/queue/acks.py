"""Sends acks: one of many for every settled delivery before it, as ``Ledger`` allows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from mqauth.brokers.timer import Timer, call_later
from mqauth.delivery.ledger import Ledger
from mqauth.judging.pipeline import Delivery

SOON: Final = 0.005
"""Seconds after which a settled delivery is acked, however few there are."""
Send = Callable[[int, bool], Awaitable[bool]]
"""Sends the ack of a tag, and of all before it where told so; false where its channel is gone."""
_CLEAN: Final[WeakKeyDictionary[Any, int]] = WeakKeyDictionary()


class Acks:
    """Acks the deliveries of one channel: many in a frame, the first of them at most ``SOON`` late.

    Sent at once where half the window, or the whole of it, waits to be acked: the broker would send nothing.

    Args:
        channel: the client's, which the deliveries are of.
        send: sends an ack on it.
        lost: told what could not be acked; the broker delivers it again.
        window: the prefetch; may change with it.
        timer: calls a function after so many seconds.
    """

    def __init__(
        self,
        channel: Any,
        send: Send,
        *,
        lost: Callable[[Sequence[Delivery]], None],
        window: int = 1,
        timer: Timer = call_later,
    ) -> None:
        self.channel = channel
        self.window = window
        self._send_ack = send
        self._lost = lost
        self._timer = timer
        self._ledger = Ledger(_CLEAN.pop(channel, 0))
        self._timed = False
        self._sending: asyncio.Task[None] | None = None
        self._closed = False

    def opened(self, tag: int) -> None:
        """Note a delivery, in the order the channel delivers."""
        self._ledger.opened(tag)

    def gone(self, tag: int) -> None:
        """Note that a delivery needs no ack: it was given back, or acked by its handler."""
        self._ledger.gone(tag)

    def settle(self, tag: int, delivery: Delivery) -> None:
        """Have a delivery acked soon."""
        self._ledger.settled(tag, delivery)
        if self._closed:
            self._lost(self._ledger.drop())
        elif self._ledger.presses(self.window):
            self._send_now()
        elif not self._timed:
            self._timed = True
            self._timer(SOON, self._ring)

    def close(self) -> None:
        """Give up: the channel is gone, and its tags with it."""
        self._closed = True
        if dropped := self._ledger.drop():
            self._lost(dropped)

    async def finish(self) -> None:
        """Ack everything settled, and return when it was sent; another consumer of the channel may go on."""
        await self._flush()
        if clean := self._ledger.clean:
            _CLEAN[self.channel] = clean

    async def _flush(self) -> None:
        """Ack everything settled, and return when it was sent."""
        if self._ledger.waiting:
            self._send_now()
        while self._sending is not None and not self._sending.done():
            await asyncio.wait((self._sending,))
            if self._ledger.waiting:
                self._send_now()

    def _ring(self) -> None:
        """Ack what there is when the time is up."""
        self._timed = False
        if self._ledger.waiting:
            self._send_now()

    def _send_now(self) -> None:
        """Send in a task that begins when whatever else is ready has run, and may have settled more."""
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        """Send what is settled; and again, while that was pressing too."""
        while True:
            for ack in self._ledger.take():
                if not await self._send_ack(ack.tag, ack.multiple):
                    self._lost(ack.deliveries)
            if not self._ledger.waiting or not self._ledger.presses(self.window):
                break
        if self._ledger.waiting and not self._timed:
            self._timed = True
            self._timer(SOON, self._ring)
