"""``judge`` in one's own ``basic_consume`` loop, on a real RabbitMQ."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pika.exceptions import AMQPError

from integration.pika_world import World
from integration.services import RabbitMQ
from mqauth import Verdict
from mqauth.brokers import pika as leaf
from mqauth.errors import StaleDelivery
from mqauth.testing.stage_kafka import wait_until
from mqauth.wire.message import Message


@pytest.fixture
def world(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[World]:
    """A fresh world."""
    world = World(rabbitmq.url, tmp_path)
    yield world
    world.close()


def own_loop(world: World, act: Callable[..., None], until: Callable[[], bool]) -> None:
    """Run a ``basic_consume`` loop until a condition holds."""
    connection = world.connect()
    channel = connection.channel()
    channel.basic_qos(prefetch_count=10)
    channel.basic_consume(world.stage.queue, act)
    deadline = time.monotonic() + 30
    while not until():
        assert time.monotonic() < deadline
        connection.process_data_events(0.1)
    connection.close()


def test_judged_in_a_loop_of_ones_own(world: World) -> None:
    """``judge`` in a callback accepts, and dead-letters a forgery and a replay, with its own acks."""
    guard, letters, audit = (
        world.guard(),
        world.letters(),
        leaf.AuditQueue(world.connect(), f"{world.stage.dead}.a"),
    )
    audit.declare()
    guard = world.guard(audit)
    verdicts: list[Verdict] = []

    def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        judgement = leaf.judge(guard, channel, method, properties, body, queue=world.stage.queue)
        verdicts.append(judgement.verdict)
        if judgement.verdict is Verdict.ACCEPTED:
            world.handled.append(body)
            judgement.confirm()
        elif judgement.verdict is Verdict.REJECTED:
            judgement.dead_letter(letters)
        channel.basic_ack(method.delivery_tag)

    world.send(b"1")
    channel = world.connect().channel()
    method, properties, body = channel.basic_get(world.stage.queue)
    channel.basic_publish(world.exchange, "orders.created", body, properties)
    channel.basic_nack(method.delivery_tag)
    world.stage.inject(Message(destination=world.stage.destination, body=b"forged"))
    own_loop(world, on_message, lambda: len(verdicts) == 3)
    reasons = [letter.occurrences("mqauth-dead-reason")[0] for letter in world.stage.letters()]
    assert (world.handled, sorted(map(str, reasons))) == ([b"1"], ["replayed", "token_missing"])
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
            leaf.judge(world.guard(), channel, method, properties, body, queue=world.stage.queue)
        world.handled.append(body)

    world.send(b"1")
    with pytest.raises((AMQPError, OSError, ValueError)):
        own_loop(world, on_message, lambda: False)
    assert world.handled == [b"1"]
    wait_until(lambda: world.left() == 1)
