"""The delivery contract on a log broker in memory, with each Kafka leaf on clients of our own making."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.aiokafka_broker import AiokafkaMemoryStage
from tests.confluent_broker import AIOConfluentMemoryStage, ConfluentMemoryStage
from tests.kit.delivery_contract import LogDeliveryContract
from tests.kit.delivery_stage import LogStage
from tests.log_broker import MemoryLogStage

STAGES = {
    "kafka-python": MemoryLogStage, "confluent": ConfluentMemoryStage,
    "confluent, event loop": AIOConfluentMemoryStage, "aiokafka": AiokafkaMemoryStage,
}  # fmt: skip


@pytest.mark.parametrize("make", STAGES.values(), ids=STAGES)
class TestLogInMemory(LogDeliveryContract):
    """Every promise, of each leaf."""

    @pytest.fixture
    def stage(self, make: Any) -> Iterator[LogStage]:
        """Yield a fresh stage."""
        stage = make()
        yield stage
        stage.close()
