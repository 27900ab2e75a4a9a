"""pika's leaf without a broker: private names of pika, translation, and plain handlers on threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from pika import BasicProperties, BlockingConnection, SelectConnection, spec
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel
from pika.compat import long
from pika.data import decode_table, encode_table

from mqauth import ConfigurationError, MalformedMessage, MemoryReplayStore, Pipeline
from mqauth.brokers import pika as leaf
from mqauth.brokers.event_loop import on_thread
from mqauth.brokers.pika.confirmed import Publisher
from mqauth.brokers.pika.link import link_of
from mqauth.brokers.pika.translate import (
    carries,
    check_properties,
    read,
    to_message,
    to_properties,
)
from mqauth.brokers.process import HomeProcess
from mqauth.testing import Forge

METHOD = SimpleNamespace(
    exchange="shop", routing_key="k", redelivered=False, delivery_tag=1, consumer_tag="c"
)


def test_private_names() -> None:
    """Every private name of pika that the leaf stands on is there."""
    for kind, names in (
        (SelectConnection, ("_terminate_stream", "_get_write_buffer_size")),
        (Channel, ("_set_cookie", "_rpc", "_cleanup_consumer_ref")),
        (BlockingConnection, ("_create_connection",)),
    ):
        assert [name for name in names if not hasattr(kind, name)] == []
    ioloop = IOLoop()
    ioloop.activate_poller()
    assert ioloop._poller._poll.fileno() > 0
    ioloop.deactivate_poller()
    ioloop.close()


def test_the_repair_of_cancel_is_needed() -> None:
    """pika rejects what comes between a cancel and its answer; the leaf's cancel can go once it does not."""
    connection = Mock()
    connection.callbacks.add = connection.callbacks.process = Mock()
    channel = Channel(connection, 1, None)
    channel._set_state(Channel.OPEN)
    channel._cancelled.add("c")
    channel.basic_reject = Mock()  # type: ignore[method-assign]
    channel._on_deliver(SimpleNamespace(method=METHOD), Mock(), b"")  # type: ignore[arg-type]
    channel.basic_reject.assert_called_once_with(1)


async def test_nothing_is_published_while_the_broker_blocks() -> None:
    """A publish waits until the broker takes messages again: each retry would stay in a buffer without bound."""
    connection = BlockingConnection.__new__(BlockingConnection)
    connection._impl = Mock(is_closed=False, params=SimpleNamespace(frame_max=131_072))
    publisher = Publisher(connection)
    publisher.link.attach = Mock()  # type: ignore[method-assign]
    publisher._line = line = Mock(is_open=True)
    publisher.link._on_blocked(True)
    properties = BasicProperties(message_id="m")
    publishing = asyncio.create_task(
        publisher.publish("", "q", b"x", properties, mandatory=True)
    )
    await asyncio.wait([publishing], timeout=0)
    line.native.basic_publish.assert_not_called()
    publisher.link._on_blocked(False)
    await asyncio.wait([publishing], timeout=0)
    line.native.basic_publish.assert_called_once_with("", "q", b"x", properties, True)
    publisher._on_confirm(SimpleNamespace(method=spec.Basic.Ack(delivery_tag=1)))
    await publishing


async def test_what_was_not_sent_has_no_number() -> None:
    """A publish that pika refuses is not counted, so that a confirm does not pass for that of another message."""
    connection = BlockingConnection.__new__(BlockingConnection)
    connection._impl = Mock(is_closed=False, params=SimpleNamespace(frame_max=131_072))
    publisher = Publisher(connection)
    publisher.link.attach = Mock()  # type: ignore[method-assign]
    publisher._line = line = Mock(is_open=True)
    line.native.basic_publish.side_effect = [
        ValueError("an exchange's name is too long"),
        None,
    ]
    with pytest.raises(ValueError, match="too long"):
        await publisher.publish(
            "", "q", b"x", BasicProperties(message_id="refused"), mandatory=True
        )
    publishing = asyncio.create_task(
        publisher.publish(
            "", "q", b"x", BasicProperties(message_id="sent"), mandatory=True
        )
    )
    await asyncio.wait([publishing], timeout=0)
    assert {number: name for number, (name, *_) in publisher._unconfirmed.items()} == {
        1: "sent"
    }
    publisher._on_confirm(SimpleNamespace(method=spec.Basic.Ack(delivery_tag=1)))
    await publishing


def test_only_pikas_connection_is_taken() -> None:
    """What is no blocking connection of pika's is refused, by its name."""
    with pytest.raises(
        ConfigurationError, match="BlockingConnection is needed, not Forge"
    ):
        link_of(Forge())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        "text",
        b"\xff",
        5,
        2**40,
        True,
        None,
        [1, {"a": "b"}],
        {"t": datetime(2026, 1, 1, tzinfo=UTC)},
        Decimal("1.5"),
    ],
)
def test_what_is_bound_is_what_pika_reads(value: Any) -> None:
    """A header is signed in the form in which pika itself reads it."""
    pieces: list[bytes] = []
    encode_table(pieces, {"x": value})
    headers, _ = decode_table(b"".join(pieces), 0)
    sent = to_message(
        BasicProperties(headers={"x": value}), b"", exchange="shop", routing_key="k"
    )
    found = leaf.from_native(METHOD, BasicProperties(headers=headers), b"", queue="q")
    assert (found.headers, found.malformed) == (sent.headers, None)
    assert [type(each) for _, each in found.headers] == [
        type(each) for _, each in sent.headers
    ]


def test_integers_are_pythons_own() -> None:
    """An integer of 64 bits is an ``int``, and no ``long`` of pika's, so that a letter carries it."""
    found = leaf.from_native(
        METHOD, BasicProperties(headers={"x": [long(5)]}), b"", queue="q"
    )
    ((_, value),) = found.headers
    assert isinstance(value, tuple)
    assert type(value[0]) is int
    assert carries("x", value)


@pytest.mark.parametrize(
    "headers",
    [{"x": 1.5}, {"x": object()}, {"x" * 129: 1}, {"x": 2**63}, {"x": {"y": 1.5}}],
)
def test_what_cannot_arrive_is_refused(headers: Any) -> None:
    """What pika cannot send, or would read as something else, is refused before it is signed."""
    with pytest.raises(MalformedMessage):
        to_message(
            BasicProperties(headers=headers), b"", exchange="shop", routing_key="k"
        )


@pytest.mark.parametrize("size", [131_064, 2**20])
def test_a_header_frame_has_a_limit(size: int) -> None:
    """Headers over the frame on which both sides agreed, or over RabbitMQ's own, are refused."""
    check_properties(BasicProperties(headers={"x": "a" * 100}), size)
    with pytest.raises(MalformedMessage):
        check_properties(BasicProperties(headers={"x": "a" * 131_064}), size)


def test_properties_come_back() -> None:
    """A message's properties are those that pika sends for it."""
    properties = BasicProperties(
        content_type="a/b",
        message_id="m",
        priority=3,
        timestamp=5,
        expiration="60",
        reply_to="r",
        delivery_mode=2,
    )
    found = leaf.from_native(METHOD, properties, b"x", queue="q")
    again = to_properties(found)
    assert found.properties["expiration"] == "60"
    assert (again.content_type, again.message_id, again.priority, again.timestamp, again.delivery_mode) == (
        "a/b", "m", 3, 5, 2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        (
            (METHOD, BasicProperties(expiration="soon"), b""),
            "the expiration is no number",
        ),
        (
            (METHOD, BasicProperties(headers={b"\xff": 1}), b""),
            "a header name is no UTF-8 text",
        ),
        (
            (METHOD, BasicProperties(content_type=b"\xff"), b""),
            "property content-type is no text",
        ),
        ((METHOD, None, b""), "the delivery could not be read: AttributeError"),
        ((), "the delivery could not be read: ValueError"),
    ],
)
def test_reading_never_raises(parts: Any, fault: str) -> None:
    """Whatever a delivery holds becomes a message, which says what is wrong with it."""
    assert read(parts, queue="q").malformed == fault


def test_a_consumer_refuses(tmp_path: Any) -> None:
    """A consumer without an audit, and one whose letters go to its own queue, are refused."""
    forge, connection = Forge(), Mock(spec=BlockingConnection)
    connection._impl = Mock()
    letters = leaf.DeadLetters(connection, "orders")
    for queue, message in (("orders", "audit="), ("other", "audit=")):
        guard = Pipeline(
            verifier=forge.verifier(),
            policy=forge.policy("rabbitmq:/q"),
            replay=MemoryReplayStore(),
        )
        with pytest.raises(ConfigurationError, match=message):
            leaf.Consumer(connection, queue, guard, print, dead_letters=letters)
    guard = Pipeline(
        verifier=forge.verifier(),
        policy=forge.policy("rabbitmq:/q"),
        replay=MemoryReplayStore(),
        audit=Mock(),
    )
    with pytest.raises(ConfigurationError, match="another queue"):
        leaf.Consumer(connection, "orders", guard, print, dead_letters=letters)


def test_it_runs_until_another_thread_stops_it() -> None:
    """``run`` blocks its thread, in an event loop of its own, until ``stop`` is called from any thread."""
    begun, over = threading.Event(), asyncio.Event()

    async def run(*, signals: bool) -> None:
        begun.set()
        await over.wait()

    async def stop() -> None:
        over.set()

    consumer = leaf.Consumer.__new__(leaf.Consumer)
    consumer._engine = SimpleNamespace(run=run, stop=stop, home=HomeProcess("consumer"))  # type: ignore[assignment]
    consumer._links, consumer._watched, consumer._threads, consumer._stopped = (
        [],
        [],
        1,
        False,
    )
    running = threading.Thread(target=consumer.run, daemon=True)
    running.start()
    assert begun.wait(30)
    consumer.stop()
    running.join(30)
    assert not running.is_alive()


@pytest.mark.parametrize("name", ["", "dead"])
def test_letters_refuse(name: str) -> None:
    """Dead letters without a queue or with no time are refused."""
    connection = Mock(spec=BlockingConnection)
    connection._impl = Mock()
    with pytest.raises(ConfigurationError):
        leaf.DeadLetters(connection, name, timeout=0 if name else 30)


async def test_a_plain_handler_runs_on_a_thread() -> None:
    """A plain handler runs on another thread, and its result and its errors are those of the call."""

    def plain(verified: Any) -> Any:
        if verified is None:
            raise SystemExit(3)
        return verified, threading.current_thread()

    verified, thread = await on_thread(plain)("v")
    assert verified == "v"
    assert thread is not threading.current_thread()
    with pytest.raises(SystemExit):
        await on_thread(plain)(None)


async def test_what_a_plain_handler_returns_is_awaited() -> None:
    """A coroutine that a plain handler returns is awaited in the event loop: the message is not handled before."""

    async def later(verified: str) -> tuple[str, threading.Thread]:
        await asyncio.sleep(0)
        return verified, threading.current_thread()

    assert await on_thread(lambda verified: later(verified + "w"))("v") == (
        "vw",
        threading.current_thread(),
    )


@pytest.mark.parametrize("awaits", [False, True])
async def test_a_plain_handler_is_not_cut_off(*, awaits: bool) -> None:
    """A plain handler whose task is cancelled ends first, and its result counts; no coroutine of it is begun."""
    begun, over = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    never = loop.create_future()

    def plain(_verified: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        over.wait(30)
        return never if awaits else "done"

    task = asyncio.ensure_future(on_thread(plain)(None))
    await begun.wait()
    task.cancel()
    loop.call_soon(over.set)
    if awaits:
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        assert await task == "done"


def test_an_asynchronous_handler_is_left_alone() -> None:
    """An asynchronous handler stays what it is."""

    async def handler(_verified: Any) -> None: ...

    same: Callable[..., Any] = on_thread(handler)
    assert same is handler


def test_cancel_is_pikas_own_frame() -> None:
    """The frame that cancels a consumer is one that pika knows as a call with an answer."""
    assert spec.Basic.Cancel(consumer_tag="c").synchronous
