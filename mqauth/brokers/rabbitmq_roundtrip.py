"""The question whether a consuming channel lives: it changes nothing, and the broker answers it in order."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final
from weakref import WeakKeyDictionary

from mqauth.brokers.rabbitmq_channel import LOST, closing_is_an_error, is_blocked
from mqauth.delivery.questions import Questions

PATIENCE: Final = 10
"""Parts of the time an answer may take; a loop that stood still uses up one of them, however long it stood."""
PART: Final = 1.0
"""Seconds of a part."""
_LOG: Final = logging.getLogger("mqauth.rabbitmq")


class RoundTrip:
    """Asks the broker on one channel, once for all who wait when it is asked.

    The question is ``channel.flow`` with ``active=true``, which a channel is anyway (AMQP 0-9-1, 1.5.2.3): it
    needs no value of the consumer's, as ``basic.qos`` would.

    Args:
        channel: aiormq's, that the deliveries are of.
        part: seconds of each part of the time an answer may take.
    """

    def __init__(self, channel: Any, *, part: float = PART) -> None:
        self._channel = channel
        self._part = part
        self._questions = Questions[asyncio.Future[bool]]()
        self._asking: asyncio.Task[None] | None = None

    async def lives(self) -> bool:
        """Tell whether the channel answers a question that is asked from now on; closed where it does not."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self._questions.add(answer):
            self._asking = asyncio.create_task(self._ask())
        return await answer

    async def _ask(self) -> None:
        """Ask until nobody waits."""
        while self._questions.ask():
            lives = False
            try:
                lives = await self._answered()
            finally:
                for answer in self._questions.answered():
                    if not answer.done():
                        answer.set_result(lives)

    async def _answered(self) -> bool:
        """Ask once; ``False`` where the channel ended, or is closed here since no answer came."""
        asked = asyncio.ensure_future(self._channel.flow(active=True))
        if not await self._in_time(asked):
            _LOG.error("the broker did not answer on a channel within %g s: closing it", PATIENCE * self._part)
            # aiormq closes a channel whose call is cancelled, and waits for nothing
            asked.cancel()
            await asyncio.wait((asked,), timeout=self._part)
            return False
        try:
            with closing_is_an_error():
                await asked
        except LOST:
            return False
        return True

    async def _in_time(self, asked: asyncio.Future[Any]) -> bool:
        """Wait for an answer; the time counts only while the loop runs and the connection is not blocked."""
        left = PATIENCE
        while left:
            await asyncio.wait((asked,), timeout=self._part)
            if asked.done():
                return True
            left = PATIENCE if is_blocked(self._channel) else left - 1
        return False


_ROUND_TRIPS: Final[WeakKeyDictionary[Any, RoundTrip]] = WeakKeyDictionary()


def round_trip(channel: Any) -> RoundTrip:
    """Return the one that asks on a channel of aiormq's."""
    found = _ROUND_TRIPS.get(channel)
    if found is None:
        found = _ROUND_TRIPS[channel] = RoundTrip(channel)
    return found
