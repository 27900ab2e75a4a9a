"""The broker contract on a real Kafka, by confluent-kafka."""

from collections.abc import Iterator

import pytest

from integration.services import Kafka
from integration.stage_confluent import ConfluentLogStage
from mqauth.testing.contract import BatchContract, BrokerContract
from mqauth.testing.stage import Stage
from mqauth.testing.stage_confluent import ConfluentStage
from tests.kit.delivery_contract import LogDeliveryContract
from tests.kit.delivery_stage import LogStage


class TestConfluent(BrokerContract):
    """Every promise, on topics of its own."""

    @pytest.fixture
    def stage(self, kafka: Kafka) -> Iterator[Stage]:
        """Yield a fresh stage."""
        stage = ConfluentStage(kafka.url)
        yield stage
        stage.close()


class TestConfluentInBatches(BatchContract):
    """The same with batch tokens."""

    @pytest.fixture
    def stage(self, kafka: Kafka) -> Iterator[Stage]:
        """Yield a fresh stage."""
        stage = ConfluentStage(kafka.url)
        yield stage
        stage.close()


class TestConfluentDeliveries(LogDeliveryContract):
    """What becomes of deliveries, with several consumers of one group."""

    @pytest.fixture(params=["range", "cooperative-sticky"])
    def stage(self, kafka: Kafka, request: pytest.FixtureRequest) -> Iterator[LogStage]:
        """Yield a fresh stage."""
        stage = ConfluentLogStage(kafka.url, partition_assignment_strategy=request.param)
        yield stage
        stage.close()
