"""The delivery contract on a simulated RabbitMQ, in virtual time: the leaf, aio-pika and aiormq as they are."""

from collections.abc import Iterator

import pytest

from tests.kit.delivery_contract_queue import QueueDeliveryContract
from tests.kit.delivery_stage import QueueStage
from tests.simulation.contract_stage import simulated_stage


@pytest.mark.parametrize("coalesce_acks", [True, False], ids=["coalesced acks", "single acks"])
class TestQueueSimulated(QueueDeliveryContract):
    """Every promise, also where each message is acked by itself."""

    @pytest.fixture
    def stage(self, coalesce_acks: bool) -> Iterator[QueueStage]:
        """Yield a fresh stage."""
        with simulated_stage(coalesce_acks=coalesce_acks) as stage:
            yield stage
