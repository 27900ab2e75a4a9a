"""pika's leaf on a real RabbitMQ: contracts, its producer, its consumer, and loops of one's own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.exceptions import AMQPError, NackError

from integration.client_bench import ClientBench, stage_on
from integration.services import RabbitMQ
from integration.stage_pika import PikaQueueStage
from integration.test_contract_rabbitmq import RealQueueDeliveries
from mqauth import MemoryReplayStore, Pipeline, Verdict, Verified
from mqauth.brokers import pika as leaf
from mqauth.errors import MalformedMessage, StaleDelivery
from mqauth.testing.contract import BatchContract
from mqauth.testing.stage_kafka import wait_until
from mqauth.testing.stage_pika import PikaStage, close, connect
from mqauth.wire.message import TOKEN_HEADER


class TestPikaInBatches(BatchContract):
    """The same with batch tokens."""

    stage = stage_on("rabbitmq", PikaStage)


class TestPikaDeliveries(RealQueueDeliveries):
    """What becomes of deliveries, with several consumers of one queue."""

    stage = stage_on("rabbitmq", PikaQueueStage)


HEARTBEAT = 1
"""Seconds between two heartbeats; the broker ends a connection that is silent for longer than two of them."""


class World(ClientBench):
    """A bench whose clients are pika's."""

    def __init__(self, broker: RabbitMQ, folder: Path) -> None:
        super().__init__(broker, folder, PikaStage(broker.url, prefetch=10))
        self.exchange: str = self.stage._exchange
        self.store = MemoryReplayStore()

    def guard(self, **settings: Any) -> Pipeline:
        """Return a pipeline whose claims outlive a consumer."""
        return super().guard(**({"replay": self.store} | settings))

    def connect(self, more: str = "") -> pika.BlockingConnection:
        """Return a connection that is closed in the end."""
        connection = connect(self.broker.url + more)
        self.ending.callback(close, connection)
        return connection

    def producer(self, exchange: str | None = None, **settings: Any) -> leaf.Producer:
        """Return a producer that is closed in the end."""
        found = self.exchange if exchange is None else exchange
        return self.ending.enter_context(
            leaf.Producer(self.connect(), found, self.forge.signer(), **settings)
        )

    def dead_letters(self) -> leaf.DeadLetters:
        """Return dead letters on a connection of their own."""
        return leaf.DeadLetters(self.connect(), self.stage.dead, timeout=5)

    def consumer(
        self, handler: Any = None, more: str = "", *, audit: Any = None, **settings: Any
    ) -> leaf.Consumer:
        """Return a consumer on connections of its own."""
        guard, letters = self.guard(audit=audit or self.audit), self.dead_letters()
        return leaf.Consumer(
            self.connect(more),
            self.source,
            guard,
            handler or self.handle,
            dead_letters=letters,
            **settings,
        )

    def publish(self, body: bytes, **properties: Any) -> None:
        """Publish a signed message with properties."""
        with leaf.Producer(
            self.connect(), self.exchange, self.forge.signer()
        ) as producer:
            producer.publish(body, "orders.created", pika.BasicProperties(**properties))

    def left(self, queue: str = "") -> int:
        """Return how many messages wait in a queue."""
        with connect(self.broker.url) as connection:
            found = connection.channel().queue_declare(queue or self.source, passive=True)
            return int(found.method.message_count)


@pytest.fixture
def world(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[World]:
    """A fresh world."""
    world = World(rabbitmq, tmp_path)
    with world.ending:
        yield world


def test_threads_share_signatures(world: World) -> None:
    """What several threads publish at once is confirmed to each, and shares signatures."""
    producer = world.producer(batch=16)

    def publish(number: int) -> None:
        producer.publish(b"%d" % number, "orders.created")

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    channel = world.connect().channel()
    found = [channel.basic_get(world.source, auto_ack=True) for _ in range(64)]
    assert sorted(int(body) for _, _, body in found) == list(range(64))
    signatures = {
        properties.headers[TOKEN_HEADER].partition("~")[0] for _, properties, _ in found
    }
    assert len(signatures) < 64


def test_unroutable(world: World) -> None:
    """A message that no queue takes is an error of its caller alone, also where its id is in flight twice."""
    producer = world.producer()
    same = pika.BasicProperties(message_id="same")
    lost = producer.submit(b"1", "nowhere", same)
    kept = producer.submit(b"2", "orders.created", same)
    with pytest.raises(leaf.UnroutableError):
        lost.result(30)
    kept.result(30)
    producer.publish(b"3", "nowhere", mandatory=False)
    assert world.left() == 1
    assert same.headers is None


def test_refused(world: World) -> None:
    """A queue that is full refuses a message with pika's own error, and the producer goes on."""
    channel = world.connect().channel()
    full = channel.queue_declare(
        "", exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    producer = world.producer("")
    producer.publish(b"1", full.method.queue)
    refused = [producer.submit(b"2", full.method.queue) for _ in range(10)]
    assert NackError in [type(each.exception(30)) for each in refused]
    producer.publish(b"3", world.source)


def test_what_cannot_be_sent(world: World) -> None:
    """A float, and headers over the broker's frame, are refused before they are sent; the connection lives."""
    producer = world.producer()
    for headers in ({"x": 1.5}, {"x": "a" * 131_064}):
        with pytest.raises(MalformedMessage):
            producer.publish(b"", "orders.created", pika.BasicProperties(headers=headers))
    producer.publish(b"1", "orders.created")
    assert world.left() == 1


def test_beside_one_that_is_too_large(world: World) -> None:
    """Messages that were open beside one that only the broker finds too large are not told that they are, too."""
    producer = world.producer(max_body=1 << 30)
    large = producer.submit(b"b" * (17 << 20), "orders.created")
    beside = [producer.submit(b"%d" % number, "orders.created") for number in range(8)]
    assert isinstance(large.exception(30), ValueError)
    told = [each.exception(30) for each in beside]
    assert all(error is None or isinstance(error, AMQPError) for error in told)
    producer.publish(b"9", "orders.created")


def test_an_exchange_that_is_missing(world: World) -> None:
    """A channel that the broker closes fails its publishes, and is opened anew for the next."""
    producer = world.producer("no-such-exchange")
    for _ in range(2):
        with pytest.raises(pika.exceptions.ChannelClosedByBroker):
            producer.publish(b"1", "orders.created")


def test_idle_for_longer_than_heartbeats(world: World) -> None:
    """A producer that has nothing to publish answers heartbeats, and gives its connection back in the end."""
    connection = world.connect(f"?heartbeat={HEARTBEAT}")
    with leaf.Producer(connection, world.exchange, world.forge.signer()) as producer:
        producer.publish(b"1", "orders.created")
        threading.Event().wait(4 * HEARTBEAT)
        producer.publish(b"2", "orders.created")
    assert (
        connection.channel()
        .queue_declare(world.source, passive=True)
        .method.message_count
        == 2
    )


def test_a_lost_connection_is_an_error(world: World) -> None:
    """A publish on a lost connection fails with pika's error, and ``close`` returns."""
    producer = world.producer()
    producer.publish(b"1", "orders.created")
    producer.link._impl._transport._sock.shutdown(2)
    wait_until(lambda: producer.link.error is not None)
    with pytest.raises((AMQPError, OSError)):
        producer.publish(b"3", "orders.created")
    producer.close()


def test_answers_come_to_the_loop_alone(world: World) -> None:
    """A connection that one wrapper's thread uses is refused to another."""
    connection = world.connect()
    with leaf.Producer(connection, world.exchange, world.forge.signer()) as producer:
        producer.publish(b"1", "orders.created")
        letters = leaf.DeadLetters(connection, world.stage.dead)
        with pytest.raises(Exception, match="one thread"):
            asyncio.run(letters._publisher.link.channel())


def test_a_handler_longer_than_heartbeats(world: World) -> None:
    """A plain handler that runs for longer than the broker waits for heartbeats runs once, on one connection."""

    def handler(verified: Verified) -> None:
        threading.Event().wait(4 * HEARTBEAT)
        world.handled.append(verified.body)
        consumer.stop()

    world.send(b"1")
    consumer = world.consumer(handler, f"?heartbeat={HEARTBEAT}")
    consumer.run()
    assert (world.handled, world.left(), consumer.health().connection_deaths) == (
        [b"1"],
        0,
        0,
    )


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


@pytest.mark.parametrize("how", ["cut", "no answer"])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_connection_ends_the_consumer(world: World, lost: int, how: str) -> None:
    """Where its connection, or that of its letters, is lost, ``run`` ends with pika's error; another goes on."""
    consumer = world.consumer(hold=1)
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
    with world.consumer():
        wait_until(lambda: world.handled == [b"1", b"2"])
    assert (world.left(), world.left(world.stage.dead)) == (0, 0)


def test_no_queue(world: World) -> None:
    """A queue that is not there is pika's own error."""
    world.source = "missing"
    consumer = world.consumer()
    with pytest.raises(pika.exceptions.ChannelClosedByBroker):
        consumer.run()


def test_poison(world: World) -> None:
    """What pika cannot decode ends the connection, until the broker puts it away; nobody else is condemned."""
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
        with errors, world.consumer(prefetch=1) as consumer:
            wait_until(partial(lambda one: one.failed or world.handled, consumer))
        ends += 1
        assert ends < 40
    assert (ends > 1, world.handled) == (True, [b"1"])
    assert world.left(world.source + ".unparseable") == 1
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

    world.publish(b"ask", reply_to=mailbox, correlation_id="7")
    consumer = world.consumer(
        plain if kind == "plain" else asynchronous, replies=world.producer("")
    )
    consumer.run()
    method, properties, body = channel.basic_get(mailbox, auto_ack=True)
    message = leaf.from_native(method, properties, body, queue=mailbox)
    verifier = world.forge.verifier()
    verified = verifier.verify(
        message, verifier.open(message), world.forge.keys, world.forge.clock.now()
    )
    assert (verified.body, verified.properties["correlation-id"]) == (b"yes", "7")


def test_audit_queue(world: World) -> None:
    """An audit record on a queue is one that the broker has confirmed."""
    sink = leaf.AuditQueue(world.connect(), f"{world.stage.dead}.audit")
    sink.declare()
    world.forge_some(b"forged")
    with world.consumer(audit=sink):
        wait_until(lambda: len(world.stage.letters()) == 1)
    channel = world.connect().channel()
    _, _, body = channel.basic_get(sink.name, auto_ack=True)
    channel.queue_delete(sink.name)
    assert json.loads(body)["reason"] == "token_missing"


def own_loop(world: World, act: Callable[..., None], until: Callable[[], bool]) -> None:
    """Run a ``basic_consume`` loop until a condition holds."""
    connection = world.connect()
    channel = connection.channel()
    channel.basic_qos(prefetch_count=10)
    channel.basic_consume(world.source, act)
    deadline = time.monotonic() + 30
    while not until():
        assert time.monotonic() < deadline
        connection.process_data_events(0.1)
    connection.close()


def test_judged_in_a_loop_of_ones_own(world: World) -> None:
    """``judge`` in a callback accepts, and dead-letters a forgery and a replay, with its own acks."""
    letters, audit = (
        world.dead_letters(),
        leaf.AuditQueue(world.connect(), f"{world.stage.dead}.a"),
    )
    audit.declare()
    guard = world.guard(audit=audit)
    verdicts: list[Verdict] = []

    def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        judgement = leaf.judge(
            guard, channel, method, properties, body, queue=world.source
        )
        verdicts.append(judgement.verdict)
        if judgement.verdict is Verdict.ACCEPTED:
            world.handled.append(body)
            judgement.confirm()
        elif judgement.verdict is Verdict.REJECTED:
            judgement.dead_letter(letters)
        channel.basic_ack(method.delivery_tag)

    world.send(b"1")
    channel = world.connect().channel()
    method, properties, body = channel.basic_get(world.source)
    channel.basic_publish(world.exchange, "orders.created", body, properties)
    channel.basic_nack(method.delivery_tag)
    world.forge_some(b"forged")
    own_loop(world, on_message, lambda: len(verdicts) == 3)
    reasons = [
        letter.occurrences("mqauth-dead-reason")[0] for letter in world.stage.letters()
    ]
    assert (world.handled, sorted(map(str, reasons))) == (
        [b"1"],
        ["replayed", "token_missing"],
    )
    assert world.left() == 0
    assert world.left(audit.name) == 2
    channel.queue_delete(audit.name)


def test_judged_too_late(world: World) -> None:
    """A delivery whose channel ended meanwhile is not judged: it comes again."""

    def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        channel.connection._impl._transport._sock.shutdown(2)
        with pytest.raises((AMQPError, OSError)):
            channel.flow(True)
        with pytest.raises(StaleDelivery):
            leaf.judge(
                world.guard(), channel, method, properties, body, queue=world.source
            )
        world.handled.append(body)

    world.send(b"1")
    with pytest.raises((AMQPError, OSError, ValueError)):
        own_loop(world, on_message, lambda: False)
    assert world.handled == [b"1"]
    wait_until(lambda: world.left() == 1)
