"""Dead letters of a framework's broker, whose sink is made once the broker starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

from mqauth.brokers.dead_letters import look
from mqauth.flow import arun, is_async, settled
from mqauth.letters.dead_letter import DeadLetter, DeadLetterSink

Letters: TypeAlias = DeadLetterSink | Callable[[], Any]
"""A sink, or what makes one."""


class LateLetters:
    """A dead-letter sink that is made when the broker starts, and that may block.

    Args:
        given: the sink, or a function that returns it.
    """

    def __init__(self, given: Letters | None) -> None:
        self._given: Any = given
        self._sink: Any = None

    @property
    def name(self) -> str:
        """The queue or topic, once the sink was made."""
        return getattr(self._sink, "name", "")

    async def start(self) -> None:
        """Make the sink, anew where the broker starts again: its connection may have ended with the broker's."""
        self._sink = await settled(self._given()) if callable(self._given) else self._given
        await arun(look(self))

    async def ready(self) -> Any:
        """Return the sink, made now if need be."""
        if self._sink is None:
            await self.start()
        return self._sink

    async def publish(self, letter: DeadLetter, /) -> None:
        """Publish a letter; return once the broker has confirmed it."""
        await self._call("publish", letter)

    async def exists(self) -> Any:
        """Return whether the broker has the queue or topic, as far as it tells.

        Raises:
            AttributeError: the sink cannot be asked.
        """
        return await self._call("exists")

    async def _call(self, name: str, *given: Any) -> Any:
        call = getattr(await self.ready(), name)
        return await settled(call(*given) if is_async(call) else await asyncio.to_thread(call, *given))
