"""A commit of confluent-kafka that never returns: it is told, ends the consumer, and holds no stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from mqauth import MemoryReplayStore, Pipeline
from mqauth.brokers import confluent
from mqauth.brokers.event_loop import on_thread
from mqauth.brokers.log import consumer as log_consumer
from mqauth.brokers.log import event_loop as log_event_loop
from mqauth.brokers.log.poller import UNANSWERED
from mqauth.brokers.log.records import CommitUnansweredError
from mqauth.delivery.health import UNCOMMITTED
from mqauth.errors import Cause
from mqauth.testing import FakeClock, Forge
from mqauth.testing.loop_thread import ThreadedConsumer
from mqauth.testing.stage import wait_until
from mqauth.wire.message import Message
from tests.confluent_broker import SETTINGS, FakeAIOConsumer, FakeConsumer, FakeProducer
from tests.log_broker import Broker
from tests.log_leaves import Sink


@dataclass
class Bench:
    """A consumer whose client does not return from a commit."""

    kind: str
    clock: FakeClock = field(default_factory=FakeClock)
    broker: Broker = field(default_factory=Broker)
    handled: list[bytes | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        forge = Forge(self.clock)
        self.client = FakeConsumer(self.broker)
        self.broker.append(forge.signer().sign(Message(destination="kafka:orders", body=b"order", key=b"k")))
        guard = Pipeline(
            verifier=forge.verifier(), policy=forge.policy("kafka:orders"), replay=MemoryReplayStore(),
            audit=Sink(), clock=self.clock,
        )  # fmt: skip
        settings: dict[str, Any] = {
            "config": SETTINGS, "topics": ["orders"], "grace": 0,
            "dead_letters": confluent.DeadLetters(FakeProducer(self.broker), "orders.dead", config={}),
        }  # fmt: skip

        def aio() -> confluent.AIOConsumer:
            return confluent.AIOConsumer(FakeAIOConsumer(self.client), guard, on_thread(self.handle), **settings)

        if self.kind == "aio":
            self.consumer: Any = ThreadedConsumer(aio)
        else:
            workers = 0 if self.kind == "no workers" else 1
            self.consumer = confluent.Consumer(self.client, guard, self.handle, **settings, workers=workers)

    def handle(self, message: Any) -> None:
        """Handle the message; the commit after it does not return."""
        self.handled.append(message.body)
        self.client.asked.clear()
        self.client.answers.clear()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds."""
        wait_until(condition)


@pytest.fixture(params=["threads", "no workers", "aio"])
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A consumer of each kind that was asked to commit, and waits for its client."""
    monkeypatch.setattr(log_consumer, "LEAVE", 0.05)
    monkeypatch.setattr(log_event_loop, "LEAVE", 0.05)
    monkeypatch.setattr(log_event_loop, "LOOK", 0.01)
    found = Bench(request.param)
    found.consumer.__enter__()
    found.until(lambda: bool(found.handled) and found.client.asked.is_set())
    yield found
    found.client.answers.set()


def test_it_is_told(bench: Bench) -> None:
    """After ten seconds ``health()`` has the cause; the consumer stops although the call never returns."""
    assert bench.consumer.health().cause is None
    bench.clock.advance(UNCOMMITTED)
    health = bench.consumer.health()
    assert (health.cause, health.state) == (Cause.BROKER_UNAVAILABLE, "degraded")
    bench.consumer.__exit__(None, None, None)
    assert not bench.client.answers.is_set()


def test_it_ends_the_consumer(bench: Bench) -> None:
    """After ninety seconds the consumer ends with an error that says what to do."""
    bench.clock.advance(UNANSWERED + 1)
    bench.until(lambda: bool(bench.consumer.failed))
    with pytest.raises(CommitUnansweredError, match="start the process again"):
        bench.consumer.__exit__(None, None, None)


def test_it_runs_once_its_block_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """``health`` says that a consumer on threads runs once its block has begun, although its thread has not."""
    begun = threading.Event()
    consumer = Bench("threads").consumer
    monkeypatch.setattr(consumer, "run", begun.wait)
    with consumer:
        health = consumer.health()
        begun.set()
    assert health.running
