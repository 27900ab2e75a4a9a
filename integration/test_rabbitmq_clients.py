"""What every client of RabbitMQ promises, on the real broker: it stops while the broker is silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from integration import scale
from integration.client_bench import BESIDE_GRACE, ClientBench
from integration.every_client import RABBITMQ, Consuming
from integration.services import RabbitMQ
from mqauth.brokers import pika
from mqauth.errors import RejectNow
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_pika import connect
from mqauth.wire.destination import parse

AWAY = 3.0
"""Seconds for which a queue is missing."""


@pytest.fixture
def bench(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[ClientBench]:
    """A fresh bench."""
    found = ClientBench(rabbitmq, tmp_path)
    with found.ending:
        yield found


@pytest.fixture(params=RABBITMQ.values(), ids=RABBITMQ)
def client(request: pytest.FixtureRequest) -> Consuming:
    """Each client."""
    return request.param  # type: ignore[no-any-return]


class TestSilentBroker:
    """A broker that is frozen answers nothing, and keeps its connections open."""

    def test_idle(self, client: Consuming, bench: ClientBench) -> None:
        """A consumer that waits for messages stops within seconds."""
        with client(bench.wiring(grace=0.5)) as running:
            assert bench.stopped_within(running) < 0.5 + BESIDE_GRACE

    @pytest.mark.parametrize("seconds", [1, 4], ids=["within its grace", "beyond it"])
    def test_a_handler_runs(self, client: Consuming, bench: ClientBench, seconds: int) -> None:
        """A handler has its grace; its message is settled or comes again, and no other one is lost."""
        begun = threading.Event()

        def handler(message: Any) -> None:
            begun.set()
            threading.Event().wait(seconds)
            bench.handled.append(message.body)

        bench.send(b"first")
        with client(bench.wiring(handler, grace=2)) as running:
            assert begun.wait(30)
            assert bench.stopped_within(running) < 2 + BESIDE_GRACE
        wait_until(lambda: bench.handled == [b"first"])
        bench.send(b"second")
        with client(bench.wiring()):
            wait_until(lambda: b"second" in bench.handled)

    def test_a_letter_has_no_confirm(self, client: Consuming, bench: ClientBench) -> None:
        """A dead letter without its confirm ends with the grace; its message is dead-lettered all the same.

        Where the broker wrote the first letter, too, there are two, with one `mqauth-dead-id`.
        """
        frozen = threading.Event()

        def handler(_message: Any) -> None:
            bench.broker.pause()
            frozen.set()
            raise RejectNow("no such article")

        bench.send(b"first")
        with client(bench.wiring(handler, grace=1)) as running:
            assert frozen.wait(30)
            assert bench.stopped_within(running) < 1 + BESIDE_GRACE

        def refuse(_message: Any) -> None:
            raise RejectNow("no such article")

        def ready(queue: str) -> int:
            with connect(bench.broker.url) as connection:
                return int(connection.channel().queue_declare(queue, passive=True).method.message_count)

        # FastStream goes on stopping when the broker does: then the confirm arrives, and nothing comes again.
        with client(bench.wiring(refuse)):
            wait_until(lambda: ready(bench.source) == 0 and ready(bench.stage.dead) > 0)
        letters = bench.stage.letters()
        assert len(letters) in (1, 2)
        assert len({letter.occurrences("mqauth-dead-id") for letter in letters}) == 1


@pytest.mark.slow
def test_a_queue_is_deleted_and_made_anew(client: Consuming, bench: ClientBench) -> None:
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
