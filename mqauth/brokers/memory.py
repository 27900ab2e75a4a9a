"""A broker in this process: the default of the demo, and the fake beside the real brokers in tests.

Each destination has a queue. Under ``rabbitmq:`` a message that is given back is delivered again with
``redelivered``; under ``kafka:`` it keeps its offset. Nothing is stored on disk.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field, replace

from mqauth.delivery.log_work import equipped
from mqauth.errors import (
    Cause,
    ConfigurationError,
    MqauthError,
    Unavailable,
    refusing,
    require,
)
from mqauth.flow import refuse_async, run
from mqauth.judging.pipeline import Delivery, Handler, Outcome, Pipeline, Verdict
from mqauth.judging.selftest import starting
from mqauth.judging.verified import Unverifieds, Verified
from mqauth.letters.dead_letter import DeadLetter
from mqauth.signer import Signer
from mqauth.wire import destination
from mqauth.wire.message import Message, Origin


class UnroutableError(MqauthError):
    """No queue is declared for a destination."""

    code = "unroutable"


@dataclass(slots=True)
class _Queue:
    """One queue: what waits in it, and the offset of its next message."""

    waiting: deque[Delivery | Message] = field(default_factory=deque)
    next_offset: int = 0


class MemoryBroker:
    """Named queues in memory, safe to use from several threads."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._changed = threading.Condition()

    def declare(self, place: str) -> None:
        """Make a queue for a destination, unless it exists.

        Raises:
            MalformedMessage: the destination is not canonical.
        """
        destination.parse(place)
        with self._changed:
            self._queues.setdefault(place, _Queue())

    def delete(self, place: str) -> None:
        """Delete a queue with its messages."""
        with self._changed:
            self._queues.pop(place, None)

    def publish(self, message: Message) -> None:
        """Append a message to its destination's queue, with an origin of this broker's own.

        Raises:
            UnroutableError: the queue is not declared.
        """
        with self._changed:
            queue = self._queue(message.destination)
            scheme, *names = destination.parse(message.destination)
            origin = (
                Origin(topic=names[0], partition=0, offset=queue.next_offset)
                if scheme == destination.KAFKA
                else Origin(queue=names[1], exchange=names[0], routing_key=names[1])
            )
            queue.waiting.append(replace(message, origin=origin))
            queue.next_offset += 1
            self._changed.notify_all()

    def take(self, place: str) -> Delivery | Message | None:
        """Take the next message of a queue, ``None`` where it is empty."""
        with self._changed:
            queue = self._queue(place)
            return queue.waiting.popleft() if queue.waiting else None

    def give_back(self, place: str, taken: Delivery | Message) -> None:
        """Put a message back at the head of its queue."""
        with self._changed:
            self._queue(place).waiting.appendleft(taken)

    def waiting(self, place: str) -> tuple[Message, ...]:
        """Return the messages of a queue in order, without taking them."""
        with self._changed:
            items = self._queue(place).waiting
            return tuple(
                item.message if isinstance(item, Delivery) else item for item in items
            )

    def wait(self, seconds: float) -> None:
        """Wait until something is published, at most so many seconds."""
        with self._changed:
            self._changed.wait(seconds)

    def _queue(self, place: str) -> _Queue:
        return require(
            self._queues.get(place), f"no queue is declared for {place}", UnroutableError
        )


class Producer:
    """Signs each message and publishes it."""

    def __init__(self, broker: MemoryBroker, signer: Signer) -> None:
        self._broker = broker
        self._signer = signer

    def publish(self, message: Message) -> None:
        """Sign and publish one message.

        Raises:
            MalformedMessage: it cannot be signed.
            UnroutableError: no queue is declared for its destination.
        """
        self._broker.publish(self._signer.sign(message))


class DeadLetters:
    """Publishes dead letters to one queue of the broker."""

    def __init__(self, broker: MemoryBroker, place: str) -> None:
        self._broker = broker
        self.name = place

    def publish(self, letter: DeadLetter, /) -> None:
        """Publish one letter.

        Raises:
            Unavailable: ``dead_letter_unavailable``, the queue is not declared.
        """
        with refusing(
            UnroutableError,
            str,
            lambda what: Unavailable(Cause.DEAD_LETTER_UNAVAILABLE, what),
        ):
            # This broker carries every header value.
            self._broker.publish(
                replace(letter.whole(lambda _name, _value: True), destination=self.name)
            )


class Consumer:
    """Judges the messages of one queue and hands the accepted ones to a handler.

    Args:
        broker: has the queue.
        queue: its destination.
        guard: the pipeline.
        handler: takes a ``Verified``.
        dead_letters: where rejected messages go.
        replies: signs what ``Verified.reply`` publishes.
        unverified: takes an ``Unverified``, where a rung below ``enforce`` or an exemption lets such messages
            pass; or a table of handlers by kind. It is another function than ``handler``.

    Raises:
        ConfigurationError: the pipeline has no audit.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        queue: str,
        guard: Pipeline,
        handler: Handler,
        *,
        dead_letters: DeadLetters,
        replies: Signer | None = None,
        unverified: Unverifieds | None = None,
    ) -> None:
        self._unverified = guard.handlers(handler, unverified)
        require(guard.audit is not None, "a consumer's pipeline needs audit=")
        self._broker = broker
        self._queue = queue
        self._guard = guard
        self._handler = handler
        self._equipped = equipped(
            handler, None, None if replies is None else self._answer
        )
        self._dead_letters = dead_letters
        self._replies = replies
        self._stopped = threading.Event()

    def drain(self) -> list[Outcome]:
        """Process the waiting messages once each, and return their outcomes; deferred ones wait again.

        Raises:
            ConfigurationError: the handler or a plug-in is asynchronous.
        """
        refuse_async(handler=self._handler, store=self._guard.replay.claim)
        run(starting(self._guard))
        # Everything that waits now: what is deferred waits again, and is not taken twice.
        deliveries: list[Delivery] = []
        while (taken := self._broker.take(self._queue)) is not None:
            deliveries.append(
                taken if isinstance(taken, Delivery) else self._guard.receive(taken)
            )
        outcomes: list[Outcome] = []
        for delivery in deliveries:
            outcomes.append(
                run(
                    self._guard.process(
                        delivery, self._equipped, self._dead_letters, self._unverified
                    )
                )
            )
            if outcomes[-1].verdict is Verdict.DEFERRED:
                self._broker.give_back(self._queue, delivery)
        return outcomes

    def run(self) -> None:
        """Process messages until ``stop`` is called from another thread or the handler."""
        while not self._stopped.is_set():
            if all(outcome.verdict is Verdict.DEFERRED for outcome in self.drain()):
                self._broker.wait(0.05)

    def stop(self) -> None:
        """Let ``run`` end once the messages it took are settled."""
        self._stopped.set()

    def _answer(self, verified: Verified, body: bytes) -> None:
        """Publish a signed answer to reply-to, with the correlation id where the request has one."""
        place = verified.properties.get("reply-to")
        if place is None or self._replies is None:
            raise ConfigurationError("the message cannot be answered: it has no reply-to")
        on_kafka = destination.is_kafka(self._queue)
        kept = {
            name: text
            for name, text in verified.properties.items()
            if name == "correlation-id"
        }
        answer = Message(
            destination=destination.kafka(place)
            if on_kafka
            else destination.rabbitmq("", place),
            body=body,
            properties={} if on_kafka else kept,
            headers=tuple((name, text.encode()) for name, text in kept.items())
            if on_kafka
            else (),
        )
        self._broker.publish(self._replies.sign(answer))
