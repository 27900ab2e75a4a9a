"""Sends acks: one of many for every settled delivery before it, as ``DeliveryTags`` allows.

Asks a broker whether a consuming channel lives: the question changes nothing, and is answered in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from mqauth.brokers.event_loop import Timer, call_later
from mqauth.delivery.acks import DeliveryTags
from mqauth.delivery.slot import TIMEOUT_PARTS, AnswerTimeout, RoundTripQueue
from mqauth.judging.pipeline import Delivery

ACK_DELAY: Final = 0.005
"""Seconds after which a settled delivery is acked, however few there are."""
Send = Callable[[int, bool], Awaitable[bool]]
"""Sends the ack of a tag, and of all before it where told so; false where its channel is gone."""
_CLEAN: Final[WeakKeyDictionary[Any, int]] = WeakKeyDictionary()


class Acks:
    """Acks the deliveries of one channel: many in a frame, the first of them at most ``ACK_DELAY`` late.

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
        self._tags = DeliveryTags(_CLEAN.pop(channel, 0))
        self._timed = False
        self._sending: asyncio.Task[None] | None = None
        self._closed = False

    def opened(self, tag: int) -> None:
        """Note a delivery, in the order the channel delivers."""
        self._tags.opened(tag)

    def gone(self, tag: int) -> None:
        """Note that a delivery needs no ack: it was given back, or acked by its handler."""
        self._tags.gone(tag)

    def settle(self, tag: int, delivery: Delivery) -> None:
        """Have a delivery acked soon."""
        self._tags.settled(tag, delivery)
        if self._closed:
            self._lost(self._tags.drop())
        elif self._tags.presses(self.window):
            self._send_now()
        elif not self._timed:
            self._timed = True
            self._timer(ACK_DELAY, self._ring)

    def close(self) -> None:
        """Give up: the channel is gone, and its tags with it."""
        self._closed = True
        if dropped := self._tags.drop():
            self._lost(dropped)

    async def finish(self) -> None:
        """Ack everything settled, and return when it was sent; another consumer of the channel may go on."""
        await self._flush()
        if clean := self._tags.clean:
            _CLEAN[self.channel] = clean

    async def _flush(self) -> None:
        """Ack everything settled, and return when it was sent."""
        if self._tags.waiting:
            self._send_now()
        while self._sending is not None and not self._sending.done():
            await asyncio.wait((self._sending,))
            if self._tags.waiting:
                self._send_now()

    def _ring(self) -> None:
        """Ack what there is when the time is up."""
        self._timed = False
        if self._tags.waiting:
            self._send_now()

    def _send_now(self) -> None:
        """Send in a task that begins when whatever else is ready has run, and may have settled more."""
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        """Send what is settled; and again, while that was pressing too."""
        while True:
            for ack in self._tags.take():
                if not await self._send_ack(ack.tag, ack.multiple):
                    self._lost(ack.deliveries)
            if not self._tags.waiting or not self._tags.presses(self.window):
                break
        if self._tags.waiting and not self._timed:
            self._timed = True
            self._timer(ACK_DELAY, self._ring)


PART: Final = 1.0
"""Seconds of each part of the time an answer may take."""
_LOG: Final = logging.getLogger("mqauth.delivery")


class RoundTrip:
    """Asks the broker on one channel, once for all who wait when it is asked.

    Args:
        ask: asks, and returns whether the channel lives; cancelled where no answer came, it closes the channel.
        is_blocked: tells whether the broker has blocked the connection, and answers nothing there.
        part: seconds of each part of the time an answer may take.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[bool]], is_blocked: Callable[[], bool], *, part: float = PART
    ) -> None:
        self._ask_broker = ask
        self._is_blocked = is_blocked
        self._part = part
        self._waiting = RoundTripQueue[asyncio.Future[bool]]()
        self._asking: asyncio.Task[None] | None = None

    async def lives(self) -> bool:
        """Tell whether the channel answers a question that is asked from now on; closed where it does not."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self._waiting.add(answer):
            self._asking = asyncio.create_task(self._ask())
        return await answer

    async def _ask(self) -> None:
        """Ask until nobody waits."""
        while self._waiting.ask():
            lives = False
            try:
                lives = await self._answered()
            finally:
                for answer in self._waiting.answered():
                    if not answer.done():
                        answer.set_result(lives)

    async def _answered(self) -> bool:
        """Ask once; ``False`` where the channel ended, or is closed here since no answer came."""
        asked = asyncio.ensure_future(self._ask_broker())
        if await self._in_time(asked):
            return await asked
        _LOG.error("the broker did not answer on a channel within %g s: closing it", TIMEOUT_PARTS * self._part)
        asked.cancel()
        await asyncio.wait((asked,), timeout=self._part)
        return False

    async def _in_time(self, asked: asyncio.Future[bool]) -> bool:
        """Wait for an answer; the time counts only while the loop runs and the connection is not blocked."""
        patience = AnswerTimeout()
        while True:
            await asyncio.wait((asked,), timeout=self._part)
            if asked.done():
                return True
            if patience.is_over(blocked=self._is_blocked()):
                return False
