"""Messages that concurrent callers publish, sealed together under one signature: for every asyncio client.

How long a message waits for others follows from the broker's confirms, so that no rate has to be configured. A
publish alone is sealed at once. While many messages are unconfirmed their confirms take time anyway, so new ones
wait for each other: until they are as many as the unconfirmed ones or a full batch, and never longer than half the
time a confirm takes, or ``linger``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import TypeAlias, TypeVar

from mqauth.brokers.event_loop import Timer, call_later, signed
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import MalformedMessage
from mqauth.signer import Prepared, Signer
from mqauth.wire.batch import DEFAULT_LINGER, check_batching
from mqauth.wire.message import Message

R = TypeVar("R")


class Pace:
    """Decides when waiting messages are sealed.

    Args:
        batch: most messages under one signature, 1 to 1,024.
        linger: most seconds that a message waits for others, 0 to 10.

    Attributes:
        unconfirmed: messages that were sealed and have no confirm yet.
        latency: measured seconds from a seal to its confirm.

    Raises:
        ConfigurationError: a setting is out of its limits.
    """

    def __init__(self, batch: int, linger: float = DEFAULT_LINGER) -> None:
        check_batching(batch, linger)
        self.batch = batch
        self.linger = linger
        self.unconfirmed = 0
        self.latency = 0.0

    def confirmed(self, seconds: float) -> None:
        """Count a confirm that took so many seconds from its seal."""
        self.unconfirmed -= 1
        # Weight of the latest confirm in the measured latency.
        weight = 0.1 if self.latency else 1.0
        self.latency += weight * (seconds - self.latency)

    def lost(self) -> None:
        """Count a message that ended without a confirm; it says nothing about the latency."""
        self.unconfirmed -= 1

    def hold(self, waiting: int) -> float:
        """Return for how many seconds ``waiting`` messages may still wait, 0 to seal them now."""
        if waiting >= min(self.batch, self.unconfirmed):
            return 0.0
        return min(self.linger, self.latency / 2)


_Waiting: TypeAlias = tuple[Prepared, asyncio.Future[Message]]
"""A prepared message, and the future of its sealed form."""


class SingleSealing:
    """Seals each message by itself.

    Args:
        signer: signs.
    """

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    async def publish(self, message: Message, send: Callable[[Message], Awaitable[R]]) -> R:
        """Sign a message, send it, and return what ``send`` returns.

        Raises:
            MalformedMessage: the message cannot be signed.
            ConfigurationError, Unavailable: there is no key to sign with.
        """
        return await send(await signed(self._signer, self._signer.sign, message))

    def seal_now(self) -> None:
        """Do nothing: no message waits."""


class Sealing:
    """Seals the messages of concurrent callers together; each caller gets its own message or its own error.

    Args:
        signer: signs.
        pace: decides when.
        clock: its monotonic seconds measure the latency.
        timer: calls a function after so many seconds.
    """

    def __init__(
        self, signer: Signer, pace: Pace, *, clock: Clock = SYSTEM_CLOCK, timer: Timer = call_later
    ) -> None:
        self.pace = pace
        self._signer = signer
        self._clock = clock
        self._timer = timer
        self._waiting: list[_Waiting] = []
        self._tasks: set[asyncio.Task[list[Message]]] = set()
        self._round = 0
        self._called = -1
        self._timed = -1

    async def publish(self, message: Message, send: Callable[[Message], Awaitable[R]]) -> R:
        """Seal a message with others, send it, and return what ``send`` returns.

        Args:
            message: as it will be on the wire, but for the token.
            send: sends the sealed message, and returns once the broker has confirmed it.

        Raises:
            MalformedMessage: the message cannot be signed; others are not concerned.
            ConfigurationError, Unavailable: there is no key to sign with.
        """
        sealed, since = await self.seal(message)
        try:
            result = await send(sealed)
        except BaseException:
            self.lost()
            raise
        self.confirmed(since)
        return result

    async def seal(self, message: Message) -> tuple[Message, float]:
        """Return a sealed message, and when it was sealed in monotonic seconds.

        The caller ends it with ``confirmed`` or ``lost``.

        Raises:
            MalformedMessage: the message cannot be signed; others are not concerned.
            ConfigurationError, Unavailable: there is no key to sign with.
        """
        prepared = self._signer.prepare(message)
        sealed: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting.append((prepared, sealed))
        self._consider()
        try:
            return await sealed, self._clock.monotonic()
        except asyncio.CancelledError:
            # The message may have been sealed for a caller that was cancelled before it could send it.
            if sealed.done() and not sealed.cancelled() and sealed.exception() is None:
                self.lost()
            raise

    def confirmed(self, since: float) -> None:
        """Count the confirm of a message that was sealed at ``since``, monotonic seconds."""
        self.pace.confirmed(self._clock.monotonic() - since)
        self._consider()

    def lost(self) -> None:
        """Count a sealed message that ended without a confirm."""
        self.pace.lost()
        self._consider()

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
            self._seal(group)

    def _consider(self) -> None:
        """Seal what waits: at once for a full batch, else after what is ready in the event loop, or later."""
        waiting = len(self._waiting)
        if not waiting:
            return
        if waiting >= self.pace.batch:
            return self.seal_now()
        hold = self.pace.hold(waiting)
        if hold <= 0 and self._called != self._round:
            self._called = self._round
            asyncio.get_running_loop().call_soon(self._ring, self._round)
        elif hold > 0 and self._timed != self._round:
            self._timed = self._round
            self._timer(hold, partial(self._ring, self._round))

    def _ring(self, number: int) -> None:
        """Seal what waits, unless a later round has begun since the call was asked for."""
        if number == self._round:
            self.seal_now()

    def _seal(self, group: list[_Waiting]) -> None:
        """Have one group sealed, on a thread where the key may block; its messages are unconfirmed from now on."""
        self.pace.unconfirmed += len(group)
        prepared = [each for each, _ in group]
        try:
            if self._signer.blocking:
                task = asyncio.create_task(signed(self._signer, self._signer.seal, prepared))
                self._tasks.add(task)
                task.add_done_callback(partial(self._ended, group))
            else:
                self._tell(group, self._signer.seal(prepared))
        except Exception as error:
            self._refuse(group, error)

    def _ended(self, group: list[_Waiting], task: asyncio.Task[list[Message]]) -> None:
        self._tasks.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            self._tell(group, task.result())
        else:
            self._refuse(group, error)

    def _tell(self, group: list[_Waiting], sealed: list[Message]) -> None:
        """Give each caller its sealed message, but those who were cancelled meanwhile."""
        for (_, outcome), message in zip(group, sealed, strict=True):
            if outcome.done():
                self.lost()
            else:
                outcome.set_result(message)

    def _refuse(self, group: list[_Waiting], error: BaseException) -> None:
        """Give each caller the error; where the token of all would be too large, seal each by itself."""
        self.pace.unconfirmed -= len(group)
        alone = isinstance(error, MalformedMessage) and len(group) > 1
        for prepared, outcome in group:
            if alone:
                self._seal([(prepared, outcome)])
            elif not outcome.done():
                outcome.set_exception(error)
        self._consider()


class OpenCalls:
    """Counts the calls of a producer that are running, and lets its ``close`` wait for them.

    Args:
        refusal: makes the error of a call that comes after ``close``.
    """

    def __init__(self, refusal: Callable[[], Exception]) -> None:
        self._refusal = refusal
        self._count = 0
        self._over: asyncio.Future[None] | None = None

    def __enter__(self) -> None:
        if self._over is not None:
            raise self._refusal()
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._count -= 1
        self._tell()

    def close(self) -> None:
        """Refuse calls from now on."""
        if self._over is None:
            self._over = asyncio.get_running_loop().create_future()
            self._tell()

    async def over(self) -> None:
        """Return once calls are refused and none is running."""
        self.close()
        if self._over is not None:
            await asyncio.shield(self._over)

    def _tell(self) -> None:
        if self._over is not None and not self._count and not self._over.done():
            self._over.set_result(None)
