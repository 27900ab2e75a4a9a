"""Dead letters of a framework's broker, whose sink is made once the broker starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from mqauth.brokers.dead_letters import look
from mqauth.brokers.event_loop import letters_on_thread
from mqauth.errors import require
from mqauth.flow import arun, settled
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
        """Make the sink, anew where the broker starts again: its connection may have ended with the broker's.

        Raises:
            ConfigurationError: it publishes only together with offsets, which FastStream commits.
        """
        sink = await settled(self._given()) if callable(self._given) else self._given
        transactional = sink is not None and not hasattr(sink, "publish")
        require(
            not transactional, "FastStream commits its offsets itself: transactional dead letters cannot be used"
        )
        self._sink = None if sink is None else letters_on_thread(sink)
        await arun(look(self))

    async def publish(self, letter: DeadLetter, /) -> None:
        """Publish a letter; return once the broker has confirmed it; the sink is made now if need be."""
        if self._sink is None:
            await self.start()
        await self._sink.publish(letter)

    async def exists(self) -> Any:
        """Return whether the broker has the queue or topic, as far as it tells."""
        return await self._sink.exists()
