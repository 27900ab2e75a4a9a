"""Messages that concurrent callers publish, sealed together under one signature: for every asyncio client.

What is published before the event loop turns is sealed together, and nothing waits for more, unless ``linger`` is
above 0. Then a message that others are unconfirmed beside waits until as many wait as are unconfirmed, or for
``linger``: their confirms take time anyway, and no rate has to be configured.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

from mqauth.brokers.closing import UnconfirmedError
from mqauth.brokers.event_loop import Timer, call_later, signed
from mqauth.brokers.process import HomeProcess
from mqauth.signer import Prepared, Signer, check_batching
from mqauth.wire.message import Message

R = TypeVar("R")


_Waiting: TypeAlias = tuple[Prepared, asyncio.Future[Message]]
"""A prepared message, and the future of its sealed form."""


class Sealing:
    """Seals the messages of concurrent callers together; each caller gets its own message or its own error.

    They go on in the order of their calls, whatever was sealed first and however long a key or a channel takes:
    messages of several destinations may go to one queue.

    Args:
        signer: signs.
        batch: most messages under one signature, 1 to 1,024.
        linger: most seconds that a message waits for others, 0 to 10; with 0 it waits for the event loop's turn.
        refusal: makes the error of a call that comes after ``close``.
        timer: calls a function after so many seconds.
        ready: returns, or its awaitable does, once a message can be written at once.

    Attributes:
        home: where it is used.
        calls: the tasks in which a ``publish`` is running.

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
        ready: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        check_batching(batch, linger)
        self.home = HomeProcess("producer")
        self.calls: set[asyncio.Task[Any]] = set()
        self._given_up: UnconfirmedError | None = None
        self._refusal = refusal
        self._closed, self._idle = False, asyncio.Event()
        self._signer = signer
        self._batch = batch
        self._linger = linger
        self._timer = timer
        self._ready = ready
        self._turn = asyncio.Lock()
        self._waiting: list[_Waiting] = []
        self._order: deque[asyncio.Future[Message]] = deque()
        self._outcomes: dict[asyncio.Future[Message], Message | BaseException] = {}
        self._tasks: set[asyncio.Task[list[Message]]] = set()
        self._round = 0
        self._asked = (-1, False)

    async def publish(
        self, message: Message, send: Callable[[Message], Awaitable[R]]
    ) -> R:
        """Seal a message with others, send it, and return what ``send`` returns.

        Args:
            message: as it will be on the wire, but for the token.
            send: writes the sealed message at once, and returns once the broker has confirmed it.

        Raises:
            MalformedMessage: the message cannot be signed; others are not concerned.
            ConfigurationError, Unavailable: there is no key to sign with.
            UnconfirmedError: it was closed, and no confirm came within the time for that.
        """
        self.home.check()
        if self._closed:
            raise self._refusal()

        prepared = self._signer.prepare(message)
        self._blocking = self._signer.blocking
        sealed: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting.append((prepared, sealed))
        self._order.append(sealed)
        # Nobody waits: the event loop may be another than before.
        if not self.calls:
            self._turn = asyncio.Lock()
        # A call runs in a task: it awaits.
        call = cast("asyncio.Task[Any]", asyncio.current_task())
        self.calls.add(call)
        self._consider()
        try:
            # What came in this turn is sealed in the next, all in its order: a future would wake us a turn later.
            # With ``linger`` some wait for their futures already. Who fills the batch lets them go first.
            if self._batch > 1 and (not self._linger or sealed.done()):
                await asyncio.sleep(0)
            message = await sealed
            # Who waits for a channel is not overtaken by who finds it open.
            if self._ready is not None:
                async with self._turn:
                    await self._ready()
            return await send(message)
        except asyncio.CancelledError:
            # Cut short by our close, and by nobody else.
            if self._given_up is not None and call.uncancel() == 0:
                raise self._given_up from None
            raise
        finally:
            sealed.cancel()
            self._pass_on()
            self.calls.discard(call)
            self._consider()
            if not self.calls:
                self._idle.set()

    async def close(self, seconds: float) -> None:
        """Refuse calls from now on, seal what waits, and return once no call is running.

        Args:
            seconds: for which calls may wait for their confirms; those that still do end with the error.

        Raises:
            UnconfirmedError: there were some.
        """
        self.home.check()
        self._closed = True
        self.seal_now()
        if not self.calls:
            return

        self._idle.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            self._given_up = UnconfirmedError.after(seconds, len(self.calls))
            for call in self.calls:
                call.cancel()
            raise self._given_up from None

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
        held = self._linger > 0 and waiting < len(self.calls) - waiting
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
        """Note what callers get: their sealed message or the error."""
        futures = [sealed for _, sealed in group]
        try:
            self._outcomes.update(zip(futures, seal(), strict=True))
        except (Exception, asyncio.CancelledError) as error:
            self._outcomes.update(dict.fromkeys(futures, error))
        self._pass_on()

    def _pass_on(self) -> None:
        """Give callers what was noted for them, as far as all who called before them have theirs."""
        order, outcomes = self._order, self._outcomes
        while order and (order[0] in outcomes or order[0].done()):
            sealed = order.popleft()
            outcome = outcomes.pop(sealed, None)
            # It is done already where its caller was cancelled.
            if sealed.done():
                continue
            if isinstance(outcome, BaseException):
                sealed.set_exception(outcome)
                # Heard already: a caller that is being cancelled does not ask.
                sealed.exception()
            elif outcome is not None:
                sealed.set_result(outcome)
