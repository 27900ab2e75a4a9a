"""Sends acks: one ``basic.ack`` with ``multiple`` for every settled delivery before it, as ``Ledger`` allows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final
from weakref import WeakKeyDictionary

from aiormq.abc import AbstractChannel

from mqauth.brokers.rabbitmq_channel import told
from mqauth.brokers.timer import Timer, call_later
from mqauth.delivery.ledger import Ledger
from mqauth.pipeline import Delivery

SOON: Final = 0.005
"""Seconds after which a settled delivery is acked, however few there are."""
MOST: Final = 256
"""Settled deliveries that wait for nothing more."""
_CLEAN: Final[WeakKeyDictionary[AbstractChannel, int]] = WeakKeyDictionary()


class Acks:
    """Acks the deliveries of one channel: many in a frame, the first of them at most ``SOON`` late.

    Sent at once where half the window, or the whole of it, waits to be acked: the broker would send nothing.

    Args:
        channel: aiormq's, which the deliveries are of.
        lost: told what could not be acked; the broker delivers it again.
        window: the prefetch; may change with it.
        name: names the queue in the log.
        timer: calls a function after so many seconds.
    """

    def __init__(
        self,
        channel: AbstractChannel,
        *,
        lost: Callable[[Sequence[Delivery]], None],
        window: int = 1,
        name: str = "",
        timer: Timer = call_later,
    ) -> None:
        self.channel = channel
        self.window = window
        self._lost = lost
        self._name = name
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
        elif self._pressing():
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

    def _pressing(self) -> bool:
        """Tell whether no more is to be waited for."""
        ledger = self._ledger
        return ledger.waiting >= min(max(1, self.window // 2), MOST) or ledger.unacked >= self.window

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
                act = partial(self.channel.basic_ack, ack.tag, multiple=ack.multiple)
                if not await told(act, f"ack on {self._name}"):
                    self._lost(ack.deliveries)
            if not self._ledger.waiting or not self._pressing():
                break
        if self._ledger.waiting and not self._timed:
            self._timed = True
            self._timer(SOON, self._ring)
