"""The letter box of a RabbitMQ queue: letters are taken in batches without acks, and given back when a pass ends.

Browsing counts as delivery. A quorum queue with a delivery limit would drop its letters in the end, so the queue
needs ``x-delivery-limit`` -1, as ``declare_dead_letters`` declares it. There is one reviewer at a time: nobody
else sees what a pass holds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

from aio_pika import IncomingMessage, exceptions
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.abc import DeliveredMessage
from pamqp import commands

from mqauth.brokers.rabbitmq.channel import LOST, closing_is_an_error
from mqauth.brokers.rabbitmq.consumer import delivered
from mqauth.brokers.rabbitmq.translate import (
    carries,
    failures_of,
    frame_limit,
    from_native,
    to_native,
)
from mqauth.errors import (
    ConfigurationError,
    MalformedMessage,
    Unavailable,
    refusing,
    require,
)
from mqauth.letters.dead_letter import undelivered
from mqauth.review.letter import Letter
from mqauth.wire import destination
from mqauth.wire.message import Message

_GONE: Final = (TimeoutError, *LOST)
"""Errors that mean that channel or connection are gone."""
_SETTLE: Final = 5.0


class RabbitMQLetterBox:
    """The dead letters of one queue.

    Args:
        connection: connected; every pass opens a channel of its own on it.
        queue: the dead-letter queue.
        connect: called for another connection where this one was lost; without it the box stays lost. Whoever
            closes the box closes ``connection``, which is the newest.
        timeout: seconds to wait for the broker.
        unlimited: whether the queue is known to have no delivery limit. Else letters delivered more than 15 times
            end the pass with an error, before the broker drops them.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        queue: str,
        *,
        connect: Callable[[], Awaitable[AbstractConnection]] | None = None,
        timeout: float = 30,
        unlimited: bool = False,
    ) -> None:
        self.connection = connection
        self._connect = connect
        self._lost = False
        self.name = queue
        self.destination = destination.rabbitmq("", queue)
        self._timeout = timeout
        self._unlimited = unlimited
        self._pass: AbstractChannel | None = None
        self._publishing: AbstractChannel | None = None
        self.expected = self._held = self._returned = 0
        self._removed = False

    async def browse(self, limit: int, /) -> Sequence[Letter]:
        """Take the next letters, unacked; the end of the pass gives back those that were not removed.

        Raises:
            ConfigurationError: the queue does not exist, or its letters come near a delivery limit.
            Unavailable: ``dead_letter_unavailable``.
        """
        async with self._asking():
            arrived = await self._taken(limit) if limit else []
            self._held += len(arrived)
            # Deliveries of a letter after which a queue must be known to have no delivery limit; RabbitMQ's
            # default is 20. The broker would soon drop letters for being browsed.
            most = 0 if self._unlimited else max(map(failures_of, arrived), default=0)
            require(
                most < 15,
                f"letters of {self.name} were delivered {most} times, and it may have a delivery limit: "
                "declare dead-letter queues with x-delivery-limit -1",
            )
            if not arrived:
                await self._end()
            return [
                Letter(message=from_native(item, queue=self.name), handle=item)
                for item in arrived
            ]

    async def depth(self) -> int:
        """Return how many letters are ready in the queue, by a passive declaration; one at a reviewer is not.

        Raises:
            ConfigurationError: the queue does not exist.
            Unavailable: ``dead_letter_unavailable``.
        """
        async with self._asking():
            channel = await (await self._connected()).channel()
            queue = await channel.declare_queue(self.name, passive=True)
            await channel.close()
            return queue.declaration_result.message_count or 0

    async def publish(self, message: Message, /) -> None:
        """Publish a message to its own exchange and routing key, mandatory and confirmed.

        Raises:
            MalformedMessage: it is no message of RabbitMQ, or would not arrive as it is.
            Unavailable: ``dead_letter_unavailable``.
        """
        scheme, *names = destination.parse(message.destination)
        require(
            scheme == destination.RABBITMQ,
            "a message of another broker",
            MalformedMessage,
        )
        require(
            all(carries(name, value) for name, value in message.headers),
            "a header that aio-pika cannot send unchanged",
            MalformedMessage,
        )
        native = to_native(message, message_id="")
        native.message_id = message.properties.get("message-id") or _NoMessageId()
        native.check()
        exchange_name, routing_key = names
        try:
            async with asyncio.timeout(self._timeout):
                with closing_is_an_error():
                    if self._publishing is None or self._publishing.is_closed:
                        self._publishing = await (await self._connected()).channel(
                            publisher_confirms=True
                        )
                    channel = self._publishing
                    exchange = (
                        await channel.get_exchange(exchange_name, ensure=False)
                        if exchange_name
                        else channel.default_exchange
                    )
                    native.limit = await frame_limit(channel)
                    result = await exchange.publish(native, routing_key, mandatory=True)
        except _GONE as error:
            raise self._unavailable(error) from error
        # Only the broker's ack counts: a message that no queue takes is returned instead.
        require(
            isinstance(result, commands.Basic.Ack),
            "no queue takes the message",
            undelivered,
        )

    async def remove(self, letter: Letter, /) -> None:
        """Ack the very letter.

        Raises:
            Unavailable: its pass is over, and the broker delivers it again.
        """
        async with self._asking():
            await letter.handle.ack()
        self._held -= 1
        self._removed = True

    @contextlib.asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        """Ask the broker with a limit of time, and say in our words why it has no answer."""
        try:
            async with asyncio.timeout(self._timeout):
                with closing_is_an_error():
                    yield
        except exceptions.ChannelNotFoundEntity as error:
            self._pass = None
            raise ConfigurationError(f"there is no queue {self.name}") from error
        except _GONE as error:
            self._pass = None
            raise self._unavailable(error) from error

    async def _taken(self, limit: int) -> list[IncomingMessage]:
        """Return the next batch of the pass; none at its end."""
        channel = self._pass or await self._begin()
        queue = await channel.get_queue(self.name, ensure=True)
        waiting = queue.declaration_result.message_count or 0
        self.expected = self.expected or waiting
        below, arrived = (
            await channel.get_underlay_channel(),
            asyncio.Queue[DeliveredMessage](),
        )
        if not waiting:
            # A quorum queue that has just started counts no messages. Only its leader's answer tells.
            answer = await below.basic_get(self.name)
            return (
                []
                if isinstance(answer.delivery, commands.Basic.GetEmpty)
                else [delivered(answer)]
            )
        # The consumer is aiormq's, with a prefetch that bounds what is in flight. That of aio-pika makes a task of
        # each delivery, which is twice the work.
        await channel.set_qos(prefetch_count=limit)
        consumer = await below.basic_consume(self.name, arrived.put)
        batch: list[IncomingMessage] = []
        # Somebody else may take from the queue too. Then fewer come than were counted.
        with contextlib.suppress(TimeoutError):
            while len(batch) < min(limit, waiting):
                async with asyncio.timeout(_SETTLE):
                    batch.append(delivered(await arrived.get()))
        await below.basic_cancel(str(consumer.consumer_tag))
        while not arrived.empty():
            batch.append(delivered(arrived.get_nowait()))
        return batch

    async def _begin(self) -> AbstractChannel:
        """Open the channel of a pass, once the letters of the pass before are back in the queue."""
        self._pass = await (await self._connected()).channel()
        self._held = self.expected = 0
        # The broker puts letters back some time after it closed the channel. A pass that began before would not
        # see them, and would report a smaller queue.
        deadline = asyncio.get_running_loop().time() + _SETTLE
        while self._returned and asyncio.get_running_loop().time() < deadline:
            queue = await self._pass.get_queue(self.name, ensure=True)
            if (queue.declaration_result.message_count or 0) >= self._returned:
                break
            await asyncio.sleep(0.05)
        return self._pass

    async def _connected(self) -> AbstractConnection:
        """Return the connection; a new one where the old one was lost and ``connect`` was given."""
        if self._connect is not None and (self._lost or self.connection.is_closed):
            with contextlib.suppress(*_GONE):
                await asyncio.wait_for(self.connection.close(), _SETTLE)
            self.connection = await self._connect()
            self._pass = self._publishing = None
            self._returned, self._lost = 0, False
        return self.connection

    async def _end(self) -> None:
        """Close the pass's channel, after which the broker puts back what was not acked."""
        channel, self._pass = self._pass, None
        if channel is None:
            return
        arrived = asyncio.Queue[DeliveredMessage]()
        if self._removed:
            # A channel of RabbitMQ keeps acks back while its quorum queue has 32 to apply, and forgets them when
            # it is closed: the letters would come again (seen on 4.0.5). The queue answers a consumer after all
            # that it was sent before, and then the channel sends what it kept back.
            await channel.set_qos(prefetch_count=1)
            below = await channel.get_underlay_channel()
            for _ in range(2):
                consumer = await below.basic_consume(self.name, arrived.put)
                await below.basic_cancel(str(consumer.consumer_tag))
        self._returned, self._removed = self._held + arrived.qsize(), False
        await channel.close()

    def _unavailable(self, error: BaseException) -> Unavailable:
        """Note that channel or connection may be gone, and return the error to raise."""
        self._lost = True
        # aio-pika says by RuntimeError that a connection is closed.
        return undelivered(
            "the connection is closed"
            if type(error) is RuntimeError
            else type(error).__name__
        )


class _NoMessageId(str):
    """A message id that is sent and is empty, which by the wire profile means to a receiver that there is none.

    Without one aiormq would add its own, which no token binds. And pamqp leaves out an id that equals the empty
    text; aiormq then takes a returned message, which has no id, for delivered, and the message would be lost.
    """

    __hash__ = str.__hash__

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True

    def __ne__(self, other: object) -> bool:
        return True


async def is_unlimited(connection: AbstractConnection, queue: str) -> bool:
    """Tell whether a queue is known to have no delivery limit: it is declared as ``declare_dead_letters`` does.

    Raises:
        ConfigurationError: there is no such queue, or its name is not ASCII, which aio-pika cannot send.
    """
    channel = await connection.channel()
    with (
        refusing(exceptions.ChannelNotFoundEntity, f"there is no queue {queue}"),
        refusing(
            ValueError, lambda error: f"queue {queue}: aio-pika cannot name it: {error}"
        ),
    ):
        await channel.get_queue(queue, ensure=True)
    wanted: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": -1,
        "x-overflow": "reject-publish",
    }
    # Declaring a queue with other arguments is an error that names the first that differs.
    try:
        await channel.declare_queue(queue, durable=True, arguments=wanted)
    except exceptions.ChannelPreconditionFailed as error:
        return "x-queue-type" in str(error)  # a classic queue has no limit
    await channel.close()
    return True
