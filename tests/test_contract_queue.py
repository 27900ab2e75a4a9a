"""The delivery contract on a simulated RabbitMQ, in virtual time: the leaf, aio-pika and aiormq as they are."""

from collections.abc import Iterator

import pytest

from tests.kit.delivery_contract_queue import QueueDeliveryContract
from tests.kit.delivery_stage import QueueStage
from tests.simulation.contract_stage import simulated_stage


class TestQueueSimulated(QueueDeliveryContract):
    """Every promise."""

    @pytest.fixture
    def stage(self) -> Iterator[QueueStage]:
        """Yield a fresh stage."""
        with simulated_stage() as stage:
            yield stage


class TestQueueSimulatedWithSingleAcks(QueueDeliveryContract):
    """Every promise, where each message is acked by itself."""

    @pytest.fixture
    def stage(self) -> Iterator[QueueStage]:
        """Yield a fresh stage."""
        with simulated_stage(coalesce_acks=False) as stage:
            yield stage
