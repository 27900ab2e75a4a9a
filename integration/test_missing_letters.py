"""A dead-letter queue or topic that is missing: told at the start, and no verdict is hidden, on every client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.every_client import KAFKA, RABBITMQ, Consuming, Wiring
from integration.services import Kafka, RabbitMQ
from mqauth import MemoryReplayStore, Pipeline
from mqauth.audit.file import AuditFile
from mqauth.testing.forge import Forge
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from mqauth.wire.message import Message

CLIENTS = {f"rabbitmq {name}": each for name, each in RABBITMQ.items()} | {
    f"kafka {name}": each for name, each in KAFKA.items()
}


class Bench:
    """A stage on the shared broker of a client, and what its consumer is made of."""

    def __init__(self, stage: Any, url: str, folder: Path) -> None:
        self.stage = stage
        self.forge = Forge(lifetime=600)
        self.handled: list[bytes | None] = []
        self.audit = AuditFile(folder / "audit.jsonl", fsync=False)
        guard = Pipeline(
            verifier=self.forge.verifier(), policy=self.forge.policy(stage.destination),
            replay=MemoryReplayStore(), audit=self.audit,
        )  # fmt: skip
        source = getattr(stage, "topic", None) or stage.queue
        self.wiring = Wiring(
            url=url, source=source, dead=stage.dead, scope=getattr(stage, "group", source), guard=guard,
            handler=lambda message: self.handled.append(message.body),
        )  # fmt: skip

    def send(self) -> None:
        """Send a message of the honest producer, and wait until it is handled."""
        self.stage.inject(self.forge.signer().sign(Message(destination=self.stage.destination, body=b"order")))
        wait_until(lambda: self.handled == [b"order"])


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> Consuming:
    """Each client."""
    return CLIENTS[request.param]


@pytest.fixture
def bench(request: pytest.FixtureRequest, client: Consuming, tmp_path: Path) -> Iterator[Bench]:
    """A bench on the broker of the client."""
    kind = RabbitMQStage if client in RABBITMQ.values() else KafkaStage
    broker: RabbitMQ | Kafka = request.getfixturevalue("rabbitmq" if kind is RabbitMQStage else "kafka")
    stage = kind(broker.url)
    found = Bench(stage, broker.url, tmp_path)
    yield found
    found.audit.close()
    stage.close()


def told(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    """Return the lines of an event."""
    return [record.getMessage() for record in caplog.records if getattr(record, "event", "") == event]


def test_there(client: Consuming, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Of one that is there nothing is said."""
    with client(bench.wiring):
        bench.send()
    assert told(caplog, "consumer.sink_missing") == []


@pytest.mark.slow
def test_missing(client: Consuming, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The consumer warns and starts, honest messages are handled, and what waits is told with its verdict."""
    stage = bench.stage
    stage.remove_dead_letters()
    with client(bench.wiring) as running:
        bench.send()
        warned = f"{stage.dead} does not exist: until it does, what is rejected waits unsettled"
        assert told(caplog, "consumer.sink_missing") == [warned]
        stage.inject(Message(destination=stage.destination, body=b"forged"))
        wait_until(lambda: bool(told(caplog, "message.deferred")))
        verdict = f"({stage.dead}); its verdict is token_missing: no token header"
        assert "waits, dead_letter_unavailable: " in told(caplog, "message.deferred")[0]
        assert verdict in told(caplog, "message.deferred")[0]
        if running.health is not None:
            assert verdict in str(running.health().detail)
        stage.restore_dead_letters()
        wait_until(lambda: len(stage.letters()) == 1)
