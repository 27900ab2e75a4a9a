"""A consumer with a hole does not start, whatever its client: it takes no message from a real broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.services import Kafka, RabbitMQ
from mqauth import AuditFile, ConfigurationError, MemoryReplayStore, Pipeline
from mqauth.judging.judge import Judge
from mqauth.testing import Forge, Stage
from mqauth.testing.stage_aiokafka import AiokafkaStage
from mqauth.testing.stage_confluent import AIOConfluentStage, ConfluentStage
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_pika import PikaStage
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from mqauth.testing.token_attacks import honest_message

STAGES: dict[str, type[Any]] = {
    "rabbitmq": RabbitMQStage, "pika": PikaStage, "kafka": KafkaStage, "confluent": ConfluentStage,
    "confluent_aio": AIOConfluentStage, "aiokafka": AiokafkaStage,
}  # fmt: skip


@pytest.fixture(params=STAGES)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Yield a fresh stage of each client."""
    service: RabbitMQ | Kafka = request.getfixturevalue(
        "rabbitmq" if request.param in ("rabbitmq", "pika") else "kafka"
    )
    stage = STAGES[request.param](service.url)
    yield stage
    stage.close()


def guard_of(stage: Stage, audit: AuditFile) -> Pipeline:
    """Return a pipeline for a stage."""
    forge = Forge(lifetime=600)
    return Pipeline(
        verifier=forge.verifier(), policy=forge.policy(stage.destination), replay=MemoryReplayStore(), audit=audit
    )


def test_a_consumer_with_a_hole_does_not_start(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names what would be let in; the handler is not called, nothing is recorded or dead-lettered."""
    called: list[Any] = []
    stage.inject(honest_message(stage.destination))
    with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
        guard = guard_of(stage, audit)
        monkeypatch.setattr(Judge, "prepare", lambda *_: None)
        with pytest.raises(ConfigurationError, match="self-test: the consumer would let in"):
            stage.consume(guard, called.append, until=lambda: False)
        monkeypatch.undo()
        # the message is still there for a consumer without the hole
        stage.consume(guard, called.append, until=lambda: bool(stage.letters()))
    assert called == []
    assert len(stage.letters()) == 1
