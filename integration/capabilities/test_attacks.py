"""The attack suite against a consumer of every client, on a real RabbitMQ and a real Kafka."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from integration.every_client import CLIENTS, Running, Wiring
from integration.scale import is_nightly
from integration.task_parts import judge_of
from mqauth import AuditFile, MemoryReplayStore
from mqauth.testing.attacks import AttackSuite, ConsumerFactory, Probe
from mqauth.testing.batchforge import BatchForge
from mqauth.testing.forge import Forge
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_rabbitmq import RabbitMQStage

pytestmark = pytest.mark.slow


KINDS = [
    (False, Forge),
    (True, BatchForge),
    *([(False, BatchForge), (True, Forge)] if is_nightly() else []),
]
"""A cold consumer and single tokens, a warm one and batches; the other two pairs at night."""


@pytest.mark.parametrize("client", CLIENTS)
class TestEveryClient(AttackSuite):
    """A consumer with clients of its own."""

    @pytest.mark.parametrize(("warm", "form"), KINDS)
    def test_attacks(
        self, probe: Probe, make_consumer: ConsumerFactory, warm: bool
    ) -> None:
        """Every attack is rejected with its reason, honest messages between them are handled, and nothing else."""
        super().test_attacks(probe, make_consumer, warm)

    @pytest.fixture
    def target(self, client: str, request: pytest.FixtureRequest) -> Iterator[Any]:
        """Yield a queue, or a topic with two partitions."""
        broker = request.getfixturevalue(client.partition(" ")[0])
        on_rabbitmq = client.startswith("rabbitmq")
        stage = (
            RabbitMQStage(broker.url)
            if on_rabbitmq
            else KafkaStage(broker.url, partitions=2)
        )
        stage.url = broker.url  # type: ignore[union-attr]
        yield stage
        stage.close()

    @pytest.fixture
    def make_consumer(
        self, client: str, target: Any, tmp_path: Path
    ) -> Iterator[Callable[[Probe], AbstractContextManager[Running]]]:
        """Yield what connects and consumes; the replay store and the audit file outlive a consumer."""
        store = MemoryReplayStore()
        source = target.queue if client.startswith("rabbitmq") else target.topic

        def consuming(probe: Probe) -> AbstractContextManager[Running]:
            wiring = Wiring(
                url=target.url, source=source, dead=target.dead, scope=getattr(target, "group", source),
                guard=judge_of(probe, target, store, audit), handler=probe.handler,
            )  # fmt: skip
            return CLIENTS[client](wiring)

        with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
            yield consuming
