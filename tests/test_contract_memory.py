"""The broker contract on the memory broker, as RabbitMQ and as Kafka would name things."""

from collections.abc import Iterator

import pytest

from mqauth.testing.contract import BatchContract, BrokerContract
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


class TestMemoryInBatchesLikeKafka(BatchContract):
    """The memory broker under a Kafka destination, with batch tokens."""

    @pytest.fixture
    def stage(self) -> Iterator[Stage]:
        stage = MemoryStage("kafka:orders")
        yield stage
        stage.close()


class TestMemoryInBatchesLikeRabbitMQ(BatchContract):
    """The memory broker under a RabbitMQ destination, with batch tokens."""

    @pytest.fixture
    def stage(self) -> Iterator[Stage]:
        stage = MemoryStage("rabbitmq:shop/orders.created")
        yield stage
        stage.close()
