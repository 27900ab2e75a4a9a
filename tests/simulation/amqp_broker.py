"""A simulated RabbitMQ: connections, channels, quorum queues, exchanges, and what can go wrong with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from pamqp import commands, header
from pamqp import frame as frames
from pamqp.body import ContentBody
from pamqp.heartbeat import Heartbeat


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

    def __init__(
        self,
        name: str,
        arguments: dict[str, Any],
        dead_letter: Callable[[Queue, Stored], None],
    ) -> None:
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


if TYPE_CHECKING:
    from tests.simulation.amqp_broker import BrokerConnection

NOT_FOUND: Final = 404
PRECONDITION_FAILED: Final = 406


class ChannelError(Exception):
    """An error that closes the channel.

    Args:
        code: of the reply.
        text: for people.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(slots=True)
class Unacked:
    """A delivery that is neither acked nor returned."""

    consumer: Subscription
    message: Stored
    since: float


class Channel:
    """One open channel.

    Args:
        connection: whose it is.
        number: its number.
    """

    def __init__(self, connection: BrokerConnection, number: int) -> None:
        self.connection = connection
        self.number = number
        self.closing = False
        self.unacked: dict[int, Unacked] = {}
        self.consumers: dict[str, Subscription] = {}
        self._broker = connection.broker
        self._prefetch = 0
        self._tag = 0
        self._confirming = False
        self._published = 0
        self.confirms_at = 0.0
        self._publish: commands.Basic.Publish | None = None
        self._header: header.ContentHeader | None = None
        self._body = bytearray()
        self._commands: dict[type, Callable[[Any], None]] = {
            commands.Confirm.Select: self._on_select, commands.Basic.Qos: self._on_qos,
            commands.Queue.Declare: self._on_queue_declare, commands.Queue.Bind: self._on_bind,
            commands.Queue.Delete: self._on_queue_delete, commands.Exchange.Declare: self._on_exchange_declare,
            commands.Exchange.Delete: self._on_exchange_delete,
            commands.Basic.Consume: self._on_consume, commands.Basic.Cancel: self._on_cancel,
            commands.Basic.Ack: self._on_ack, commands.Basic.Nack: self._on_nack,
            commands.Basic.Reject: self._on_nack, commands.Basic.Publish: self._on_publish,
            commands.Basic.Get: self._on_get, commands.Channel.Close: self._on_close,
            commands.Channel.CloseOk: self._on_close_ok, commands.Channel.Flow: self._on_flow,
        }  # fmt: skip

    def received(self, frame: Any) -> None:
        """Execute one frame of the client."""
        if self.closing and not isinstance(
            frame, commands.Channel.CloseOk | commands.Channel.Close
        ):
            return
        try:
            if isinstance(frame, header.ContentHeader):
                self._header = frame
                self._published_when_whole()
            elif isinstance(frame, ContentBody):
                self._body += frame.value
                self._published_when_whole()
            else:
                self._commands[type(frame)](frame)
        except ChannelError as error:
            self.fail(error)

    def fail(self, error: ChannelError) -> None:
        """Close the channel for an error."""
        if not self.closing:
            self._broker.world.channel_failed(self, error)
            self.connection.closed_by_us.add(self.number)
            self._send(commands.Channel.Close(error.code, error.text, 0, 0))
            self.closing = True
            self.over()

    def over(self) -> None:
        """Return what is unacked, in the order in which it was delivered."""
        for consumer in self.consumers.values():
            consumer.queue.unsubscribe(consumer)
        self.consumers.clear()
        unacked, self.unacked = self.unacked, {}
        for found in unacked.values():
            self._broker.world.lost(self, found.message)
            found.consumer.queue.returned(found.consumer, (found.message,))

    def deliver(self, consumer: Subscription, message: Stored) -> None:
        """Send a message to a consumer."""
        self._tag += 1
        if not consumer.no_ack:
            self.unacked[self._tag] = Unacked(consumer, message, self._broker.now)
        self._broker.world.delivered(self, consumer, message, self._tag)
        frame = commands.Basic.Deliver(
            consumer.tag,
            self._tag,
            message.returned > 0,
            message.exchange,
            message.routing_key,
        )
        self._content(frame, message)

    def cancelled(self, consumer: Subscription) -> None:
        """Tell a consumer that the broker cancelled it."""
        self.consumers.pop(consumer.tag, None)
        self._send(commands.Basic.Cancel(consumer.tag, True))

    def confirm(self, number: int, *, taken: bool) -> None:
        """Confirm a publish, or refuse it."""
        if self.closing or self.connection.channels.get(self.number) is not self:
            return
        kind = commands.Basic.Ack if taken else commands.Basic.Nack
        self._send(kind(number, False))

    def _send(self, frame: Any) -> None:
        self.connection.send(self.number, frame)

    def _content(self, frame: Any, message: Stored) -> None:
        """Send a message behind a frame."""
        properties = message.properties
        if message.returned:
            values = {name: getattr(properties, name) for name in properties.attributes()}
            properties = commands.Basic.Properties(
                **(values | {"headers": message.headers()})
            )
        whole = header.ContentHeader(0, len(message.body), properties)
        self.connection.send(
            self.number,
            frame,
            whole,
            *([ContentBody(message.body)] if message.body else []),
        )

    def _on_select(self, _frame: commands.Confirm.Select) -> None:
        self._confirming = True
        self._send(commands.Confirm.SelectOk())

    def _on_qos(self, frame: commands.Basic.Qos) -> None:
        self._prefetch = frame.prefetch_count or 0
        self._send(commands.Basic.QosOk())

    def _on_flow(self, frame: commands.Channel.Flow) -> None:
        self._send(commands.Channel.FlowOk(bool(frame.active)))

    def _on_queue_declare(self, frame: commands.Queue.Declare) -> None:
        queue = self._broker.declare(
            frame.queue or "", dict(frame.arguments or {}), passive=bool(frame.passive)
        )
        self._send(
            commands.Queue.DeclareOk(frame.queue, len(queue.ready), len(queue.consumers))
        )

    def _on_queue_delete(self, frame: commands.Queue.Delete) -> None:
        self._broker.delete(frame.queue or "")
        self._send(commands.Queue.DeleteOk(0))

    def _on_bind(self, frame: commands.Queue.Bind) -> None:
        self._broker.bind(
            frame.queue or "", frame.exchange or "", frame.routing_key or ""
        )
        self._send(commands.Queue.BindOk())

    def _on_exchange_declare(self, frame: commands.Exchange.Declare) -> None:
        self._broker.declare_exchange(frame.exchange or "", passive=bool(frame.passive))
        self._send(commands.Exchange.DeclareOk())

    def _on_exchange_delete(self, frame: commands.Exchange.Delete) -> None:
        self._broker.hide_exchange(frame.exchange or "")
        self._send(commands.Exchange.DeleteOk())

    def _on_consume(self, frame: commands.Basic.Consume) -> None:
        queue = self._broker.queue(frame.queue or "")
        tag = frame.consumer_tag or f"amq.ctag-{self._broker.world.pace.random()}"
        consumer = Subscription(self, tag, queue, self._prefetch, bool(frame.no_ack))
        self.consumers[tag] = consumer
        self._send(commands.Basic.ConsumeOk(tag))
        self._broker.world.consuming(self, consumer)
        queue.subscribe(consumer)

    def _on_cancel(self, frame: commands.Basic.Cancel) -> None:
        consumer = self.consumers.pop(frame.consumer_tag or "", None)
        if consumer is not None:
            consumer.queue.unsubscribe(consumer)
        self._send(commands.Basic.CancelOk(frame.consumer_tag))

    def _on_ack(self, frame: commands.Basic.Ack) -> None:
        for found in self._settled(
            frame.delivery_tag or 0, multiple=bool(frame.multiple)
        ):
            self._broker.world.acked(self, found.message)
            found.consumer.queue.acked(found.consumer, (found.message,))

    def _on_nack(self, frame: commands.Basic.Nack | commands.Basic.Reject) -> None:
        for found in self._settled(
            frame.delivery_tag or 0, multiple=bool(getattr(frame, "multiple", False))
        ):
            if frame.requeue:
                found.consumer.queue.returned(found.consumer, (found.message,))
            else:
                found.consumer.queue.acked(found.consumer, (found.message,))

    def _settled(self, tag: int, *, multiple: bool) -> list[Unacked]:
        """Remove and return the deliveries that an ack or nack of a tag settles."""
        if multiple:
            tags = [known for known in self.unacked if known <= tag or not tag]
        else:
            tags = [tag] if tag in self.unacked else []
        if not tags and (not multiple or tag > 0):
            raise ChannelError(
                PRECONDITION_FAILED, f"PRECONDITION_FAILED - unknown delivery tag {tag}"
            )
        return [self.unacked.pop(known) for known in tags]

    def _on_get(self, frame: commands.Basic.Get) -> None:
        queue = self._broker.queue(frame.queue or "")
        message = queue.take()
        if message is None:
            self._send(commands.Basic.GetEmpty())
            return
        self._tag += 1
        message.delivered += 1
        if not frame.no_ack:
            reader = Subscription(self, "", queue, 0)
            queue.unacked[message.number] = message
            self.unacked[self._tag] = Unacked(reader, message, self._broker.now)
        found = commands.Basic.GetOk(
            self._tag,
            message.returned > 0,
            message.exchange,
            message.routing_key,
            len(queue.ready),
        )
        self._content(found, message)

    def _on_publish(self, frame: commands.Basic.Publish) -> None:
        self._publish = frame
        self.connection.publishes()

    def _published_when_whole(self) -> None:
        """Route a published message once its body is complete."""
        frame, head = self._publish, self._header
        if frame is None or head is None or len(self._body) < head.body_size:
            return
        body, self._publish, self._header, self._body = (
            bytes(self._body),
            None,
            None,
            bytearray(),
        )
        self._published += 1
        number = self._published if self._confirming else None
        self._broker.publish(self, frame, head.properties, body, number)

    def return_to_sender(
        self, frame: commands.Basic.Publish, properties: Any, body: bytes
    ) -> None:
        """Return a mandatory message that no queue takes."""
        said = commands.Basic.Return(
            312, "NO_ROUTE", frame.exchange or "", frame.routing_key or ""
        )
        self._content(
            said,
            Stored(0, frame.exchange or "", frame.routing_key or "", properties, body),
        )

    def _on_close(self, _frame: commands.Channel.Close) -> None:
        self._send(commands.Channel.CloseOk())
        if not self.closing:
            self.closing = True
            self.over()
        self.connection.channels.pop(self.number, None)

    def _on_close_ok(self, _frame: commands.Channel.CloseOk) -> None:
        self.connection.channels.pop(self.number, None)


if TYPE_CHECKING:
    from tests.simulation.amqp_broker import Broker
    from tests.simulation.network import Connection

_FRAME_MAX: Final = 131_072
HANDSHAKE_TIMEOUT: Final = 10.0
"""Seconds in which a client must have opened its connection, by default."""
_GREETING: Final = b"AMQP\x00\x00\x09\x01"
_FRAME_HEADER: Final = 7
_CAPABILITIES: Final = {
    "publisher_confirms": True, "exchange_exchange_bindings": True, "basic.nack": True,
    "consumer_cancel_notify": True, "connection.blocked": True, "per_consumer_qos": True,
}  # fmt: skip


class BrokerConnection:
    """The broker's end of a connection.

    Args:
        broker: whose it is.
        wire: the network's connection.
    """

    def __init__(self, broker: Broker, wire: Connection) -> None:
        self.broker = broker
        self.wire = wire
        self.channels: dict[int, Channel] = {}
        self.closed_by_us: set[int] = set()
        """Channels on which aiormq may still send what it had queued before it heard that we closed them."""
        self.open = True
        self.opened = False
        self.has_published = False
        self._buffer = b""
        self._greeted = False
        self.unconfirmed = False
        """Whether it waits for a confirm that was lost."""
        self._blocked = False
        self._heartbeat = 0
        self._heard = self._looked = self._missed = 0
        broker.world.agenda.after(HANDSHAKE_TIMEOUT, self._check_opened)
        self._handshake: dict[type, Callable[[Any], None]] = {
            commands.Connection.StartOk: self._on_start_ok, commands.Connection.TuneOk: self._on_tune_ok,
            commands.Connection.Open: self._on_open, commands.Connection.Close: self._on_close,
            commands.Connection.CloseOk: lambda _: self.end(), Heartbeat: lambda _: None,
        }  # fmt: skip

    @property
    def process(self) -> str:
        """Whose connection it is."""
        return self.wire.process.name

    def received(self, data: bytes) -> None:
        """Take bytes of the client."""
        self._heard += len(data)
        self._buffer += data
        if not self._greeted and len(self._buffer) >= len(_GREETING):
            self._greeted = True
            self._buffer = self._buffer[len(_GREETING) :]
            start = {
                "product": "RabbitMQ",
                "version": "4.0.5",
                "capabilities": _CAPABILITIES,
            }
            self.send(0, commands.Connection.Start(0, 9, start, "PLAIN", "en_US"))
        while self._greeted and self.open and (found := self._next_frame()) is not None:
            self._act(*found)

    def lost(self) -> None:
        """The client has closed or lost the connection."""
        self._over("lost")

    def send(self, channel: int, *found: Any) -> None:
        """Send frames."""
        raw = b"".join(piece for frame in found for piece in self._split(frame, channel))
        self.wire.send(raw)

    def end(self, code: int | None = None, text: str = "") -> None:
        """End the connection, with a reason where there is a code."""
        if not self.open:
            return
        if code is not None:
            self.send(0, commands.Connection.Close(code, text, 0, 0))
        self._over(text or "closed")
        self.wire.close()

    def publishes(self) -> None:
        """Note that this connection publishes: under an alarm it is blocked from now on."""
        self.has_published = True
        if self.broker.alarm:
            self._block()

    def alarm_ends(self) -> None:
        """Resume reading."""
        if self._blocked:
            self._blocked = False
            self.send(0, commands.Connection.Unblocked())
            self._missed = 0
            self.wire.read_again()

    def _check_opened(self) -> None:
        """Close a connection that is not open in time."""
        if not self.opened:
            self.end()

    def _block(self) -> None:
        """Stop reading until the alarm ends."""
        if not self._blocked:
            self._blocked = True
            self.wire.server_reads = False
            self.send(0, commands.Connection.Blocked("low on memory"))

    @staticmethod
    def _split(frame: Any, channel: int) -> list[bytes]:
        """Return a frame's bytes, a large body in several."""
        most = _FRAME_MAX - 8
        if isinstance(frame, ContentBody) and len(frame.value) > most:
            parts = [
                frame.value[at : at + most] for at in range(0, len(frame.value), most)
            ]
            return [frames.marshal(ContentBody(part), channel) for part in parts]
        return [frames.marshal(frame, channel)]

    def _next_frame(self) -> tuple[int, Any] | None:
        """Take the next whole frame from what was read."""
        if len(self._buffer) < _FRAME_HEADER:
            return None
        size = int.from_bytes(self._buffer[3:7], "big") + _FRAME_HEADER + 1
        if len(self._buffer) < size:
            return None
        _, channel, found = frames.unmarshal(self._buffer[:size])
        self._buffer = self._buffer[size:]
        return channel, found

    def _act(self, number: int, frame: Any) -> None:
        """Act on a frame."""
        if number == 0:
            self._handshake[type(frame)](frame)
        elif isinstance(frame, commands.Channel.Open):
            if number in self.channels:
                # aiormq drops its close-ok where ten frames wait to be written, and opens the channel again.
                if not self.channels[number].closing:
                    self.broker.world.protocol_error(
                        self, f"channel {number} opened twice"
                    )
                return self.end(504, "CHANNEL_ERROR - second 'channel.open' seen")
            self.channels[number] = Channel(self, number)
            self.send(number, commands.Channel.OpenOk())
        elif number in self.channels:
            self.channels[number].received(frame)
        elif not isinstance(frame, commands.Channel.CloseOk):
            # aiormq closes a channel a second time where a heartbeat has passed without an answer to the first.
            repeated = getattr(frame, "reply_text", "").startswith(
                "RPC timeout on frame <Channel.Close "
            )
            if number not in self.closed_by_us and not repeated:
                self.broker.world.protocol_error(
                    self, f"{frame.name} on channel {number}, which is not open"
                )
            self.end(504, "CHANNEL_ERROR - expected 'channel.open'")
        return None

    def _on_start_ok(self, _frame: commands.Connection.StartOk) -> None:
        self.send(0, commands.Connection.Tune(2047, _FRAME_MAX, 60))

    def _on_tune_ok(self, frame: commands.Connection.TuneOk) -> None:
        self._heartbeat = frame.heartbeat or 0

    def _on_open(self, _frame: commands.Connection.Open) -> None:
        self.opened = True
        self.send(0, commands.Connection.OpenOk())
        if self._heartbeat:
            self.broker.world.agenda.after(self._heartbeat / 2, self._beat)
            self.broker.world.agenda.after(self._heartbeat, self._listen)

    def _on_close(self, _frame: commands.Connection.Close) -> None:
        self.send(0, commands.Connection.CloseOk())
        self.end()

    def _beat(self) -> None:
        """Send a heartbeat; twice in an interval."""
        if self.open:
            self.send(0, Heartbeat())
            self.broker.world.agenda.after(self._heartbeat / 2, self._beat)

    def _listen(self) -> None:
        """End the connection if nothing was received in two heartbeat intervals."""
        if not self.open:
            return
        if self._blocked or self._heard != self._looked:
            self._missed, self._looked = 0, self._heard
        elif self._missed:
            self.broker.world.note("broker", f"missed heartbeats of {self.process}")
            return self.end()
        else:
            self._missed = 1
        self.broker.world.agenda.after(self._heartbeat, self._listen)
        return None

    def _over(self, why: str) -> None:
        """Close the channels and return their unacked deliveries."""
        if not self.open:
            return
        self.open = False
        self.broker.world.note("broker", f"connection of {self.process} over: {why}")
        channels, self.channels = self.channels, {}
        for channel in channels.values():
            if not channel.closing:
                channel.closing = True
                channel.over()
        self.broker.forget(self)


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
                connection.end(
                    320,
                    "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'",
                )
            else:
                connection.wire.break_off()

    def connections_of(self, process: str) -> list[BrokerConnection]:
        """Return the open connections of a process."""
        return [
            found
            for found in self._connections
            if found.process == process and found.opened
        ]

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
            raise ChannelError(
                NOT_FOUND, f"NOT_FOUND - queue '{name}' in vhost '/' process is stopped"
            )
        elif found.arguments != arguments:
            raise ChannelError(
                PRECONDITION_FAILED, "PRECONDITION_FAILED - inequivalent arg"
            )
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
            raise ChannelError(
                NOT_FOUND, f"NOT_FOUND - no exchange '{name}' in vhost '/'"
            )
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
        self,
        channel: Channel,
        frame: commands.Basic.Publish,
        properties: Any,
        body: bytes,
        number: int | None,
    ) -> None:
        """Route a message of a client, and confirm it if it wants that."""
        exchange, routing_key = frame.exchange or "", frame.routing_key or ""
        if exchange in self._missing_exchanges or exchange not in self._exchanges:
            raise ChannelError(
                NOT_FOUND, f"NOT_FOUND - no exchange '{exchange}' in vhost '/'"
            )
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

    def put(
        self, exchange: str, routing_key: str, properties: Any, body: bytes
    ) -> list[Stored]:
        """Put a message into its queues without a client connection, as an attacker may."""
        stored = []
        for queue in self._routed(exchange, routing_key):
            stored.append(self._stored(exchange, routing_key, properties, body))
            queue.publish(stored[-1])
        return stored

    def _stored(
        self, exchange: str, routing_key: str, properties: Any, body: bytes
    ) -> Stored:
        self._numbers += 1
        return Stored(self._numbers, exchange, routing_key, properties, body)

    def _routed(self, exchange: str, routing_key: str) -> list[Queue]:
        """Return the queues that take a routing key."""
        if exchange == "":
            names = [routing_key]
        else:
            names = [
                queue
                for key, queue in self._exchanges[exchange]
                if key in (routing_key, "#")
            ]
        return [queue for queue in self.found_queues(names) if not queue.missing]

    def _confirm(self, channel: Channel, number: int, *, taken: bool) -> None:
        """Confirm soon; confirms of one channel in their order."""
        due = max(
            channel.confirms_at, self.now + self.world.pace.uniform(*self.confirm_delay)
        )
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
                oldest = min(
                    (found.since for found in channel.unacked.values()), default=self.now
                )
                if self.now - oldest > CONSUMER_TIMEOUT:
                    text = "PRECONDITION_FAILED - delivery acknowledgement on channel timed out"
                    channel.fail(ChannelError(PRECONDITION_FAILED, text))
