"""The delivery contract on a simulated Kafka, in virtual time, with each Kafka leaf as it is."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit.delivery_contract import LogDeliveryContract
from tests.simulation.kafka_leaves import LEAVES
from tests.simulation.kafka_stage import simulated_log


@pytest.mark.parametrize("client", LEAVES)
class TestLogSimulated(LogDeliveryContract):
    """Every promise, of each leaf."""

    @pytest.fixture
    def stage(self, client: str) -> Iterator[Any]:
        """Yield a fresh stage."""
        with simulated_log(client) as stage:
            yield stage
