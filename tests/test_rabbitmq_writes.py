"""How the producer of aio-pika writes to a channel: in which turn of the event loop, and with what numbers.

The channel is aiormq's own; what its connection does with a frame is done by the test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import aio_pika
import pytest
from aiormq.abc import ChannelFrame
from aiormq.base import FutureStore
from aiormq.channel import Channel
from aiormq.exceptions import ChannelInvalidStateError
from pamqp import commands
from yarl import URL

from mqauth.brokers.rabbitmq.producer import DirectPath, Producer
from mqauth.testing import Forge
from tests.conftest import turns


class Connection:
    """A connection of aiormq's, as far as its channels ask; it writes when told."""

    publisher_confirms = is_opened = True
    connection_tune = SimpleNamespace(frame_max=131_072)

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.write_queue = asyncio.Queue[Any](2)
        self.store = FutureStore(self.loop)
        self._future_store_child = self.store.get_child

    async def written(self) -> bytes:
        """Write the next frame as aiormq does; ``frame.drain()`` says that the socket has taken it."""
        for _ in range(20):
            if self.write_queue.empty():
                await asyncio.sleep(0)
        self.frame = self.write_queue.get_nowait()
        return bytes(self.frame.payload)


class Silent(Channel):
    """A channel of aiormq's, to which no frames come."""

    async def _reader(self) -> None:
        """Read nothing."""


class Outer:
    """A channel of aio-pika's."""

    is_closed, publisher_confirms = False, True


class Direct:
    """A channel, an exchange on it, and the path on which messages are published to it."""

    def __init__(self) -> None:
        async def get_underlay_channel() -> Channel:
            return self.channel

        self.connection = Connection()
        given: Any = self.connection
        self.channel = Silent(given, 1)
        outer: Any = Outer()
        outer.get_underlay_channel = get_underlay_channel
        self.exchange = aio_pika.Exchange(outer, "shop")
        self.path = DirectPath(self.exchange)

    def publish(self, name: str) -> asyncio.Task[Any]:
        """Publish a message of an id."""
        sent = SimpleNamespace(id=name, raw=b"", body=name.encode(), marshal=bytes)
        return asyncio.create_task(
            self.path.send(sent, "k", mandatory=True, immediate=False)
        )

    def confirm(self) -> None:
        """Confirm what was counted."""
        for tag, confirm in self.channel.confirmations.items():
            if not confirm.done():
                confirm.set_result(commands.Basic.Ack(tag))


async def turns_of(direct: Direct, *publishing: Coroutine[Any, Any, Any]) -> list[int]:
    """Return the turn of the loop in which each write was made, counted from that in which publishing began."""
    writes: list[int] = []
    turn = 0

    async def write() -> None:
        while True:
            frame = direct.connection.frame = await direct.connection.write_queue.get()
            assert frame.payload
            writes.append(turn)
            direct.connection.frame.drain()
            direct.confirm()

    writing = asyncio.create_task(write())
    await turns(1)
    published = asyncio.gather(*publishing)
    while not published.done() and turn < 100:
        await asyncio.sleep(0)
        turn += 1
    writing.cancel()
    await published
    return writes


async def test_a_message_alone_waits_for_one_turn() -> None:
    """A message is written one turn of the loop later than by aio-pika's own publish: others that come within it
    share the signature and the write. With ``batch=1`` it is written in the same turn."""

    def message() -> aio_pika.Message:
        return aio_pika.Message(b"x")

    async def counted(count: int, **settings: Any) -> list[int]:
        direct = Direct()
        sender = (
            Producer(direct.exchange, Forge().signer(), **settings)
            if settings
            else direct.exchange
        )
        return await turns_of(
            direct, *(sender.publish(message(), "k") for _ in range(count))
        )

    (own,) = await counted(1)
    assert (
        await counted(1, batch=64)
        == await counted(5, batch=64)
        == await counted(64, batch=64)
        == [own + 1]
    )
    assert await counted(1, batch=1) == await counted(5, batch=1) == [own]


async def test_messages_keep_their_order() -> None:
    """Messages that are published in one turn are written in their order, more than share a signature too."""
    direct = Direct()
    sender = Producer(direct.exchange, Forge().signer())
    names = [f"[{number}]" for number in range(100)]
    publishing = [
        asyncio.create_task(sender.publish(aio_pika.Message(b"", message_id=name), "k"))
        for name in names
    ]
    await turns(2)
    written = await direct.connection.written()
    assert sorted(names, key=lambda name: written.index(name.encode())) == names
    direct.confirm()
    await asyncio.gather(*publishing)


async def test_what_was_given_up_is_not_kept() -> None:
    """While the socket takes nothing, publishes that were given up leave no bytes and no writers behind."""
    direct = Direct()
    first = direct.publish("aa")
    await direct.connection.written()
    before = len(asyncio.all_tasks())
    for number in range(3):
        later = direct.publish(f"given up {number}")
        await turns()
        later.cancel()
        await asyncio.gather(later, return_exceptions=True)
    assert (direct.path._frame.unsent, len(asyncio.all_tasks())) == ({}, before)
    direct.connection.frame.drain()
    assert direct.connection.write_queue.empty()
    direct.confirm()
    await first


async def test_what_waits_is_written_at_once() -> None:
    """Messages that are ready together are one write, in their order. The next one has those that came before the
    socket had taken it, but for a message whose caller was cancelled."""
    direct = Direct()
    first = [direct.publish(name) for name in ("aa", "bb")]
    written = await direct.connection.written()
    assert written.index(b"aa") < written.index(b"bb")
    later, cancelled, last = (direct.publish(name) for name in ("cc", "dd", "ee"))
    await turns(1)
    cancelled.cancel()
    assert direct.connection.write_queue.empty()
    direct.connection.frame.drain()
    written = await direct.connection.written()
    assert written.index(b"cc") < written.index(b"ee")
    assert b"dd" not in written
    # The tags are those of the broker, which counts what was written.
    assert direct.channel.message_id_delivery_tag == {"aa": 1, "bb": 2, "cc": 3, "ee": 4}
    direct.confirm()
    assert [ack.delivery_tag for ack in await asyncio.gather(*first, later, last)] == [
        1,
        2,
        3,
        4,
    ]
    assert not direct.channel.message_id_delivery_tag


@pytest.mark.parametrize("early", [0, 1, 3])
async def test_all_are_counted_in_the_order_of_the_wire(early: int) -> None:
    """Beside somebody else's publishes on the channel each message has the number of its place on the wire, which
    is the number that the broker confirms."""
    direct = Direct()
    tags = direct.channel.message_id_delivery_tag
    publishing = [direct.publish(f"[early {number}]") for number in range(early)]
    for number in range(3):
        properties = commands.Basic.Properties(message_id=f"[theirs {number}]")
        theirs = direct.channel.basic_publish(b"", properties=properties, wait=number > 0)
        publishing += [asyncio.create_task(theirs), direct.publish(f"[late {number}]")]
    wire = b""
    for _ in range(20):
        await turns(1)
        if not direct.connection.write_queue.empty():
            wire += await direct.connection.written()
            direct.connection.frame.drain()
    assert sorted(tags, key=lambda name: wire.index(name.encode())) == sorted(
        tags, key=tags.__getitem__
    )
    assert sorted(tags.values()) == list(range(1, len(publishing) + 1))
    direct.confirm()
    await asyncio.gather(*publishing)


@pytest.mark.parametrize("held", range(1, 8))
async def test_a_channel_that_somebody_holds(held: int) -> None:
    """While its lock is held a publish waits, and is written after, in whatever turn the lock is released."""
    direct = Direct()
    async with direct.channel.lock:
        publishing = direct.publish("aa")
        await turns(held)
        assert direct.connection.write_queue.empty()
    assert b"aa" in await direct.connection.written()
    direct.confirm()
    await publishing


async def test_a_connection_that_writes_nothing() -> None:
    """While the queue of its connection is full a publish waits; once its channel is closed it fails, and neither
    its bytes nor a task of its own is left."""
    direct = Direct()
    before = len(asyncio.all_tasks())
    for _ in range(2):
        direct.connection.write_queue.put_nowait(
            ChannelFrame(b"other", should_close=False)
        )
    publishing = direct.publish("aa")
    await turns()
    assert not publishing.done()
    await direct.connection.store.reject_all(ChannelInvalidStateError("closed"))
    with pytest.raises(ChannelInvalidStateError):
        await publishing
    await turns()
    assert (direct.path._frame.unsent, len(asyncio.all_tasks())) == ({}, before - 1)


# What ``docs/operations-rabbitmq.md`` asks of ``connect_robust``, on a server that says nothing.


async def test_a_handshake_that_nobody_answers_is_made_again() -> None:
    """With a time limit aio-pika gives up a handshake without an answer, and tries again."""
    attempts: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_server(
        lambda _, writer: attempts.put_nowait(writer), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]
    connection = aio_pika.RobustConnection(
        URL(f"amqp://127.0.0.1:{port}/?fail_fast=0&reconnect_interval=0.01")
    )
    connecting = asyncio.create_task(connection.connect(timeout=0.05))
    taken: list[asyncio.StreamWriter] = []
    try:
        async with asyncio.timeout(5):
            while len(taken) < 3:
                taken.append(await attempts.get())
    finally:
        connecting.cancel()
        await connection.close()
        server.close()
        for writer in taken:
            writer.close()
