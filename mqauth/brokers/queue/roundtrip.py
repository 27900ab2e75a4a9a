"""Asks a broker whether a consuming channel lives: the question changes nothing, and is answered in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from mqauth.delivery.questions import PATIENCE, Patience, Questions

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
        asked = asyncio.ensure_future(self._ask_broker())
        if await self._in_time(asked):
            return await asked
        _LOG.error("the broker did not answer on a channel within %g s: closing it", PATIENCE * self._part)
        asked.cancel()
        await asyncio.wait((asked,), timeout=self._part)
        return False

    async def _in_time(self, asked: asyncio.Future[bool]) -> bool:
        """Wait for an answer; the time counts only while the loop runs and the connection is not blocked."""
        patience = Patience()
        while True:
            await asyncio.wait((asked,), timeout=self._part)
            if asked.done():
                return True
            if patience.is_over(blocked=self._is_blocked()):
                return False
