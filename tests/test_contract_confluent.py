"""The delivery contract on a log broker in memory, with confluent-kafka's leaf on clients of our own making."""

from collections.abc import Iterator

import pytest

from tests.confluent_broker import AIOConfluentMemoryStage, ConfluentMemoryStage
from tests.kit.delivery_contract import LogDeliveryContract
from tests.kit.delivery_stage import LogStage


class TestConfluentInMemory(LogDeliveryContract):
    """Every promise."""

    @pytest.fixture
    def stage(self) -> Iterator[LogStage]:
        """Yield a fresh stage."""
        stage = ConfluentMemoryStage()
        yield stage
        stage.close()


class TestAIOConfluentInMemory(LogDeliveryContract):
    """The same in an event loop."""

    @pytest.fixture
    def stage(self) -> Iterator[LogStage]:
        """Yield a fresh stage."""
        stage = AIOConfluentMemoryStage()
        yield stage
        stage.close()
