"""Messages that concurrent callers publish, sealed together under one signature: for every asyncio client.

What is published before the event loop turns is sealed together, and nothing waits for more, unless ``linger`` is
above 0. Then a message that others are unconfirmed beside waits until as many wait as are unconfirmed, or for
``linger``: their confirms take time anyway, and no rate has to be configured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias, TypeVar

from mqauth.brokers.event_loop import Timer, call_later, signed
from mqauth.brokers.process import HomeProcess
from mqauth.signer import Prepared, Signer, check_batching
from mqauth.wire.message import Message

R = TypeVar("R")


_Waiting: TypeAlias = tuple[Prepared, asyncio.Future[Message]]
"""A prepared message, and the future of its sealed form."""


class Sealing:
    """Seals the messages of concurrent callers together; each caller gets its own message or its own error.

    Args:
        signer: signs.
        batch: most messages under one signature, 1 to 1,024.
        linger: most seconds that a message waits for others, 0 to 10; with 0 it waits for the event loop's turn.
        refusal: makes the error of a call that comes after ``close``.
        timer: calls a function after so many seconds.

    Attributes:
        home: where it is used.
        running: calls of ``publish`` that are running.

    Raises:
        ConfigurationError: a setting is out of its limits.
    """

    def __init__(
        self,
        signer: Signer,
        batch: int,
        linger: float,
        refusal: Callable[[], Exception],
        *,
        timer: Timer = call_later,
    ) -> None:
        check_batching(batch, linger)
        self.home = HomeProcess("producer")
        self.running = 0
        self._refusal = refusal
        self._closed, self._idle = False, asyncio.Event()
        self._signer = signer
        self._batch = batch
        self._linger = linger
        self._timer = timer
        self._waiting: list[_Waiting] = []
        self._tasks: set[asyncio.Task[list[Message]]] = set()
        self._round = 0
        self._asked = (-1, False)

    async def publish(
        self, message: Message, send: Callable[[Message], Awaitable[R]]
    ) -> R:
        """Seal a message with others, send it, and return what ``send`` returns.

        Args:
            message: as it will be on the wire, but for the token.
            send: sends the sealed message, and returns once the broker has confirmed it.

        Raises:
            MalformedMessage: the message cannot be signed; others are not concerned.
            ConfigurationError, Unavailable: there is no key to sign with.
        """
        self.home.check()
        if self._closed:
            raise self._refusal()
        prepared, self._blocking = self._signer.prepare(message), self._signer.blocking
        sealed: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting.append((prepared, sealed))
        self.running += 1
        self._consider()
        try:
            # What came in this turn is sealed in the next, all in its order: a future would wake us a turn later.
            if self._batch > 1:
                await asyncio.sleep(0)
            return await send(await sealed)
        finally:
            sealed.cancel()
            self.running -= 1
            self._consider()
            if not self.running:
                self._idle.set()

    async def close(self) -> None:
        """Refuse calls from now on, seal what waits, and return once no call is running."""
        self.home.check()
        self._closed = True
        self.seal_now()
        if self.running:
            self._idle.clear()
            await self._idle.wait()

    def seal_now(self) -> None:
        """Seal everything that waits."""
        waiting, self._waiting = self._waiting, []
        self._round += 1
        groups: dict[object, list[_Waiting]] = {}
        for prepared, sealed in waiting:
            # The future is done already where its caller was cancelled.
            if not sealed.done():
                groups.setdefault(prepared.group, []).append((prepared, sealed))
        for group in groups.values():
            # On a thread where the key may block.
            together = [each for each, _ in group]
            if self._blocking:
                task = asyncio.create_task(
                    signed(self._signer, self._signer.seal, together)
                )
                self._tasks.add(task)
                task.add_done_callback(partial(self._ended, group))
            else:
                self._tell(group, partial(self._signer.seal, together))

    def _consider(self) -> None:
        """Seal what waits: at once for a full batch, else after what is ready in the event loop, or later."""
        waiting = len(self._waiting)
        if waiting >= self._batch:
            return self.seal_now()
        # More are sealed, and have no confirm yet, than wait.
        held = self._linger > 0 and waiting < self.running - waiting
        # A key that blocks signs one batch after the other: until it has, others join the next.
        if waiting and not self._tasks and self._asked != (self._round, held):
            self._asked = self._round, held
            ask = (
                partial(self._timer, self._linger)
                if held
                else asyncio.get_running_loop().call_soon
            )
            ask(partial(self._ring, self._round))

    def _ring(self, number: int) -> None:
        """Seal what waits, unless a later round has begun since the call was asked for."""
        if number == self._round:
            self.seal_now()

    def _ended(self, group: list[_Waiting], task: asyncio.Task[list[Message]]) -> None:
        self._tasks.discard(task)
        self._tell(group, task.result)
        self._consider()

    def _tell(self, group: list[_Waiting], seal: Callable[[], list[Message]]) -> None:
        """Give each caller its sealed message or the error, but those who were cancelled meanwhile."""
        try:
            sealed = seal()
        except (Exception, asyncio.CancelledError) as error:
            for _, outcome in group:
                if not outcome.done():
                    outcome.set_exception(error)
                    # Heard already: a caller that is being cancelled does not ask.
                    outcome.exception()
        else:
            for (_, outcome), message in zip(group, sealed, strict=True):
                if not outcome.done():
                    outcome.set_result(message)
