"""What concurrent callers publish, sealed together under one signature: for every client with an event loop.

The confirms that come back say when. A publish alone is sealed at once. While many are unconfirmed their answers
take time anyway, so that those which come meanwhile wait for each other: until they are as many as the unconfirmed
or a full batch, and never longer than half the time a confirm takes, or ``linger``. No rate has to be known, and
none is set.

A producer's calls that are under way on an event loop, and its closing: for every client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Final, NamedTuple, TypeVar

from mqauth.brokers.event_loop import Timer, call_later
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import MalformedMessage
from mqauth.signer import Prepared, Signer
from mqauth.wire.batch_settings import DEFAULT_LINGER, check_batching
from mqauth.wire.message import Message

R = TypeVar("R")
_WEIGHT: Final = 0.1
"""How much the last confirm counts in the measured latency."""


class Pace:
    """When those that wait are sealed; pure.

    Args:
        batch: messages under one signature, 1 to 1,024.
        linger: seconds a message waits for others at most, 0 to 10.

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
        """Note the time from a seal to its confirm; the latency follows, the first one at once."""
        self.unconfirmed -= 1
        weight = _WEIGHT if self.latency else 1.0
        self.latency += weight * (seconds - self.latency)

    def lost(self) -> None:
        """Note that one has ended without a confirm; it says nothing about the latency."""
        self.unconfirmed -= 1

    def hold(self, waiting: int) -> float:
        """Return the seconds that so many may still be held, 0 to seal them now."""
        if waiting >= min(self.batch, self.unconfirmed):
            return 0.0
        return min(self.linger, self.latency / 2)


class _Waiting(NamedTuple):
    """A prepared message, and who waits for its seal."""

    prepared: Prepared
    sealed: asyncio.Future[Message]


class SingleSealing:
    """Seals each message by itself.

    Args:
        signer: signs.
    """

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    async def publish(self, message: Message, send: Callable[[Message], Awaitable[R]]) -> R:
        """Sign a message, send it, and return what ``send`` does.

        Raises:
            MalformedMessage: the message cannot be signed.
            ConfigurationError, Unavailable: there is no key to sign with.
        """
        return await send(self._signer.sign(message))

    def seal_now(self) -> None:
        """Do nothing: nothing waits."""


class Sealing:
    """Seals what concurrent callers bring, each getting its own message back or its own error.

    Args:
        signer: signs.
        pace: when.
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
        self._round = 0
        self._called = -1
        self._timed = -1

    async def publish(self, message: Message, send: Callable[[Message], Awaitable[R]]) -> R:
        """Seal a message with others, send it, and return what ``send`` does.

        Args:
            message: as it will be on the wire, but for the token.
            send: sends it sealed, and returns once the broker has confirmed it.

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
        """Return a message sealed, and when, in monotonic seconds; end it with ``confirmed`` or ``lost``.

        Raises:
            MalformedMessage: the message cannot be signed; others are not concerned.
            ConfigurationError, Unavailable: there is no key to sign with.
        """
        prepared = self._signer.prepare(message)
        sealed: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(prepared, sealed))
        self._consider()
        try:
            return await sealed, self._clock.monotonic()
        except asyncio.CancelledError:
            if sealed.done() and not sealed.cancelled() and sealed.exception() is None:
                self.lost()  # sealed for a caller that has just left
            raise

    def confirmed(self, since: float) -> None:
        """Note the confirm of a message sealed at these monotonic seconds."""
        self.pace.confirmed(self._clock.monotonic() - since)
        self._consider()

    def lost(self) -> None:
        """Note that a sealed message ended without a confirm."""
        self.pace.lost()
        self._consider()

    def seal_now(self) -> None:
        """Seal everything that waits."""
        waiting, self._waiting = self._waiting, []
        self._round += 1
        groups: dict[object, list[_Waiting]] = {}
        for one in waiting:
            if not one.sealed.done():  # else its caller was cancelled
                groups.setdefault(one.prepared.group, []).append(one)
        for group in groups.values():
            self._seal(group)

    def _consider(self) -> None:
        """Seal now, when what else is ready has run, or later."""
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
        """Seal what has waited long enough, unless it is sealed already."""
        if number == self._round:
            self.seal_now()

    def _seal(self, group: list[_Waiting]) -> None:
        """Seal messages of one group; where a token of theirs is too large, each by itself."""
        try:
            sealed = self._signer.seal([one.prepared for one in group])
        except MalformedMessage as error:
            if len(group) == 1:
                return group[0].sealed.set_exception(error)
            for one in group:
                self._seal([one])
        except Exception as error:
            for one in group:
                one.sealed.set_exception(error)
        else:
            self.pace.unconfirmed += len(group)
            for one, message in zip(group, sealed, strict=True):
                one.sealed.set_result(message)


class OpenCalls:
    """Lets calls in until it is closed, and then waits until all of them have ended.

    Args:
        refusal: makes what is raised to a call that comes later.
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
        """Let no more calls in."""
        if self._over is None:
            self._over = asyncio.get_running_loop().create_future()
            self._tell()

    async def over(self) -> None:
        """Return once it is closed and no call is under way."""
        self.close()
        if self._over is not None:
            await asyncio.shield(self._over)

    def _tell(self) -> None:
        """Let those who wait for the end go on where there is nothing left."""
        if self._over is not None and not self._count and not self._over.done():
            self._over.set_result(None)
