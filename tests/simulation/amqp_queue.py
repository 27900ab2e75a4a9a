"""A quorum queue: returned messages first, prefetch by consumer, deliveries counted up to the limit.

The rules are RabbitMQ 4.0's; ``integration/test_simulated_rabbitmq.py`` plays them against the real one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from pamqp import commands


@dataclass(slots=True, eq=False)
class Stored:
    """A message in a queue.

    Args:
        number: its place in the broker's life.
        properties: as published.
        delivered: how often it was delivered.
        deaths: how often it was dead-lettered by the broker.
    """

    number: int
    exchange: str
    routing_key: str
    properties: commands.Basic.Properties
    body: bytes
    deaths: int = 0
    delivered: int = 0
    returned: int = 0

    def headers(self) -> dict[str, Any]:
        """Return the headers of its next delivery."""
        found = dict(self.properties.headers or {})
        if self.returned:
            found["x-delivery-count"] = self.returned
        return found


class Receiver(Protocol):
    """The channel a consumer is on."""

    def deliver(self, consumer: Subscription, message: Stored) -> None:
        """Send a message to the consumer."""

    def cancelled(self, consumer: Subscription) -> None:
        """Tell the consumer that the broker cancelled it."""


@dataclass(slots=True, eq=False)
class Subscription:
    """A consumer of a queue.

    Args:
        prefetch: messages it may have unacked, 0 for any number.
        held: what it has unacked.
    """

    channel: Receiver
    tag: str
    queue: Queue
    prefetch: int
    no_ack: bool = False
    held: dict[int, Stored] = field(default_factory=dict)
    active: bool = True

    @property
    def has_room(self) -> bool:
        """Whether it may be sent a message."""
        return self.active and (self.prefetch == 0 or len(self.held) < self.prefetch)


class Queue:
    """One quorum queue.

    Args:
        name: its name.
        arguments: as declared.
        dead_letter: takes what is over the delivery limit, with the routing key of the dead-letter exchange.
    """

    def __init__(self, name: str, arguments: dict[str, Any], dead_letter: Callable[[Queue, Stored], None]) -> None:
        self.name = name
        self.arguments = arguments
        self.limit = int(arguments.get("x-delivery-limit", 20))
        self.missing = False
        self.full = False
        self._dead_letter = dead_letter
        self._returned: deque[Stored] = deque()
        self._waiting: deque[Stored] = deque()
        self._consumers: deque[Subscription] = deque()
        self.unacked: dict[int, Stored] = {}

    @property
    def ready(self) -> list[Stored]:
        """What waits for a consumer, in the order in which it will be delivered."""
        return [*self._returned, *self._waiting]

    @property
    def consumers(self) -> list[Subscription]:
        """Who consumes."""
        return list(self._consumers)

    def publish(self, message: Stored) -> None:
        """Take a message."""
        self._waiting.append(message)
        self.flow()

    def subscribe(self, consumer: Subscription) -> None:
        """Add a consumer."""
        self._consumers.append(consumer)
        self.flow()

    def unsubscribe(self, consumer: Subscription) -> None:
        """Remove a consumer; its unacked deliveries stay with its channel."""
        consumer.active = False
        if consumer in self._consumers:
            self._consumers.remove(consumer)

    def acked(self, consumer: Subscription, messages: Iterable[Stored]) -> None:
        """Remove acked messages."""
        for message in messages:
            consumer.held.pop(message.number, None)
            self.unacked.pop(message.number, None)
        self.flow()

    def returned(self, consumer: Subscription, messages: Iterable[Stored]) -> None:
        """Take messages back, each with one more failed delivery, or dead-letter them."""
        for message in messages:
            consumer.held.pop(message.number, None)
            if self.unacked.pop(message.number, None) is None:
                continue
            message.returned += 1
            if 0 <= self.limit < message.returned:
                self._dead_letter(self, message)
            else:
                self._returned.append(message)
        self.flow()

    def hide(self) -> None:
        """Hide the queue: its consumers are cancelled, and its name is not found."""
        self.missing = True
        self.cancel_consumers()

    def show(self) -> None:
        """Show the queue again, with its messages."""
        self.missing = False
        self.flow()

    def cancel_consumers(self) -> None:
        """Cancel every consumer, as a leader that moves does."""
        for consumer in self.consumers:
            self.unsubscribe(consumer)
            consumer.channel.cancelled(consumer)

    def take(self) -> Stored | None:
        """Take the next message away."""
        source = self._returned or self._waiting
        return source.popleft() if source else None

    def flow(self) -> None:
        """Deliver messages to the consumers with room, in turns."""
        while not self.missing and (self._returned or self._waiting):
            consumer = self._next()
            if consumer is None:
                return
            message = self.take()
            assert message is not None
            message.delivered += 1
            if not consumer.no_ack:
                consumer.held[message.number] = message
                self.unacked[message.number] = message
            consumer.channel.deliver(consumer, message)

    def _next(self) -> Subscription | None:
        """Return the next consumer with room, and move it to the end of the line."""
        for _ in range(len(self._consumers)):
            consumer = self._consumers[0]
            self._consumers.rotate(-1)
            if consumer.has_room:
                return consumer
        return None
