"""A simulated RabbitMQ: exchanges, quorum queues, confirms and returns, and what can go wrong with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from pamqp import commands

from tests.simulation.amqp_channel import NOT_FOUND, PRECONDITION_FAILED, Channel, ChannelError
from tests.simulation.amqp_connection import BrokerConnection
from tests.simulation.amqp_queue import Queue, Stored

if TYPE_CHECKING:
    from tests.simulation.network import Connection
    from tests.simulation.world import World

ADDRESS: Final = "rabbitmq:5672"
CONSUMER_TIMEOUT: Final = 1800.0
"""Seconds after which RabbitMQ closes a channel with an unacked delivery, by default."""
_LOOKS_EVERY: Final = 60.0
_CONFIRMS: Final = (0.001, 0.008)


class Broker:
    """One node.

    Args:
        world: where it is.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.alarm = False
        self.confirm_delay = _CONFIRMS
        self.confirms_lost = False
        self.publishes_lost = False
        self._queues: dict[str, Queue] = {}
        self._exchanges: dict[str, list[tuple[str, str]]] = {"": []}
        self._missing_exchanges: set[str] = set()
        self._connections: dict[BrokerConnection, None] = {}
        self._numbers = 0
        self.start()
        world.agenda.after(_LOOKS_EVERY, self._look_for_old)

    @property
    def now(self) -> float:
        """Virtual seconds."""
        return self.world.agenda.now

    # its life

    def start(self) -> None:
        """Listen."""
        self.world.network.listen(ADDRESS, self._accept)

    def stop(self, *, orderly: bool) -> None:
        """Go down: every connection ends, with a reason or without."""
        self.world.network.refuse(ADDRESS)
        for connection in tuple(self._connections):
            if orderly:
                connection.end(320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'")
            else:
                connection.wire.break_off()

    def connections_of(self, process: str) -> list[BrokerConnection]:
        """Return the open connections of a process."""
        return [found for found in self._connections if found.process == process and found.opened]

    def set_alarm(self, on: bool) -> None:
        """Block those who publish, or let them go on."""
        self.alarm = on
        if not on:
            for connection in tuple(self._connections):
                connection.alarm_ends()

    def end_unconfirmed(self) -> None:
        """End the connections whose confirms were lost."""
        for connection in tuple(self._connections):
            if connection.unconfirmed:
                connection.end(541, "INTERNAL_ERROR")

    def forget(self, connection: BrokerConnection) -> None:
        """Forget a connection that has ended."""
        self._connections.pop(connection, None)

    # queues and exchanges

    def queue(self, name: str) -> Queue:
        """Return a queue.

        Raises:
            ChannelError: there is none.
        """
        found = self._queues.get(name)
        if found is None or found.missing:
            raise ChannelError(NOT_FOUND, f"NOT_FOUND - no queue '{name}' in vhost '/'")
        return found

    def declare(self, name: str, arguments: dict[str, Any], *, passive: bool) -> Queue:
        """Return a queue, and declare it where it does not exist.

        Raises:
            ChannelError: it is not there, or is there with other arguments.
        """
        if passive:
            return self.queue(name)
        found = self._queues.get(name)
        if found is None:
            found = self._queues[name] = Queue(name, arguments, self._dead_letter)
        elif found.missing:
            raise ChannelError(NOT_FOUND, f"NOT_FOUND - queue '{name}' in vhost '/' process is stopped")
        elif found.arguments != arguments:
            raise ChannelError(PRECONDITION_FAILED, "PRECONDITION_FAILED - inequivalent arg")
        return found

    def delete(self, name: str) -> None:
        """Delete a queue with what is in it."""
        found = self._queues.pop(name, None)
        if found is not None:
            found.hide()

    def declare_exchange(self, name: str, *, passive: bool) -> None:
        """Declare an exchange where it does not exist.

        Raises:
            ChannelError: it is not there and only looked for.
        """
        if name in self._missing_exchanges or (passive and name not in self._exchanges):
            raise ChannelError(NOT_FOUND, f"NOT_FOUND - no exchange '{name}' in vhost '/'")
        self._exchanges.setdefault(name, [])

    def hide_exchange(self, name: str) -> None:
        """Hide an exchange."""
        self._missing_exchanges.add(name)

    def show_exchange(self, name: str) -> None:
        """Show a hidden exchange again."""
        self._missing_exchanges.discard(name)

    def bind(self, queue: str, exchange: str, routing_key: str) -> None:
        """Bind a queue to an exchange."""
        self.queue(queue)
        self.declare_exchange(exchange, passive=True)
        if (routing_key, queue) not in self._exchanges[exchange]:
            self._exchanges[exchange].append((routing_key, queue))

    def found_queues(self, names: Iterable[str]) -> list[Queue]:
        """Return the queues of these names that were ever declared, missing or not."""
        return [self._queues[name] for name in names if name in self._queues]

    # messages

    def publish(
        self, channel: Channel, frame: commands.Basic.Publish, properties: Any, body: bytes, number: int | None
    ) -> None:
        """Route a message of a client, and confirm it if it wants that."""
        exchange, routing_key = frame.exchange or "", frame.routing_key or ""
        if exchange in self._missing_exchanges or exchange not in self._exchanges:
            raise ChannelError(NOT_FOUND, f"NOT_FOUND - no exchange '{exchange}' in vhost '/'")
        if self.publishes_lost:
            self.world.note("broker", "loses a publish")
            channel.connection.unconfirmed = True
            return
        queues = self._routed(exchange, routing_key)
        if not queues and frame.mandatory:
            channel.return_to_sender(frame, properties, body)
        taken = not any(queue.full for queue in queues)
        if taken:
            for queue in queues:
                queue.publish(self._stored(exchange, routing_key, properties, body))
        if number is not None and self.confirms_lost:
            channel.connection.unconfirmed = True
        elif number is not None:
            self._confirm(channel, number, taken=taken)

    def put(self, exchange: str, routing_key: str, properties: Any, body: bytes) -> list[Stored]:
        """Put a message into its queues without a client connection, as an attacker may."""
        stored = []
        for queue in self._routed(exchange, routing_key):
            stored.append(self._stored(exchange, routing_key, properties, body))
            queue.publish(stored[-1])
        return stored

    def _stored(self, exchange: str, routing_key: str, properties: Any, body: bytes) -> Stored:
        self._numbers += 1
        return Stored(self._numbers, exchange, routing_key, properties, body)

    def _routed(self, exchange: str, routing_key: str) -> list[Queue]:
        """Return the queues that take a routing key."""
        if exchange == "":
            names = [routing_key]
        else:
            names = [queue for key, queue in self._exchanges[exchange] if key in (routing_key, "#")]
        return [queue for queue in self.found_queues(names) if not queue.missing]

    def _confirm(self, channel: Channel, number: int, *, taken: bool) -> None:
        """Confirm soon; confirms of one channel in their order."""
        due = max(channel.confirms_at, self.now + self.world.pace.uniform(*self.confirm_delay))
        channel.confirms_at = due
        self.world.agenda.at(due, lambda: channel.confirm(number, taken=taken))

    def _dead_letter(self, queue: Queue, message: Stored) -> None:
        """Move a message over its delivery limit to its queue's dead-letter exchange."""
        target = queue.arguments.get("x-dead-letter-routing-key")
        self.world.over_limit(queue, message)
        for found in self.found_queues([target] if target else []):
            stored = self._stored("", str(target), message.properties, message.body)
            found.publish(stored)

    def _accept(self, wire: Connection) -> BrokerConnection:
        """Take a connection."""
        connection = BrokerConnection(self, wire)
        self._connections[connection] = None
        return connection

    def _look_for_old(self) -> None:
        """Close channels that have had a delivery unacked beyond the consumer timeout."""
        self.world.agenda.after(_LOOKS_EVERY, self._look_for_old)
        for connection in tuple(self._connections):
            for channel in tuple(connection.channels.values()):
                oldest = min((found.since for found in channel.unacked.values()), default=self.now)
                if self.now - oldest > CONSUMER_TIMEOUT:
                    text = "PRECONDITION_FAILED - delivery acknowledgement on channel timed out"
                    channel.fail(ChannelError(PRECONDITION_FAILED, text))
