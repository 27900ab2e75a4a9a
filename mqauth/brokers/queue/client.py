"""The calls that a client of a queue must have: the wrapper of an asyncio client makes them.

``Acks`` and ``RoundTrip`` are the acks and round trips on one channel of it.

Whether a RabbitMQ overwrites the append time that a sender writes is asked before any such time is believed.
With ``append_evidence`` a consumer takes ``timestamp_in_ms`` for the broker's word. Without the interceptor a
sender writes it himself, and a thief of a revoked key dates his messages back. So one message with a false stamp
goes to a queue of its own, and must come back with another one. The client's module makes the calls (``Ask``);
what is asked, for how long, and what follows from the answer stands here, once. The answer holds for the node of
this connection. Every node of a cluster needs the same configuration.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol
from weakref import WeakKeyDictionary, WeakSet

from mqauth.brokers.amqp_messages import APPEND_HEADER, append_time
from mqauth.brokers.event_loop import Timer, call_later
from mqauth.delivery.slot import (
    TIMEOUT_PARTS,
    DeliveryFacts,
    DeliveryTags,
    RoundTripQueue,
)
from mqauth.errors import ConfigurationError, Errors, MqauthError, refusing, require
from mqauth.judging.pipeline import Delivery
from mqauth.judging.token import Times
from mqauth.logs import emit
from mqauth.wire.message import Message

FALSE_STAMP: Final = 1
"""Milliseconds that the message claims; an interceptor that overwrites leaves nothing of it."""
WITHIN: Final = 10.0
"""Seconds for an answer; a broker that is short of memory reads nothing from who publishes."""
Ask = Callable[[Any, dict[str, Any], bytes], Awaitable[Mapping[str, Any]]]
"""Sends, on a connection, a message with headers and a body to an exclusive queue, which is deleted after, and
returns the headers with which the message of that body comes back.

It makes the calls within ``refusals``.
"""


class UnansweredError(MqauthError, ConnectionError):
    """The broker did not answer: that is an outage, to be tried again."""

    code = "unanswered"


_ASKING: Final[WeakKeyDictionary[Any, asyncio.Lock]] = WeakKeyDictionary()
"""Of each connection a lock, which is held while it is asked."""
_PROVED: Final[WeakSet[Any]] = WeakSet()
"""Connections on which nothing is to be asked any more."""


def is_proved(times: Times, connection: object) -> bool:
    """Return whether nothing is to be asked on a connection, or it was asked already."""
    return times.append_evidence is None or connection in _PROVED


async def prove(times: Times, connection: Any, ask: Ask) -> None:
    """Return once the broker behind a connection has proved that it overwrites a sender's append time.

    It is asked once a connection, and not where ``unsafe_append_evidence`` goes without; that is said each time.

    Args:
        times: of the verifier.
        connection: the client's.
        ask: asks on it.

    Raises:
        ConfigurationError: the broker leaves the stamp as it is, or refuses the question.
        UnansweredError: no answer came.
    """
    if is_proved(times, connection):
        return
    async with _ASKING.setdefault(connection, asyncio.Lock()):
        # another delivery of this connection may have asked meanwhile
        if connection in _PROVED:
            return
        if times.unsafe_append_evidence:
            emit(
                "client.append_unproved",
                "append times are believed and nobody has proved them: whoever may publish may have written them",
            )
        else:
            await question(connection, ask)
        _PROVED.add(connection)


async def question(connection: Any, ask: Ask) -> None:
    """Ask a broker whether it overwrites a sender's append time.

    Raises:
        ConfigurationError: it does not, or refuses the question.
        UnansweredError: no answer came within ``WITHIN`` seconds.
    """
    with refusing(
        TimeoutError,
        "the broker did not say whether it overwrites append times; is it short of memory or disk?",
        UnansweredError,
    ):
        async with asyncio.timeout(WITHIN):
            headers = await ask(connection, {APPEND_HEADER: FALSE_STAMP}, os.urandom(16))
    require(
        append_time(headers) not in (None, FALSE_STAMP),
        f"append_evidence: RabbitMQ leaves the {APPEND_HEADER} of a sender as it is: set"
        " message_interceptors.incoming.set_header_timestamp.overwrite = true on each of"
        ' its nodes, or at = "consume"',
    )


@contextmanager
def refusals(refused: Errors, lost: Errors) -> Iterator[None]:
    """Turn what a client raises within the block, where the question is asked, into the errors of ``Ask``.

    Args:
        refused: what it raises where the broker refuses one of the calls.
        lost: where the connection is lost, too.
    """
    try:
        yield
    except refused as error:
        raise ConfigurationError(
            f"append_evidence cannot be proved, for RabbitMQ refuses: {error}. The account needs the permissions"
            ' configure and read for "amq.gen-.*", and write for "amq.default"; unsafe_append_evidence goes'
            " without"
        ) from error
    except lost as error:
        raise UnansweredError(
            f"the broker was not asked: {error or type(error).__name__}"
        ) from error


Take = Callable[[Any], Awaitable[None]]


class DeliveryClient(DeliveryFacts, Protocol):
    """Calls for the deliveries of one queue; each is given as the client gave it."""

    queue: str

    def message(self, native: Any, /) -> Message:
        """Return a delivery as a message."""

    def tag(self, native: Any, /) -> int:
        """Return its number on its channel."""

    def is_settled(self, native: Any, /) -> bool:
        """Return whether its handler settled it itself."""

    async def ack(self, native: Any, /) -> bool:
        """Ack it alone; return ``False`` where its channel is gone."""

    async def requeue(self, native: Any, /) -> bool:
        """Give it back; return ``False`` where its channel is gone."""

    async def lives(self, native: Any, /) -> bool:
        """Return whether its channel answers a question that is asked from now on; closed where it does not."""


class OpenChannel(NamedTuple):
    """A channel on which to consume.

    Args:
        channel: the client's.
        send: sends its acks.
        connection: the client's, below it.
        ask: asks the broker on that connection whether it overwrites append times.
    """

    channel: Any
    send: Send
    connection: Any
    ask: Ask


class QueueClient(DeliveryClient, Protocol):
    """Calls for one queue."""

    reopens: bool
    """Whether a channel that was lost comes back by itself, so that consuming is tried again."""

    def watch(
        self, closed: Callable[[str, bool], None], cancelled: Callable[[str], None]
    ) -> None:
        """Report from now on what happens to the channel.

        Args:
            closed: gets why it ended, and whether its connection did not.
            cancelled: gets the tag of a consumer that the broker cancelled.
        """

    def unwatch(self) -> None:
        """Report it no longer."""

    async def ready(self) -> None:
        """Wait until the channel is open."""

    async def open(self, prefetch: int) -> OpenChannel:
        """Set the window of the channel."""

    async def consume(self, channel: Any, take: Take) -> str:
        """Have each delivery on an opened channel given to ``take``; return the consumer's tag."""

    async def cancel(self, consumer: str) -> None:
        """Cancel a consumer, and return when no more of its deliveries come; log where its channel is gone."""

    def is_temporary(self, error: BaseException) -> bool:
        """Return whether an error that kept it from consuming may pass."""

    def is_blocked(self) -> bool:
        """Return whether the broker has blocked the connection."""

    def may_be_refused(self, native: Any) -> bool:
        """Return whether a delivery looks like one of a queue that may not be consumed: ask ``refusal`` then."""

    async def refusal(self) -> ConfigurationError | None:
        """Return why the queue may not be consumed, ``None`` where it may."""


ACK_DELAY: Final = 0.01
"""Most seconds after which a settled delivery is acked."""
PART: Final = 1.0
"""Seconds of each part of the timeout of a round trip."""
Send = Callable[[int, bool], Awaitable[bool]]
"""Sends the ack of a tag, and of all before it where the flag says so; false where the channel is gone."""


class Acks:
    """Acks the deliveries of one channel, many in a frame.

    They are sent 10 ms after the first of them was settled, and at once where half the window waits to be acked,
    or the whole of it is unacked: the broker would send nothing more.

    Args:
        channel: the client's, which the deliveries are of.
        send: sends an ack on it.
        lost: gets the deliveries that could not be acked; the broker delivers them again.
        window: the prefetch; may be changed with it.
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
        self._tags = DeliveryTags()
        self._timed = False
        self._sending: asyncio.Task[None] | None = None
        self._closed = False
        self.opened, self.gone = self._tags.opened, self._tags.gone

    def settle(self, tag: int, delivery: Delivery) -> None:
        """Have a delivery acked soon."""
        self._tags.settled(tag, delivery)
        if self._closed:
            self._lost(self._tags.drop())
        elif self._tags.presses(self.window):
            self._send_now()
        elif not self._timed:
            self._send_soon()

    def close(self) -> None:
        """Give up: the channel is gone, and its tags with it."""
        self._closed = True
        if dropped := self._tags.drop():
            self._lost(dropped)

    async def finish(self) -> None:
        """Ack everything settled, and return when it was sent."""
        self._send_now()
        while self._sending is not None and not self._sending.done():
            await asyncio.wait((self._sending,))
            self._send_now()

    def _send_soon(self) -> None:
        self._timed = True
        self._timer(ACK_DELAY, self._ring)

    def _ring(self) -> None:
        self._timed = False
        self._send_now()

    def _send_now(self) -> None:
        # The task begins when everything else that is ready has run, and may have settled more.
        if self._tags.waiting and (self._sending is None or self._sending.done()):
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while True:
            for ack in self._tags.take():
                if not await self._send_ack(ack.tag, ack.multiple):
                    self._lost(ack.deliveries)
            if not self._tags.waiting or not self._tags.presses(self.window):
                break
        if self._tags.waiting and not self._timed:
            self._send_soon()


class RoundTrip:
    """Asks the broker on one channel whether it lives, once for all who wait when the question is asked.

    Args:
        ask: asks, and returns whether the channel lives. It is cancelled where no answer came, and closes the
            channel then.
        is_blocked: returns whether the broker has blocked the connection, and answers nothing there.
        part: seconds of each part of the timeout.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[bool]],
        is_blocked: Callable[[], bool],
        *,
        part: float = PART,
    ) -> None:
        self._ask_broker = ask
        self._is_blocked = is_blocked
        self._part = part
        self._waiting = RoundTripQueue[asyncio.Future[bool]]()
        self._asking: asyncio.Task[None] | None = None

    async def lives(self) -> bool:
        """Return whether the channel answers a question that is asked from now on; closed where it does not."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self._waiting.add(answer):
            self._asking = asyncio.create_task(self._ask())
        return await answer

    async def _ask(self) -> None:
        while self._waiting.ask():
            lives, left, seconds = False, TIMEOUT_PARTS, self._part
            asked = asyncio.ensure_future(self._ask_broker())
            try:
                await asyncio.wait((asked,), timeout=seconds)
                while left and not asked.done():
                    # Each part counts only while we run and the broker can answer.
                    left = TIMEOUT_PARTS if self._is_blocked() else left - 1
                    if not left:
                        text = "the broker did not answer on a channel within %g s: closing it"
                        emit("client.no_answer", text, TIMEOUT_PARTS * seconds)
                        asked.cancel()
                    await asyncio.wait((asked,), timeout=seconds)
                lives = left > 0 and await asked
            finally:
                for answer in self._waiting.answered():
                    if not answer.done():
                        answer.set_result(lives)
