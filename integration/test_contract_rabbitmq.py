"""The broker contract on a real RabbitMQ."""

from collections.abc import Iterator

import pytest

from integration.services import RabbitMQ
from mqauth.testing.contract import BatchContract, BrokerContract
from mqauth.testing.stage import Stage
from mqauth.testing.stage_rabbitmq import RabbitMQStage


class TestRabbitMQ(BrokerContract):
    """What every broker wrapper must do, done by ours for RabbitMQ."""

    @pytest.fixture
    def stage(self, rabbitmq: RabbitMQ) -> Iterator[Stage]:
        """A fresh stage."""
        stage = RabbitMQStage(rabbitmq.url)
        yield stage
        stage.close()


class TestRabbitMQInBatches(BatchContract):
    """The same with batch tokens."""

    @pytest.fixture
    def stage(self, rabbitmq: RabbitMQ) -> Iterator[Stage]:
        """A fresh stage."""
        stage = RabbitMQStage(rabbitmq.url)
        yield stage
        stage.close()
