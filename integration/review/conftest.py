"""A scene on each real broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from integration.services import Kafka, RabbitMQ

if TYPE_CHECKING:
    from integration.review.scene import Scene


@pytest.fixture(params=["rabbitmq", "kafka"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """A scene on each broker, its own queues and topics."""
    from integration.review.scene import Scene  # kafka-python warns when it is imported
    from mqauth.testing.stage_kafka import KafkaStage
    from mqauth.testing.stage_rabbitmq import RabbitMQStage

    broker: RabbitMQ | Kafka = request.getfixturevalue(request.param)
    stage = RabbitMQStage(broker.url) if isinstance(broker, RabbitMQ) else KafkaStage(broker.url)
    try:
        yield Scene(stage, broker.url, tmp_path)
    finally:
        if isinstance(stage, KafkaStage):
            stage.admin.delete_topics([stage.dead + ".reviewed"], raise_errors=False)
        stage.close()
