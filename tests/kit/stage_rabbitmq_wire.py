"""A relay between a client and RabbitMQ that reads deliveries, acks and publishes as they pass.

It can insert frames of its own, so that a real broker does what it does by itself only in rare trouble, and it can
lose what is published. It runs in an event loop of its own, because an observer of an ack may ask the broker
something before the ack is passed on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from pamqp import commands, header
from pamqp import frame as frames
from pamqp.body import ContentBody

_GREETING: Final = 8
_HEADER: Final = 7
_UNKNOWN_TAG: Final = 1 << 40


@dataclass
class Traffic:
    """What passed through the relays of one stage.

    Args:
        deliveries: number of deliveries by body.
        published: messages that clients published through a relay that counts them.
        swallows: whether such messages are lost now.
        observers: called with each body before its ack is passed on.
    """

    deliveries: Counter[bytes] = field(default_factory=Counter)
    published: int = 0
    swallows: bool = False
    observers: list[Callable[[bytes], None]] = field(default_factory=list)


class Relay:
    """Accepts connections on a port of its own, and relays them to the broker.

    Args:
        url: of the broker, ``amqp://``.
        traffic: where the relay counts what passes.
        publishes: whether messages of its clients are counted, and lost while ``traffic.swallows`` is true.
    """

    def __init__(self, url: str, traffic: Traffic, *, publishes: bool = False) -> None:
        self._parts = urlsplit(url)
        self.traffic = traffic
        self.publishes = publishes
        self.consumed = False
        self._passages: list[Passage] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> str:
        """Listen, and return the URL of the relay."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        login = self._parts.netloc.rpartition("@")[0]
        return urlunsplit(
            self._parts._replace(
                netloc=f"{login}@127.0.0.1:{port}" if login else f"127.0.0.1:{port}"
            )
        )

    async def close(self) -> None:
        """Break every connection, and accept no more."""
        self._server.close()
        for passage in self._passages:
            passage.client.transport.abort()
            passage.server.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def end_at_broker(self) -> None:
        """End every connection at the broker; the client's side ends once it has received everything."""
        for passage in self._passages:
            passage.server.transport.abort()

    async def close_channels(self) -> None:
        """Have the broker close each channel that consumes, by acking a tag that it does not know."""
        for passage in self._passages:
            for channel in passage.consumers:
                passage.server.write(
                    frames.marshal(commands.Basic.Ack(_UNKNOWN_TAG), channel)
                )

    async def cancel(self) -> None:
        """Have each consumer cancelled, and let its client believe that the broker did it."""
        for passage in self._passages:
            for channel, tag in passage.consumers.items():
                said = frames.marshal(commands.Basic.Cancel(tag, True), channel)
                passage.server.write(said)
                passage.client.write(said)
            passage.consumers.clear()

    async def lose_swallowed(self) -> None:
        """Break the connections on which something was lost."""
        for passage in self._passages:
            if passage.swallowed:
                passage.client.transport.abort()
                passage.server.transport.abort()

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        far_reader, far_writer = await asyncio.open_connection(
            self._parts.hostname, self._parts.port or 5672
        )
        passage = Passage(self, writer, far_writer)
        self._passages.append(passage)
        for work in (passage.up(reader), passage.down(far_reader)):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


class Passage:
    """One connection through a relay.

    Args:
        relay: the relay it goes through.
        client: writes to the client.
        server: writes to the broker.
    """

    def __init__(
        self, relay: Relay, client: asyncio.StreamWriter, server: asyncio.StreamWriter
    ) -> None:
        self._relay = relay
        self.client = client
        self.server = server
        self.consumers: dict[int, str] = {}
        self.swallowed = False
        self._swallowing: set[int] = set()
        self._unacked: dict[int, dict[int, bytes]] = {}
        self._arriving: dict[int, Arriving] = {}

    async def up(self, reader: asyncio.StreamReader) -> None:
        """Relay what the client sends."""
        with suppress(asyncio.IncompleteReadError, OSError):
            self.server.write(await reader.readexactly(_GREETING))
            while True:
                raw = await _frame(reader)
                _, channel, frame = frames.unmarshal(raw)
                if not self._is_swallowed(channel, frame):
                    self._said(channel, frame)
                    self.server.write(raw)
        self.server.close()

    async def down(self, reader: asyncio.StreamReader) -> None:
        """Relay what the broker sends."""
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                raw = await _frame(reader)
                _, channel, frame = frames.unmarshal(raw)
                self._heard(channel, frame)
                self.client.write(raw)
        self.client.close()

    def _is_swallowed(self, channel: int, frame: Any) -> bool:
        """Tell whether a frame belongs to a message that is lost, and count the messages."""
        traffic = self._relay.traffic
        if isinstance(frame, commands.Basic.Publish) and self._relay.publishes:
            traffic.published += 1
            if traffic.swallows:
                self._swallowing.add(channel)
                self.swallowed = True
        elif not isinstance(frame, header.ContentHeader | ContentBody):
            self._swallowing.discard(channel)
        return channel in self._swallowing

    def _said(self, channel: int, frame: Any) -> None:
        """Note what the client settles, and call the observers before its acks are passed on."""
        if isinstance(frame, commands.Basic.Ack):
            for body in self._settled(
                channel, frame.delivery_tag or 0, multiple=bool(frame.multiple)
            ):
                for observer in self._relay.traffic.observers:
                    observer(body)
        elif isinstance(frame, commands.Basic.Nack | commands.Basic.Reject):
            self._settled(
                channel,
                frame.delivery_tag or 0,
                multiple=bool(getattr(frame, "multiple", False)),
            )
        elif isinstance(frame, commands.Basic.Cancel):
            self.consumers.pop(channel, None)

    def _heard(self, channel: int, frame: Any) -> None:
        """Note what the broker delivers and what it closes."""
        if isinstance(frame, commands.Basic.Deliver):
            self._arriving[channel] = Arriving(frame.delivery_tag or 0)
        elif isinstance(frame, header.ContentHeader | ContentBody):
            self._arrived(channel, frame)
        elif isinstance(frame, commands.Basic.ConsumeOk):
            self.consumers[channel] = frame.consumer_tag or ""
            self._relay.consumed = True
        elif isinstance(frame, commands.Channel.Close | commands.Channel.CloseOk):
            self.consumers.pop(channel, None)
            self._unacked.pop(channel, None)
            self._arriving.pop(channel, None)

    def _arrived(self, channel: int, frame: Any) -> None:
        """Count a delivery once it is complete."""
        arriving = self._arriving.get(channel)
        if arriving is None:
            return
        arriving.take(frame)
        if arriving.is_whole:
            body = bytes(arriving.body)
            self._unacked.setdefault(channel, {})[arriving.tag] = body
            self._relay.traffic.deliveries[body] += 1
            del self._arriving[channel]

    def _settled(self, channel: int, tag: int, *, multiple: bool) -> list[bytes]:
        """Return and forget the deliveries that a tag settles."""
        unacked = self._unacked.get(channel, {})
        tags = (
            [known for known in unacked if known <= tag or not tag] if multiple else [tag]
        )
        return [unacked.pop(known) for known in tags if known in unacked]


@dataclass
class Arriving:
    """A delivery whose body is still arriving."""

    tag: int
    size: int = -1
    body: bytearray = field(default_factory=bytearray)

    def take(self, frame: Any) -> None:
        """Take its header, or a part of its body."""
        if isinstance(frame, ContentBody):
            self.body += frame.value
        else:
            self.size = frame.body_size

    @property
    def is_whole(self) -> bool:
        """Whether it has arrived completely."""
        return len(self.body) == self.size


async def _frame(reader: asyncio.StreamReader) -> bytes:
    """Return the next complete frame.

    Raises:
        asyncio.IncompleteReadError: the connection ended.
    """
    head = await reader.readexactly(_HEADER)
    return head + await reader.readexactly(int.from_bytes(head[3:7], "big") + 1)
