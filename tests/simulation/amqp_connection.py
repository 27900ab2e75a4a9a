"""One connection of the simulated broker: the handshake, heartbeats, blocking, and its channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from pamqp import commands
from pamqp import frame as frames
from pamqp.body import ContentBody
from pamqp.heartbeat import Heartbeat

from tests.simulation.amqp_channel import Channel

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
            start = {"product": "RabbitMQ", "version": "4.0.5", "capabilities": _CAPABILITIES}
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
            parts = [frame.value[at : at + most] for at in range(0, len(frame.value), most)]
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
                    self.broker.world.protocol_error(self, f"channel {number} opened twice")
                return self.end(504, "CHANNEL_ERROR - second 'channel.open' seen")
            self.channels[number] = Channel(self, number)
            self.send(number, commands.Channel.OpenOk())
        elif number in self.channels:
            self.channels[number].received(frame)
        elif not isinstance(frame, commands.Channel.CloseOk):
            if number not in self.closed_by_us:
                self.broker.world.protocol_error(self, f"{frame.name} on channel {number}, which is not open")
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
