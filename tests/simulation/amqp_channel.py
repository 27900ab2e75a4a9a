"""One channel of the simulated broker: the commands of AMQP 0-9-1 that aiormq sends, and their errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pamqp import commands, header
from pamqp.body import ContentBody

from tests.simulation.amqp_queue import Stored, Subscription

if TYPE_CHECKING:
    from tests.simulation.amqp_connection import BrokerConnection

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
        if self.closing and not isinstance(frame, commands.Channel.CloseOk | commands.Channel.Close):
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
            consumer.tag, self._tag, message.returned > 0, message.exchange, message.routing_key
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
            properties = commands.Basic.Properties(**(values | {"headers": message.headers()}))
        whole = header.ContentHeader(0, len(message.body), properties)
        self.connection.send(self.number, frame, whole, *([ContentBody(message.body)] if message.body else []))

    def _on_select(self, _frame: commands.Confirm.Select) -> None:
        self._confirming = True
        self._send(commands.Confirm.SelectOk())

    def _on_qos(self, frame: commands.Basic.Qos) -> None:
        self._prefetch = frame.prefetch_count or 0
        self._send(commands.Basic.QosOk())

    def _on_flow(self, frame: commands.Channel.Flow) -> None:
        self._send(commands.Channel.FlowOk(bool(frame.active)))

    def _on_queue_declare(self, frame: commands.Queue.Declare) -> None:
        queue = self._broker.declare(frame.queue or "", dict(frame.arguments or {}), passive=bool(frame.passive))
        self._send(commands.Queue.DeclareOk(frame.queue, len(queue.ready), len(queue.consumers)))

    def _on_queue_delete(self, frame: commands.Queue.Delete) -> None:
        self._broker.delete(frame.queue or "")
        self._send(commands.Queue.DeleteOk(0))

    def _on_bind(self, frame: commands.Queue.Bind) -> None:
        self._broker.bind(frame.queue or "", frame.exchange or "", frame.routing_key or "")
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
        for found in self._settled(frame.delivery_tag or 0, multiple=bool(frame.multiple)):
            self._broker.world.acked(self, found.message)
            found.consumer.queue.acked(found.consumer, (found.message,))

    def _on_nack(self, frame: commands.Basic.Nack | commands.Basic.Reject) -> None:
        for found in self._settled(frame.delivery_tag or 0, multiple=bool(getattr(frame, "multiple", False))):
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
            raise ChannelError(PRECONDITION_FAILED, f"PRECONDITION_FAILED - unknown delivery tag {tag}")
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
            self._tag, message.returned > 0, message.exchange, message.routing_key, len(queue.ready)
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
        body, self._publish, self._header, self._body = bytes(self._body), None, None, bytearray()
        self._published += 1
        number = self._published if self._confirming else None
        self._broker.publish(self, frame, head.properties, body, number)

    def return_to_sender(self, frame: commands.Basic.Publish, properties: Any, body: bytes) -> None:
        """Return a mandatory message that no queue takes."""
        said = commands.Basic.Return(312, "NO_ROUTE", frame.exchange or "", frame.routing_key or "")
        self._content(said, Stored(0, frame.exchange or "", frame.routing_key or "", properties, body))

    def _on_close(self, _frame: commands.Channel.Close) -> None:
        self._send(commands.Channel.CloseOk())
        if not self.closing:
            self.closing = True
            self.over()
        self.connection.channels.pop(self.number, None)

    def _on_close_ok(self, _frame: commands.Channel.CloseOk) -> None:
        self.connection.channels.pop(self.number, None)
