"""A broker in this process: the embedded default of the demo, and the fake beside the real ones.

A destination is a queue. Under ``rabbitmq:`` a message given back is delivered again with ``redelivered``;
under ``kafka:`` it keeps its offset. Nothing is stored on disk.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mqauth.errors import Cause, ConfigurationError, MqauthError, Unavailable
from mqauth.flow import arun, refuse_async, run
from mqauth.judging.pipeline import Delivery, Handler, Outcome, Pipeline, Verdict
from mqauth.judging.verified import Verified, equip
from mqauth.letters.dead_letter import DeadLetter
from mqauth.signer import Signer
from mqauth.wire import destination
from mqauth.wire.message import HeaderValue, Message, Origin

_IDLE_SECONDS: Final = 0.05


class UnroutableError(MqauthError):
    """No queue of this destination is declared."""

    code = "unroutable"


@dataclass(slots=True)
class _Queue:
    """One queue: what waits, and the offset the next message gets."""

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
        """Delete a queue with what it holds."""
        with self._changed:
            self._queues.pop(place, None)

    def publish(self, message: Message) -> None:
        """Append a message to its destination's queue; what it claims of its origin is overwritten.

        Raises:
            UnroutableError: the queue is not declared.
        """
        with self._changed:
            queue = self._queue(message.destination)
            queue.waiting.append(replace(message, origin=_origin(message.destination, queue.next_offset)))
            queue.next_offset += 1
            self._changed.notify_all()

    def take(self, place: str) -> Delivery | Message | None:
        """Take the next message of a queue, ``None`` where none waits."""
        with self._changed:
            queue = self._queue(place)
            return queue.waiting.popleft() if queue.waiting else None

    def give_back(self, place: str, taken: Delivery | Message) -> None:
        """Put a message back at the head of its queue."""
        with self._changed:
            self._queue(place).waiting.appendleft(taken)

    def waiting(self, place: str) -> tuple[Message, ...]:
        """Return what waits in a queue, first to last, without taking it."""
        with self._changed:
            return tuple(_message(item) for item in self._queue(place).waiting)

    def wait(self, seconds: float) -> None:
        """Wait until something is published, at most so long."""
        with self._changed:
            self._changed.wait(seconds)

    def _queue(self, place: str) -> _Queue:
        """Return a declared queue."""
        try:
            return self._queues[place]
        except KeyError:
            raise UnroutableError(f"no queue {place}") from None


class Producer:
    """Signs each message and publishes it."""

    def __init__(self, broker: MemoryBroker, signer: Signer) -> None:
        self._broker = broker
        self._signer = signer

    def publish(self, message: Message) -> None:
        """Sign and publish one message.

        Raises:
            MalformedMessage: it cannot be signed.
            UnroutableError: no queue of its destination.
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
        try:
            self._broker.publish(replace(letter.whole(_carries), destination=self.name))
        except UnroutableError as error:
            raise Unavailable(Cause.DEAD_LETTER_UNAVAILABLE, str(error)) from error


class Consumer:
    """Judges the messages of one queue and hands the accepted ones to a handler.

    Args:
        broker: where the queue is.
        queue: its destination.
        guard: the pipeline.
        handler: takes a ``Verified``.
        dead_letters: where rejected messages go.
        replies: signs what ``Verified.reply`` publishes.

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
    ) -> None:
        if guard.audit is None:
            raise ConfigurationError("a consumer's pipeline needs audit=")
        self._broker = broker
        self._queue = queue
        self._guard = guard
        self._handler = handler
        self._dead_letters = dead_letters
        self._replies = replies
        self._stopped = threading.Event()

    def drain(self) -> list[Outcome]:
        """Process what waits, each message once, and return the outcomes; deferred ones wait again.

        Raises:
            ConfigurationError: the handler or a plug-in is asynchronous.
        """
        refuse_async(handler=self._handler, store=self._guard.replay.claim)
        return [self._settle(delivery, run(self._flow(delivery))) for delivery in self._deliveries()]

    async def adrain(self) -> list[Outcome]:
        """Process what waits like ``drain``, with plug-ins and handlers of either colour."""
        return [self._settle(delivery, await arun(self._flow(delivery))) for delivery in self._deliveries()]

    def run(self) -> None:
        """Process messages until ``stop`` is called from another thread or the handler."""
        while not self._stopped.is_set():
            if all(outcome.verdict is Verdict.DEFERRED for outcome in self.drain()):
                self._broker.wait(_IDLE_SECONDS)

    def stop(self) -> None:
        """Let ``run`` end once the messages it took are settled."""
        self._stopped.set()

    def _deliveries(self) -> list[Delivery]:
        """Take everything that waits."""
        found: list[Delivery] = []
        while (taken := self._broker.take(self._queue)) is not None:
            found.append(taken if isinstance(taken, Delivery) else self._guard.receive(taken))
        return found

    def _flow(self, delivery: Delivery) -> Any:
        """Return the flow of one delivery."""
        return self._guard.process(delivery, self._handle, self._dead_letters)

    def _handle(self, verified: Verified) -> Awaitable[Any] | Any:
        """Call the handler with a message it can answer."""
        answer = None if self._replies is None else self._answer
        return self._handler(equip(verified, responder=answer))

    def _answer(self, verified: Verified, body: bytes) -> None:
        """Publish a signed answer to reply-to, with the correlation id."""
        place = verified.properties.get("reply-to")
        if place is None or self._replies is None:
            raise ConfigurationError("the message has no reply-to")
        target = destination.kafka(place) if destination.is_kafka(self._queue) else destination.rabbitmq("", place)
        names = ("correlation-id",) if "correlation-id" in verified.properties else ()
        kept = {name: verified.properties[name] for name in names}
        headers = tuple((name, value.encode()) for name, value in kept.items())
        on_kafka = destination.is_kafka(target)
        answer = Message(
            destination=target,
            body=body,
            properties={} if on_kafka else kept,
            headers=headers if on_kafka else (),
        )
        self._broker.publish(self._replies.sign(answer))

    def _settle(self, delivery: Delivery, outcome: Outcome) -> Outcome:
        """Drop what is settled; give back what is deferred."""
        if outcome.verdict is Verdict.DEFERRED:
            self._broker.give_back(self._queue, delivery)
        return outcome


def redeliver(message: Message) -> Message:
    """Return a message as its broker would deliver it again."""
    return replace(message, origin=replace(message.origin, redelivered=message.origin.topic is None))


def _origin(place: str, offset: int) -> Origin:
    """Return what this broker says of a message."""
    scheme, *names = destination.parse(place)
    if scheme == destination.KAFKA:
        return Origin(topic=names[0], partition=0, offset=offset)
    return Origin(queue=names[1], exchange=names[0], routing_key=names[1])


def _message(item: Delivery | Message) -> Message:
    """Return the message of a queue's item."""
    return item.message if isinstance(item, Delivery) else item


def _carries(_name: str, _value: HeaderValue) -> bool:
    """Tell that this broker carries every header value."""
    return True
