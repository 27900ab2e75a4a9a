"""The broker contract on a real Kafka."""

from collections.abc import Iterator

import pytest

from integration.services import Kafka
from mqauth.testing.contract import BatchContract, BrokerContract
from mqauth.testing.stage import Stage
from mqauth.testing.stage_kafka import KafkaStage
from tests.kit.delivery_contract import LogDeliveryContract
from tests.kit.delivery_stage import LogStage
from tests.kit.stage_kafka_log import KafkaLogStage


class TestKafka(BrokerContract):
    """Every promise, on topics of its own."""

    @pytest.fixture
    def stage(self, kafka: Kafka) -> Iterator[Stage]:
        """Yield a fresh stage."""
        stage = KafkaStage(kafka.url)
        yield stage
        stage.close()


class TestKafkaInBatches(BatchContract):
    """The same with batch tokens."""

    @pytest.fixture
    def stage(self, kafka: Kafka) -> Iterator[Stage]:
        """A fresh stage."""
        stage = KafkaStage(kafka.url)
        yield stage
        stage.close()


class TestKafkaDeliveries(LogDeliveryContract):
    """What becomes of deliveries, with several consumers of one group."""

    @pytest.fixture
    def stage(self, kafka: Kafka) -> Iterator[LogStage]:
        """Yield a fresh stage."""
        stage = KafkaLogStage(kafka.url)
        yield stage
        stage.close()
