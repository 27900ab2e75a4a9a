"""Scenes for scripts, on the brokers of the environment."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from integration.review.scene import Scene
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_rabbitmq import RabbitMQStage

T = TypeVar("T")
BROKERS: Final = {
    "rabbitmq": ("MQAUTH_RABBITMQ_URL", RabbitMQStage), "kafka": ("MQAUTH_KAFKA_URL", KafkaStage)
}  # fmt: skip


def staged(broker: str, part: Callable[[Scene], T]) -> T:
    """Play one part on a stage of its own, taken down afterwards, and return what it returned."""
    variable, kind = BROKERS[broker]
    url = os.environ[variable]
    stage = kind(url)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return part(Scene(stage, url, Path(folder)))
    finally:
        if isinstance(stage, KafkaStage):
            stage.admin.delete_topics([stage.dead + ".reviewed"], raise_errors=False)
        stage.close()
