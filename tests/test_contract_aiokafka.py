"""The delivery contract on a log broker in memory, with aiokafka's leaf on clients of our own making."""

from collections.abc import Iterator

import pytest

from tests.aiokafka_broker import AiokafkaMemoryStage
from tests.kit.delivery_contract import LogDeliveryContract
from tests.kit.delivery_stage import LogStage


class TestAiokafkaInMemory(LogDeliveryContract):
    """Every promise."""

    @pytest.fixture
    def stage(self) -> Iterator[LogStage]:
        """Yield a fresh stage."""
        stage = AiokafkaMemoryStage()
        yield stage
        stage.close()
