"""The delivery contract on a log broker in memory, with Kafka's leaf on clients of our own making."""

from collections.abc import Iterator

import pytest

from tests.kit.delivery_contract import LogDeliveryContract
from tests.kit.delivery_stage import LogStage
from tests.log_broker import MemoryLogStage


class TestLogInMemory(LogDeliveryContract):
    """Every promise."""

    @pytest.fixture
    def stage(self) -> Iterator[LogStage]:
        """Yield a fresh stage."""
        stage = MemoryLogStage()
        yield stage
        stage.close()
