"""The delivery contract on a log broker in memory, with aiokafka's leaf on clients of our own making."""

from collections.abc import Iterator

import pytest

from mqauth.testing.delivery_contract import LogDeliveryContract
from mqauth.testing.delivery_stage import LogStage
from tests.aiokafka_broker import AiokafkaMemoryStage


class TestAiokafkaInMemory(LogDeliveryContract):
    """Every promise."""

    @pytest.fixture
    def stage(self) -> Iterator[LogStage]:
        """Yield a fresh stage."""
        stage = AiokafkaMemoryStage()
        yield stage
        stage.close()
