"""The broker contract on the memory broker, as RabbitMQ and as Kafka would name things."""

from collections.abc import Iterator

import pytest

from mqauth.testing.contract import BatchContract, BrokerContract
from mqauth.testing.stage import MemoryStage, Stage


@pytest.fixture(params=["kafka:orders", "rabbitmq:shop/orders.created"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Yield a fresh stage under a destination of each kind."""
    stage = MemoryStage(request.param)
    yield stage
    stage.close()


class TestMemory(BrokerContract):
    """The memory broker."""


class TestMemoryInBatches(BatchContract):
    """The memory broker, with batch tokens."""
