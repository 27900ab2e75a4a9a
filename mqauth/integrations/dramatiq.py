"""dramatiq on RabbitMQ: a worker decodes and runs only tasks that were verified, and all that is sent is signed.

dramatiq decodes what its consumer's iterator yields. ``protect`` gives a broker a consumer whose iterator yields a
delivery once it is accepted, and whose ``ack`` confirms its claim first. Rejected tasks are dead-lettered before
that, undecoded. What the broker enqueues goes through a channel that signs: tasks, retries, pipelines, and delayed
tasks, which wait in a queue of their own (``default.DQ``), and are enqueued anew by the worker.

A task that fails for the last time has run: dramatiq moves it to its own queue (``default.XQ``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

from mqauth.errors import StaleDelivery, Unavailable, needs_extra, require

with needs_extra("dramatiq"):
    from dramatiq import PickleEncoder, get_encoder
    from dramatiq.brokers.rabbitmq import RabbitmqBroker, _RabbitmqConsumer
    from dramatiq.errors import ConnectionClosed
    from dramatiq.results import Results

import pika
from pika.exceptions import AMQPError

from mqauth.brokers.amqp_messages import DEFAULT_MAX_BODY, new_message_id
from mqauth.brokers.amqp_values import headers_out
from mqauth.brokers.pika import DeadLetters, declare_dead_letters, received
from mqauth.brokers.pika.translate import to_message
from mqauth.delivery.queue_work import QueueLeases
from mqauth.flow import run
from mqauth.integrations.task_queues import Held, worker_guard
from mqauth.judging.pipeline import Pipeline
from mqauth.judging.selftest import starting
from mqauth.letters.dead_letter import DeadLetter
from mqauth.signer import Signer

__all__ = ["protect"]
B = TypeVar("B", bound=RabbitmqBroker)
_CONSUMER: Any = _RabbitmqConsumer
_NOTHING: Final = (None, None, None)
"""What pika's ``consume`` yields where nothing came in time."""


def protect(
    broker: B,
    *,
    signer: Signer,
    guard: Callable[[], Pipeline] | None = None,
    dead_letters: str | None = None,
    max_body: int = DEFAULT_MAX_BODY,
) -> B:
    """Have a broker's workers run only tasks that were verified, and sign what it enqueues; call it at its making.

    A deferred task holds a place of the consumer's prefetch.

    Args:
        broker: a ``dramatiq.brokers.rabbitmq.RabbitmqBroker``; it is changed, and returned.
        signer: signs tasks, also those that a worker enqueues.
        guard: makes the pipeline, in each process of a worker; what only sends does not call it. Its plug-ins must
            not be asynchronous.
        dead_letters: the queue that rejected tasks go to; a worker declares it.
        max_body: bytes of body the broker takes, its ``max_message_size``: a larger task is refused alone.

    Raises:
        ConfigurationError: the broker is of another kind, or is protected already. From the start of a worker:
            there is no guard or no ``dead_letters``, or the pipeline has no audit or no replay store that outlives
            it. From that, and from what enqueues a task: results are pickled.
    """
    protected: Any = broker
    require(
        isinstance(broker, RabbitmqBroker),
        "protect takes a dramatiq.brokers.rabbitmq.RabbitmqBroker",
    )
    require(not hasattr(protected, "_mqauth"), "the broker is protected already")
    protected.__class__ = _protected(type(protected))
    protected._mqauth = Protection(guard, signer, dead_letters, max_body)
    return broker


def _refuse_pickled(broker: Any) -> None:
    """Refuse results that are pickled, in a worker and in what waits for them."""
    for each in broker.middleware:
        encoder = (
            getattr(getattr(each, "backend", None), "encoder", None) or get_encoder()
        )
        pickled = isinstance(each, Results) and isinstance(encoder, PickleEncoder)
        require(
            not pickled,
            "whoever writes to the store of results runs code, for they are pickled: give the result backend"
            " encoder=dramatiq.JSONEncoder()",
        )


class Protection:
    """What protects one broker: pipeline, signer and the name of the dead-letter queue."""

    def __init__(
        self,
        make: Callable[[], Pipeline] | None,
        signer: Signer,
        dead_letters: str | None,
        max_body: int,
    ) -> None:
        self._make = make
        self.signer = signer
        self.max_body = max_body
        self.dead_letters = dead_letters or ""
        self.guard: Any = None

    def start(self, broker: Any) -> None:
        """Make the pipeline of a worker, which consumes nothing yet.

        Raises:
            ConfigurationError: as ``protect`` says.
        """
        _refuse_pickled(broker)
        self.guard = worker_guard(self._make, self.dead_letters or None)
        with pika.BlockingConnection(broker.parameters) as connection:
            declare_dead_letters(connection.channel(), self.dead_letters)
        run(starting(self.guard))


class Letters:
    """Dead letters of one consumer, published on a connection of their own.

    Args:
        parameters: of that connection.
        name: the queue.
    """

    def __init__(self, parameters: Any, name: str) -> None:
        self._parameters = parameters
        self.name = name
        self._connection: Any = None

    def publish(self, letter: DeadLetter, /) -> None:
        """Publish a letter; return once the broker has confirmed it.

        Raises:
            Unavailable: ``dead_letter_unavailable``.
        """
        try:
            if self._connection is None:
                self._connection = pika.BlockingConnection(self._parameters)
            DeadLetters(self._connection, self.name).publish(letter)
        except (Unavailable, AMQPError):
            # The broker ends a connection that answers no heartbeat; the next attempt opens another.
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None and connection.is_open:
            connection.close()


class SigningChannel:
    """The channel of a broker that signs what it publishes.

    Args:
        channel: pika's.
        signer: signs.
        max_body: bytes of body that the broker takes.
    """

    def __init__(self, channel: Any, signer: Signer, max_body: int) -> None:
        self._channel = channel
        self._signer = signer
        self._max_body = max_body

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def basic_publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: pika.BasicProperties,
        **flags: Any,
    ) -> None:
        """Sign a message and publish it.

        Raises:
            MalformedMessage: it is too large, or cannot be sent as it is.
        """
        properties.message_id = properties.message_id or new_message_id()
        message = to_message(
            properties,
            body,
            exchange=exchange,
            routing_key=routing_key,
            max_body=self._max_body,
        )
        properties.headers = headers_out(self._signer.sign(message).headers, bytes)
        self._channel.basic_publish(exchange, routing_key, body, properties, **flags)


def _protected(kind: Any) -> type:
    """Return a class of brokers that sign and judge."""

    class Protected(kind):  # type: ignore[misc]
        @property
        def channel(self) -> Any:
            protection = self._mqauth
            return SigningChannel(super().channel, protection.signer, protection.max_body)

        @channel.deleter
        def channel(self) -> None:
            kind.channel.fdel(self)

        @property
        def consumer_class(self) -> Any:
            return Judging

        def emit_before(self, signal: str, *arguments: Any, **named: Any) -> None:
            if signal == "worker_boot":
                self._mqauth.start(self)
            elif signal == "enqueue":
                _refuse_pickled(self)
            super().emit_before(signal, *arguments, **named)

    Protected.__name__, Protected.__qualname__ = kind.__name__, kind.__qualname__
    return Protected


class Judging(_CONSUMER):  # type: ignore[misc]
    """A consumer that yields what was accepted; deliveries that have to wait stay unacked.

    Its iterator, and all of pika, belong to one thread. Workers call ``ack`` and ``nack``.
    """

    def __init__(self, broker: Any, *arguments: Any) -> None:
        if broker._mqauth.guard is None:
            # No worker consumes, but a program of its own.
            broker._mqauth.start(broker)
        self._guard: Pipeline = broker._mqauth.guard
        self._letters = Letters(broker.parameters, broker._mqauth.dead_letters)
        self._leases = QueueLeases(self._guard.lease)
        self._waiting: list[Held] = []
        self._looked = self._guard.clock.monotonic()
        self._accepted: Any = None
        super().__init__(broker, *arguments)
        self.iterator: Iterator[Any] = self._judged(self.iterator)

    def __next__(self) -> Any:
        """Return a task that is to be run, or ``None`` where there is none for now."""
        self._accepted = None
        message = super().__next__()
        if message is not None:
            # Tags of a later channel are the same numbers.
            message._mqauth = self, self._accepted
        elif self._accepted is not None:
            # It was signed, and cannot be decoded: dramatiq has put it away.
            self._accepted.go_on()
            self._leases.remove(self._accepted.delivery)
        return message

    def _judged(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """Yield what was accepted, and nothing, as pika does, where nothing came in time."""
        for yielded in iterator:
            now = self._guard.clock.monotonic()
            due = [each for each in self._waiting if each.again <= now]
            self._waiting = [each for each in self._waiting if each.again > now]
            if yielded[0] is not None:
                due.append(Held(self._guard, self._letters, yielded))
            for held in due:
                if self._is_accepted(held):
                    self._accepted = held
                    yield held.native
            self._renew(now)
            if yielded[0] is None:
                yield _NOTHING

    def _is_accepted(self, held: Held) -> bool:
        """Judge a delivery; settle it or have it wait, unless its task is to be run."""
        try:
            if held.delivery is None:
                held.delivery = received(
                    self._guard, self.channel, *held.native, queue=self.queue_name
                )
            accepted = held.go_on()
        except StaleDelivery:
            # The broker delivers it again.
            return False
        if accepted:
            self._leases.add(held.delivery, self._guard.clock.monotonic())
        elif held.again:
            self._waiting.append(held)
        else:
            self.channel.basic_ack(held.native[0].delivery_tag)
        return accepted

    def _renew(self, now: float) -> None:
        """Renew the claims of tasks that wait or run for long, and tell what a rollout has to tell."""
        if now < self._looked + self._leases.every:
            return
        self._looked = now
        run(self._leases.renewing(self._guard))
        run(self._guard.tick())

    def ack(self, message: Any) -> None:
        """Confirm the claim of a task that has run, and ack it."""
        if self._confirmed(message):
            super().ack(message)

    def nack(self, message: Any) -> None:
        """Confirm the claim of a task that has failed for good, and give it to dramatiq's queue of these."""
        if self._confirmed(message):
            super().nack(message)

    def _confirmed(self, message: Any) -> bool:
        """End the claim of a task; return whether its channel is this one, so that it can be settled.

        Raises:
            ConnectionClosed: the store cannot be reached: dramatiq calls again until it can.
        """
        pair = getattr(message, "_mqauth", None)
        if not isinstance(pair, tuple):
            # No message of ours: dramatiq logs that it does not know it.
            return True
        consumer, held = pair
        held.go_on()
        if held.again:
            waits = RuntimeError("the claim of a task cannot be confirmed")
            raise ConnectionClosed(waits)  # type: ignore[no-untyped-call]
        consumer._leases.remove(held.delivery)
        return consumer is self

    def requeue(self, messages: Iterable[Any]) -> None:
        """Give back the claims of tasks that were not begun: the broker delivers them again."""
        for message in messages:
            message._mqauth[1].release()
        super().requeue(messages)

    def close(self) -> None:
        """Close the connections."""
        self._letters.close()
        super().close()
