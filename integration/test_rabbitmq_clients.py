"""What every client of RabbitMQ promises, on the real broker: it stops while the broker is silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from integration import scale
from integration.every_client import RABBITMQ, Consuming, Wiring
from integration.services import RabbitMQ
from mqauth import MemoryReplayStore, Pipeline
from mqauth.audit.file import AuditFile
from mqauth.brokers import pika
from mqauth.errors import RejectNow
from mqauth.testing.forge import Forge
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_pika import connect
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from mqauth.wire.destination import parse
from mqauth.wire.message import Message

AWAY = 3.0
"""Seconds for which a queue is missing."""
BESIDE_GRACE = 5.0
"""Seconds that a stop may take beside its grace, whatever the broker does."""


class Bench:
    """A queue on the shared broker, its producer, and what a consumer is made of."""

    def __init__(self, broker: RabbitMQ, folder: Path) -> None:
        self.broker = broker
        self.ending = ExitStack()
        self.stage = RabbitMQStage(broker.url)
        self.ending.callback(self.stage.close)
        self.ending.callback(broker.start)
        self.forge = Forge(lifetime=600)
        self.audit = self.ending.enter_context(AuditFile(folder / "audit.jsonl", fsync=False))
        self.handled: list[bytes | None] = []

    def wiring(self, handler: Any = None, **settings: Any) -> Wiring:
        """Return the parts of a consumer."""
        guard = Pipeline(
            verifier=self.forge.verifier(), policy=self.forge.policy(self.stage.destination),
            replay=MemoryReplayStore(), audit=self.audit,
        )  # fmt: skip
        take = handler or (lambda message: self.handled.append(message.body))
        return Wiring(
            url=self.broker.url, source=self.stage.queue, dead=self.stage.dead, scope=self.stage.queue,
            guard=guard, handler=take, **settings,
        )  # fmt: skip

    def has_handled(self, number: int) -> bool:
        """Return whether so many messages were handled."""
        return len(self.handled) == number

    def send(self, body: bytes) -> None:
        """Publish a message of the honest producer."""
        self.stage.inject(self.forge.signer().sign(Message(destination=self.stage.destination, body=body)))


@pytest.fixture
def bench(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Bench]:
    """A fresh bench."""
    found = Bench(rabbitmq, tmp_path)
    with found.ending:
        yield found


@pytest.fixture(params=RABBITMQ.values(), ids=RABBITMQ)
def client(request: pytest.FixtureRequest) -> Consuming:
    """Each client."""
    return request.param  # type: ignore[no-any-return]


def stopped_within(bench: Bench, running: Any) -> float:
    """Freeze the broker, stop a consumer, and return the seconds that took; the broker goes on after it."""
    bench.broker.pause()
    began = time.monotonic()
    try:
        running.stop()
        return time.monotonic() - began
    finally:
        bench.broker.resume()


class TestSilentBroker:
    """A broker that is frozen answers nothing, and keeps its connections open."""

    def test_idle(self, client: Consuming, bench: Bench) -> None:
        """A consumer that waits for messages stops within seconds."""
        with client(bench.wiring(grace=0.5)) as running:
            assert stopped_within(bench, running) < 0.5 + BESIDE_GRACE

    @pytest.mark.parametrize("seconds", [1, 4], ids=["within its grace", "beyond it"])
    def test_a_handler_runs(self, client: Consuming, bench: Bench, seconds: int) -> None:
        """A handler has its grace; its message is settled or comes again, and no other one is lost."""
        begun = threading.Event()

        def handler(message: Any) -> None:
            begun.set()
            threading.Event().wait(seconds)
            bench.handled.append(message.body)

        bench.send(b"first")
        with client(bench.wiring(handler, grace=2)) as running:
            assert begun.wait(30)
            assert stopped_within(bench, running) < 2 + BESIDE_GRACE
        wait_until(lambda: bench.handled == [b"first"])
        bench.send(b"second")
        with client(bench.wiring()):
            wait_until(lambda: b"second" in bench.handled)

    def test_a_letter_has_no_confirm(self, client: Consuming, bench: Bench) -> None:
        """A dead letter without its confirm ends with the grace; its message comes again, and is dead-lettered."""
        frozen = threading.Event()

        def handler(_message: Any) -> None:
            bench.broker.pause()
            frozen.set()
            raise RejectNow("no such article")

        bench.send(b"first")
        with client(bench.wiring(handler, grace=1)) as running:
            assert frozen.wait(30)
            assert stopped_within(bench, running) < 1 + BESIDE_GRACE

        def refuse(_message: Any) -> None:
            raise RejectNow("no such article")

        with client(bench.wiring(refuse)):
            wait_until(lambda: len(bench.stage.letters()) == 1)


@pytest.mark.slow
def test_a_queue_is_deleted_and_made_anew(client: Consuming, bench: Bench) -> None:
    """A consumer goes on once its queue is back, each time; RabbitMQ 4.0 ends who consumes it again at once."""
    rounds = scale.nightly(20, otherwise=4)
    with client(bench.wiring()):
        for number in range(rounds):
            with connect(bench.broker.url) as connection:
                channel = connection.channel()
                channel.queue_delete(bench.stage.queue)
                time.sleep(AWAY)
                pika.declare_source(channel, bench.stage.queue)
                exchange, key = parse(bench.stage.destination)[1:]
                channel.queue_bind(bench.stage.queue, exchange, key)
            bench.send(b"order %d" % number)
            wait_until(partial(bench.has_handled, number + 1))
    assert bench.handled == [b"order %d" % number for number in range(rounds)]
