"""The broker contract on the memory broker, as RabbitMQ and as Kafka would name things."""

from collections.abc import Iterator

import pytest

from mqauth.testing.contract import BrokerContract
from mqauth.testing.stage import MemoryStage, Stage


class TestMemoryLikeKafka(BrokerContract):
    """The memory broker under a Kafka destination."""

    @pytest.fixture
    def stage(self) -> Iterator[Stage]:
        stage = MemoryStage("kafka:orders")
        yield stage
        stage.close()


class TestMemoryLikeRabbitMQ(BrokerContract):
    """The memory broker under a RabbitMQ destination."""

    @pytest.fixture
    def stage(self) -> Iterator[Stage]:
        stage = MemoryStage("rabbitmq:shop/orders.created")
        yield stage
        stage.close()
