"""The broker contract on a real Kafka, by aiokafka."""

from collections.abc import Iterator

import pytest

from integration.services import Kafka
from integration.stage_aiokafka import AiokafkaLogStage
from mqauth.testing.contract import BatchContract, BrokerContract
from mqauth.testing.stage import Stage
from mqauth.testing.stage_aiokafka import AiokafkaStage
from tests.kit.delivery_contract import LogDeliveryContract
from tests.kit.delivery_stage import LogStage


class TestAiokafka(BrokerContract):
    """Every promise, on topics of its own."""

    in_order = 300
    """Each message crosses to the event loop's thread and back."""

    @pytest.fixture
    def stage(self, kafka: Kafka) -> Iterator[Stage]:
        """Yield a fresh stage."""
        stage = AiokafkaStage(kafka.url)
        yield stage
        stage.close()


class TestAiokafkaInBatches(BatchContract):
    """The same with batch tokens."""

    @pytest.fixture
    def stage(self, kafka: Kafka) -> Iterator[Stage]:
        """Yield a fresh stage."""
        stage = AiokafkaStage(kafka.url)
        yield stage
        stage.close()


class TestAiokafkaDeliveries(LogDeliveryContract):
    """What becomes of deliveries, with several consumers of one group."""

    @pytest.fixture
    def stage(self, kafka: Kafka) -> Iterator[LogStage]:
        """Yield a fresh stage."""
        stage = AiokafkaLogStage(kafka.url)
        yield stage
        stage.close()
