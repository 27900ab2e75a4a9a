"""pika's consumer on a real RabbitMQ: long handlers, lost connections, poison, answers, audit; demo, benchmark."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pika
import pytest
from pika.exceptions import AMQPError

from integration.pika_world import HEARTBEAT, World
from integration.services import RabbitMQ
from mqauth import Verified
from mqauth.brokers import pika as leaf
from mqauth.testing.stage_kafka import wait_until
from mqauth.wire.message import Message


@pytest.fixture
def world(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[World]:
    """A fresh world."""
    world = World(rabbitmq.url, tmp_path)
    yield world
    world.close()


def test_a_handler_longer_than_heartbeats(world: World) -> None:
    """A plain handler that runs for longer than the broker waits for heartbeats runs once, on one connection."""

    def handler(verified: Verified) -> None:
        threading.Event().wait(4 * HEARTBEAT)
        world.handled.append(verified.body)
        consumer.stop()

    world.send(b"1")
    consumer = world.consumer(handler, f"?heartbeat={HEARTBEAT}")
    consumer.run()
    assert (world.handled, world.left(), consumer.health().connection_deaths) == ([b"1"], 0, 0)


def test_a_stop_waits_for_a_plain_handler(world: World) -> None:
    """A plain handler over its grace is not cut off, and its message is settled."""
    begun = threading.Event()

    def handler(verified: Verified) -> None:
        begun.set()
        threading.Event().wait(1.0)
        world.handled.append(verified.body)

    world.send(b"1")
    with world.consumer(handler, grace=0.1):
        assert begun.wait(30)
    assert (world.handled, world.left()) == ([b"1"], 0)


def test_what_ends_a_consumer(world: World) -> None:
    """What a plain handler raises that is no ``Exception`` ends the consumer, and its message goes back."""

    def handler(_verified: Verified) -> None:
        raise SystemExit(3)

    world.send(b"1")
    with pytest.raises(SystemExit):
        world.consumer(handler, prefetch=1).run()
    wait_until(lambda: world.left() == 1)


@pytest.mark.parametrize("how", ["cut", "no answer"])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_connection_ends_the_consumer(world: World, lost: int, how: str) -> None:
    """Where its connection, or that of its letters, is lost, ``run`` ends with pika's error; another goes on."""

    def handler(verified: Verified) -> None:
        world.handled.append(verified.body)

    consumer = world.consumer(handler, hold=1)
    world.send(b"1")
    link = consumer._links[lost]
    with pytest.raises((AMQPError, OSError)), consumer:  # noqa: PT012 - it ends within
        wait_until(lambda: world.handled == [b"1"])
        assert consumer._loop is not None
        if how == "cut":
            consumer._loop.call_soon_threadsafe(link._impl._transport._sock.shutdown, 2)
        else:
            consumer._loop.call_soon_threadsafe(link.lose, AMQPError("no answer"))
        wait_until(lambda: consumer.failed)
    world.send(b"2")
    again = world.consumer(handler)
    with again:
        wait_until(lambda: world.handled == [b"1", b"2"])
    assert (world.left(), world.left(world.stage.dead)) == (0, 0)


def test_no_queue(world: World) -> None:
    """A queue that is not there is pika's own error."""
    letters = world.letters()
    consumer = leaf.Consumer(world.connect(), "missing", world.guard(), world.handled.append, dead_letters=letters)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker):
        consumer.run()


def test_poison(world: World) -> None:
    """What pika cannot decode ends the connection, until the broker puts it away; nobody else is condemned."""

    def handler(verified: Verified) -> None:
        world.handled.append(verified.body)

    channel = world.connect().channel()
    poison = pika.BasicProperties(headers={"x": pika.compat.long(1)})
    raw = b"".join(poison.encode())
    # A time that no clock of Python's reaches, in place of the integer.
    raw = raw.replace(b"\x01xl" + bytes(7) + b"\x01", b"\x01xT" + b"\xff" * 8)
    poison.encode = lambda: [raw]
    channel.basic_publish(world.exchange, "orders.created", b"poison", poison)
    world.send(b"1")
    ends = 0
    # The broker puts it away a moment after it has ended a connection, so the last consumer has a healthy message.
    while not world.handled:
        errors = suppress(AMQPError, OSError, ValueError, OverflowError)
        with errors, world.consumer(handler, prefetch=1) as consumer:
            wait_until(partial(lambda one: one.failed or world.handled, consumer))
        ends += 1
        assert ends < 40
    assert (ends > 1, world.handled) == (True, [b"1"])
    assert world.left(world.stage.queue + ".unparseable") == 1
    assert world.left(world.stage.dead) == 0


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
def test_answer(world: World, kind: str) -> None:
    """What ``Verified.reply`` publishes is signed, from a plain handler and from an asynchronous one."""
    channel = world.connect().channel()
    mailbox = channel.queue_declare("", exclusive=True).method.queue

    def plain(verified: Verified) -> None:
        verified.reply(b"yes")
        consumer.stop()

    async def asynchronous(verified: Verified) -> None:
        await verified.reply(b"yes")
        consumer.stop()

    world.send(b"ask", reply_to=mailbox, correlation_id="7")
    consumer = world.consumer(plain if kind == "plain" else asynchronous, replies=world.producer(""))
    consumer.run()
    method, properties, body = channel.basic_get(mailbox, auto_ack=True)
    message = leaf.from_native(method, properties, body, queue=mailbox)
    verifier = world.forge.verifier()
    verified = verifier.verify(message, verifier.open(message), world.forge.keys, world.forge.clock.now())
    assert (verified.body, verified.properties["correlation-id"]) == (b"yes", "7")


def test_audit_queue(world: World) -> None:
    """An audit record on a queue is one that the broker has confirmed."""
    sink = leaf.AuditQueue(world.connect(), f"{world.stage.dead}.audit")
    sink.declare()
    world.stage.inject(Message(destination=world.stage.destination, body=b"forged"))
    with world.consumer(world.handled.append, audit=sink):
        wait_until(lambda: len(world.stage.letters()) == 1)
    channel = world.connect().channel()
    _, _, body = channel.basic_get(sink.name, auto_ack=True)
    channel.queue_delete(sink.name)
    assert json.loads(body)["reason"] == "token_missing"
