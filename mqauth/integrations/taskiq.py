"""taskiq on RabbitMQ: a worker decodes and runs only tasks that were verified, and all that is sent is signed.

taskiq decodes what ``listen`` yields, and acks it when its task has run. ``protect`` gives a broker another
``listen``, which yields a task once the pipeline wants its handler called, with an ``ack`` that is the end of that
handler. Rejected tasks are dead-lettered before that, undecoded. What the broker sends goes through a channel that
signs: tasks, retries, and delayed tasks, which are signed for where the delay queue sends them.

A task that raises has run: taskiq stores its error as its result, and its retry middleware sends another task.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

from mqauth.errors import StaleDelivery, needs_extra, require

with needs_extra("taskiq"):
    from taskiq import AckableMessage
    from taskiq.serializers import PickleSerializer
    from taskiq_aio_pika import AioPikaBroker

from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from aiormq.abc import DeliveredMessage

from mqauth.brokers.amqp_messages import DEFAULT_MAX_BODY, stream_refused
from mqauth.brokers.event_loop import ticking
from mqauth.brokers.queue.processor import Processor
from mqauth.brokers.rabbitmq.channel import proved
from mqauth.brokers.rabbitmq.consumer import Deliveries, as_incoming, limit_of
from mqauth.brokers.rabbitmq.producer import Producer, UnroutableError
from mqauth.flow import arun
from mqauth.integrations.framework import (
    LateLetters,
    Letters,
    Turn,
    handle,
    handle_unverified,
)
from mqauth.integrations.task_queues import worker_guard
from mqauth.judging.pipeline import Pipeline
from mqauth.judging.selftest import starting
from mqauth.signer import Signer

__all__ = ["Task", "protect"]
B = TypeVar("B", bound=AioPikaBroker)


def protect(
    broker: B,
    *,
    signer: Signer,
    guard: Callable[[], Pipeline] | None = None,
    dead_letters: Letters | None = None,
    max_body: int = DEFAULT_MAX_BODY,
) -> B:
    """Have a broker's workers run only tasks that were verified, and sign what it sends; call it before it starts.

    A task is acked as taskiq's ``ack_type`` says, and its claim is confirmed just before that. A deferred task
    holds a place of the broker's ``qos``.

    Args:
        broker: a ``taskiq_aio_pika.AioPikaBroker``; it is changed, and returned.
        signer: signs tasks, also those that a worker sends.
        guard: makes the pipeline, in each process of a worker; what only sends does not call it.
        dead_letters: where rejected tasks go, or a function that returns that once the broker has started, which
            may be asynchronous. A sink that blocks is called on a thread.
        max_body: bytes of body the broker takes, its ``max_message_size``: a larger task is refused alone.

    Raises:
        ConfigurationError: the broker is of another kind, is protected or has started already, or delays tasks by
            RabbitMQ's plug-in. From ``startup``: results are pickled. From that of a worker: there is no guard or
            no ``dead_letters``, the pipeline has no audit or no replay store that outlives it, or a queue is a
            stream.
    """
    protected: Any = broker
    require(
        isinstance(broker, AioPikaBroker), "protect takes a taskiq_aio_pika.AioPikaBroker"
    )
    require(not hasattr(protected, "_mqauth"), "the broker is protected already")
    require(broker.write_conn is None, "protect a broker before it starts")
    plugin = (
        "the delayed-message plug-in changes what was signed: delay tasks by delay_queue="
    )
    require(not protected._delayed_message_exchange_plugin, plugin)
    protected.__class__ = _protected(type(protected))
    protected._mqauth = Protection(guard, signer, dead_letters, max_body)
    return broker


class Task(AckableMessage):
    """What ``listen`` yields: a task to be decoded, and the ``Verified`` or ``Unverified`` message it came in."""

    message: Any


class Protection:
    """What protects one broker: pipeline, signer, dead letters, and the tasks that are under way in a worker."""

    def __init__(
        self,
        make: Callable[[], Pipeline] | None,
        signer: Signer,
        dead_letters: Letters | None,
        max_body: int,
    ) -> None:
        self._make = make
        self._dead_letters = dead_letters
        self.guard: Pipeline | None = None
        self.producer = partial(Producer, signer=signer, max_body=max_body)
        self.letters = LateLetters(dead_letters)
        self.turns = set[Turn]()

    async def check(self, broker: Any) -> None:
        """Refuse a worker that cannot be protected, before it connects.

        Raises:
            ConfigurationError: as ``protect`` says.
        """
        self.guard = guard = worker_guard(self._make, self._dead_letters)
        for queue in broker._task_queues:
            if "stream" in (queue.type.value, queue.arguments.get("x-queue-type")):
                raise stream_refused(queue.name)
        await arun(starting(guard))

    async def listen(self, broker: Any) -> AsyncGenerator[Task, None]:
        """Yield each task once it is to be run; its ``ack`` settles it."""
        guard = require(self.guard, "a worker needs guard=")
        ready: asyncio.Queue[Task | BaseException] = asyncio.Queue()
        begun = {asyncio.create_task(ticking(guard))}

        def over(task: asyncio.Task[None]) -> None:
            begun.discard(task)
            # An error of ours ends the worker: its tasks stay unsettled.
            if not task.cancelled() and (error := task.exception()) is not None:
                ready.put_nowait(error)

        async def received(processor: Processor, native: Any) -> None:
            task = asyncio.create_task(
                self.judge(guard, processor, as_incoming(native), ready)
            )
            begun.add(task)
            task.add_done_callback(over)

        await broker.read_channel.set_qos(prefetch_count=broker._qos)
        queues = await broker._declare_queues(broker.read_channel)
        delays = None if broker._delay_queue is None else broker._delay_queue.name
        consumed = [
            (
                queue,
                await queue.consume(
                    partial(received, self.processor(guard, queue)), **arguments
                ),
            )
            for queue, arguments in queues
            if queue.name != delays
        ]
        try:
            while True:
                task = await ready.get()
                if isinstance(task, BaseException):
                    raise task
                yield task
        finally:
            for queue, tag in consumed:
                with suppress(Exception):
                    await queue.cancel(tag)
            for each in [*begun]:
                each.cancel()

    def processor(self, guard: Pipeline, queue: AbstractQueue) -> Processor:
        """Return what takes the tasks of a queue through the pipeline."""
        return Processor(
            Deliveries(queue.name),
            guard,
            handle,
            dead_letters=self.letters,
            delivery_limit=limit_of(queue, None),
            gives_back=True,
            unverified=handle_unverified if guard.rollout else None,
        )

    async def judge(
        self,
        guard: Pipeline,
        processor: Processor,
        native: AbstractIncomingMessage,
        ready: asyncio.Queue[Task | BaseException],
    ) -> None:
        """Take a delivery through the pipeline until its task is to be run, or to its end."""
        try:
            await proved(guard.verifier.times, native)
        except StaleDelivery:
            return
        turn = Turn(partial(processor.process, native))
        self.turns.add(turn)
        message = await turn.wanted()
        if message is None:
            await self.ended(turn)
        else:
            ready.put_nowait(
                Task(data=native.body, ack=partial(self.ack, turn), message=message)
            )

    async def ack(self, turn: Turn) -> None:
        """End a task that has run, and settle it."""
        turn.end()
        while await turn.wanted() is not None:
            turn.end()
        await self.ended(turn)

    async def ended(self, turn: Turn) -> None:
        """Forget a task that the pipeline has ended with.

        Raises:
            Exception: what ended the pipeline.
        """
        self.turns.discard(turn)
        turn.outcome()

    async def stop(self) -> None:
        """Give back what was not run to its end, and tell what a rollout has to tell."""
        for turn in [*self.turns]:
            await turn.give_back()
        if self.guard is not None:
            await arun(self.guard.tick(last=True))


class SigningChannel:
    """The channel of a broker that signs what it publishes.

    Args:
        channel: aio-pika's.
        producer: makes the producer of an exchange.
        broker: taskiq's, whose delay queue it knows.
    """

    def __init__(
        self, channel: Any, producer: Callable[[Any], Producer], broker: Any
    ) -> None:
        self._channel = channel
        self._producer = producer
        self._broker = broker
        self._producers: dict[str, Producer] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    @property
    def default_exchange(self) -> Any:
        """What taskiq publishes delayed tasks through."""
        return SimpleNamespace(publish=self._delay)

    async def get_exchange(self, name: str, **options: Any) -> Producer:
        """Return an exchange that signs."""
        if name not in self._producers:
            self._producers[name] = self._producer(
                await self._channel.get_exchange(name, **options)
            )
        return self._producers[name]

    async def _delay(self, message: Any, routing_key: str) -> None:
        """Publish a task to the delay queue, signed for where that queue sends it.

        RabbitMQ takes the expiration away as it moves the message on (manual, Dead Letter Exchanges). The time
        that it was appended at stays, so that it waits as in any queue.

        Raises:
            UnroutableError: there is no delay queue.
        """
        broker = self._broker
        first, delay = broker._task_queues[0], broker._delay_queue
        waits, message.expiration = message.expiration, None
        moved = {
            "x-dead-letter-exchange": broker._exchange.name,
            "x-dead-letter-routing-key": delay.routing_key
            or first.routing_key
            or first.name,
        } | delay.arguments
        exchange = await self._channel.get_exchange(
            moved["x-dead-letter-exchange"], ensure=False
        )
        sealed = self._producer(exchange).seal(
            message, moved["x-dead-letter-routing-key"]
        )
        sealed.expiration = waits
        returned = await self._channel.default_exchange.publish(
            sealed, routing_key=routing_key
        )
        if isinstance(returned, DeliveredMessage):
            raise UnroutableError("", routing_key)


def _protected(kind: Any) -> type:
    """Return a class of brokers that sign and judge."""

    class Protected(kind):  # type: ignore[misc]
        async def startup(self) -> None:
            # Also what only sends decodes the results that it waits for.
            require(
                not isinstance(
                    getattr(self.result_backend, "serializer", None), PickleSerializer
                ),
                "whoever writes to the store of results runs code, for they are pickled: give the result backend"
                " serializer=taskiq.serializers.JSONSerializer()",
            )
            if self.is_worker_process:
                await self._mqauth.check(self)
            await super().startup()
            self.write_channel: Any = SigningChannel(
                self.write_channel, self._mqauth.producer, self
            )
            if self.is_worker_process:
                await self._mqauth.letters.start()

        def listen(self) -> AsyncGenerator[Task, None]:
            listening: AsyncGenerator[Task, None] = self._mqauth.listen(self)
            return listening

        async def shutdown(self) -> None:
            await self._mqauth.stop()
            await super().shutdown()

    Protected.__name__, Protected.__qualname__ = kind.__name__, kind.__qualname__
    return Protected
