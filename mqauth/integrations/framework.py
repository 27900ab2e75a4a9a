"""What a framework that owns the consumer needs: ``Turn``, and dead letters that are made as its broker starts.

The pipeline calls a handler and waits for it; a framework's middleware is called before and after the handler.
``Turn`` turns the one into the other: the pipeline runs in a task of its own, and its handler waits there until
the framework has come to an end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, Final, TypeAlias

from mqauth.brokers.event_loop import letters_on_thread, look
from mqauth.errors import Cause, Unavailable, require
from mqauth.flow import arun, settled
from mqauth.judging.pipeline import Outcome
from mqauth.judging.verified import Unverified, Verified
from mqauth.letters.dead_letter import DeadLetter, DeadLetterSink

_TURN: Final[ContextVar[Turn]] = ContextVar("mqauth_turn")


async def handle(verified: Verified) -> None:
    """Pass an accepted message to the framework, and wait for its end: the handler that a pipeline is given.

    Raises:
        BaseException: what the framework's handler raised.
    """
    await _TURN.get().pass_on(verified)


async def handle_unverified(unverified: Unverified) -> None:
    """Pass a message that nothing proved to the framework, likewise.

    Raises:
        BaseException: what the framework's handler raised.
    """
    await _TURN.get().pass_on(unverified)


class Turn:
    """One delivery between the pipeline and a framework.

    Args:
        carry: begins to take it through the pipeline, whose handler is ``handle``.
    """

    def __init__(self, carry: Callable[[], Coroutine[Any, Any, Outcome | None]]) -> None:
        self._asked: asyncio.Queue[Verified | Unverified | None] = asyncio.Queue()
        self._answers: asyncio.Queue[BaseException | None] = asyncio.Queue()
        context = copy_context()
        context.run(_TURN.set, self)
        self._task = asyncio.create_task(carry(), context=context)
        self._task.add_done_callback(lambda _: self._asked.put_nowait(None))

    @property
    def is_over(self) -> bool:
        """Whether the pipeline has ended with it."""
        return self._task.done()

    async def pass_on(self, message: Verified | Unverified) -> None:
        """Ask for the handler, and wait for its end; called by the pipeline.

        Raises:
            BaseException: what the handler raised.
        """
        self._asked.put_nowait(message)
        error = await self._answers.get()
        if error is not None:
            raise error

    async def wanted(self) -> Verified | Unverified | None:
        """Wait until the handler is to be called; return ``None`` once the pipeline has ended with the delivery.

        Cancelled meanwhile, it gives the delivery back.
        """
        try:
            return await self._asked.get()
        except asyncio.CancelledError:
            await self.give_back()
            raise

    def end(self, error: BaseException | None = None) -> None:
        """Tell the pipeline that the handler returned, or what it raised."""
        self._answers.put_nowait(error)

    async def give_back(self) -> None:
        """Have the pipeline release the claim and give the delivery back, unhandled."""
        self._task.cancel()
        await asyncio.wait([self._task])

    def outcome(self) -> Outcome | None:
        """Return what the pipeline came to; ``None`` where the delivery is no longer ours.

        Raises:
            Exception: what ended the pipeline.
        """
        return None if self._task.cancelled() else self._task.result()


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
        require(
            sink is None or hasattr(sink, "publish"),
            "FastStream commits its offsets itself: transactional dead letters cannot be used",
        )
        self._sink = None if sink is None else letters_on_thread(sink)
        await arun(look(self))

    async def publish(self, letter: DeadLetter, /) -> None:
        """Publish a letter; return once the broker has confirmed it; the sink is made now if need be.

        Raises:
            ConfigurationError: as for ``start``.
            Unavailable: as the sink has it; or the letter would go where its message came from, and make another.
        """
        if self._sink is None:
            await self.start()
        require(
            self.name not in (letter.message.origin.queue, letter.message.origin.topic),
            "dead letters must go elsewhere than they came from",
            partial(Unavailable, Cause.DEAD_LETTER_UNAVAILABLE),
        )
        await self._sink.publish(letter)

    async def exists(self) -> Any:
        """Return whether the broker has the queue or topic, as far as it tells."""
        return await self._sink.exists()
