"""The stage of a real RabbitMQ: a topic exchange, a source queue and a dead-letter queue of its own.

aio-pika needs a running event loop. The stage keeps one on a thread, and its plain calls wait for that loop.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractQueue, AbstractRobustConnection

from mqauth.brokers import rabbitmq
from mqauth.brokers.rabbitmq.translate import from_native, to_native
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.signer import Signer
from mqauth.testing.loop_thread import LoopThread
from mqauth.testing.stage import wait_until
from mqauth.wire import destination
from mqauth.wire.message import Message


class RabbitMQStage:
    """A stage on a real RabbitMQ; everything it declares has a unique name and is deleted at ``close``.

    Args:
        url: ``amqp://user:password@host:port/vhost``.
        prefetch: of the consumer; 1 keeps the order.
    """

    name = "rabbitmq"

    def __init__(self, url: str, *, prefetch: int = 1) -> None:
        self._exchange = f"mqauth-stage-{uuid.uuid4().hex[:12]}"
        self.destination = destination.rabbitmq(self._exchange, "orders.created")
        self.queue = f"{self._exchange}.orders"
        self.dead = f"{self._exchange}.dead"
        self._prefetch = prefetch
        self._thread = LoopThread()
        self._call = self._thread.call
        try:
            self._call(self._open(url))
        except BaseException:
            self._thread.close()
            raise

    def produce(self, signer: Signer, message: Message) -> None:
        """Publish through the producer wrapper, to the message's own destination."""
        self._call(self._produce(signer, message))

    def inject(self, message: Message) -> None:
        """Publish a message past mqauth, with exactly the properties it has."""
        self._call(self._inject(message))

    def consume(
        self, guard: Pipeline, handler: Handler, *, until: Callable[[], bool]
    ) -> None:
        """Run the consumer until the condition holds, then stop it in order.

        Raises:
            TimeoutError: the condition did not hold within a minute.
        """
        consumer = self._call(self._consumer(guard, handler))
        try:
            wait_until(until)
        finally:
            self._call(consumer.__aexit__(None, None, None))

    def letters(self) -> list[Message]:
        """Return every dead letter, and leave them in the queue."""
        return self._call(self._browse())

    def remove_dead_letters(self) -> None:
        """Delete the dead-letter queue."""
        self._call(self._letters_channel.queue_delete(self.dead))

    def restore_dead_letters(self) -> None:
        """Declare the dead-letter queue again."""
        self._call(rabbitmq.declare_dead_letters(self._letters_channel, self.dead))

    def close(self) -> None:
        """Delete everything that the stage declared, and close its connections."""
        try:
            self._call(self._close())
        finally:
            self._thread.close()

    async def _open(self, url: str) -> None:
        """Connect once to consume and once to publish, and declare everything."""
        self._consuming: AbstractRobustConnection = await aio_pika.connect_robust(url)
        self._publishing: AbstractRobustConnection = await aio_pika.connect_robust(url)
        self._channel: AbstractChannel = await self._publishing.channel()
        self._letters_channel: AbstractChannel = await self._publishing.channel()
        self._source_channel: AbstractChannel = await self._consuming.channel()
        exchange = await self._channel.declare_exchange(
            self._exchange, aio_pika.ExchangeType.TOPIC, durable=True
        )
        self._source: AbstractQueue = await rabbitmq.declare_source(
            self._source_channel, self.queue
        )
        await self._source.bind(exchange, "orders.created")
        await rabbitmq.declare_dead_letters(self._letters_channel, self.dead)

    async def _produce(self, signer: Signer, message: Message) -> None:
        _, exchange_name, routing_key = destination.parse(message.destination)
        exchange = await self._channel.get_exchange(exchange_name, ensure=False)
        native = to_native(
            message, message_id=message.properties.get("message-id") or uuid.uuid4().hex
        )
        await rabbitmq.Producer(exchange, signer).publish(native, routing_key)

    async def _inject(self, message: Message) -> None:
        """Publish past the wrapper, and prevent aiormq from adding a message id."""
        native = to_native(message, message_id="")
        native.message_id = message.properties.get("message-id") or _NoMessageId()
        exchange = await self._channel.get_exchange(self._exchange, ensure=False)
        await exchange.publish(native, "orders.created")

    async def _consumer(self, guard: Pipeline, handler: Handler) -> rabbitmq.Consumer:
        dead_letters = rabbitmq.DeadLetters(self._channel, self.dead, timeout=5)
        consumer = rabbitmq.Consumer(
            self._source,
            guard,
            handler,
            dead_letters=dead_letters,
            prefetch=self._prefetch,
        )
        return await consumer.__aenter__()

    async def _browse(self) -> list[Message]:
        """Get the messages in the dead-letter queue; closing the channel puts them back."""
        channel = await self._publishing.channel()
        try:
            queue = await channel.get_queue(self.dead, ensure=False)
            messages = []
            while (letter := await queue.get(fail=False)) is not None:
                messages.append(from_native(letter, queue=self.dead))
            return messages
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return []
        finally:
            await channel.close()

    async def _close(self) -> None:
        await self._consuming.close()
        for queue in (self.queue, self.queue + ".unparseable", self.dead):
            await self._channel.queue_delete(queue)
        await self._channel.exchange_delete(self._exchange)
        await self._publishing.close()


class _NoMessageId(str):
    """A text that aiormq takes for a message id and that pamqp does not send."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True
