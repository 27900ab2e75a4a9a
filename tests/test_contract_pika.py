"""The delivery contract for queues on pika's own classes, and the simulated RabbitMQ behind a real socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.stage_pika import PikaQueueStage
from mqauth.testing.delivery_contract_queue import QueueDeliveryContract, QueuePlay
from mqauth.testing.delivery_stage import QueueStage
from tests.pika_broker import PikaBroker


@pytest.fixture(scope="module")
def broker() -> Iterator[PikaBroker]:
    """A broker for all tests; none of them makes it see a fault of protocol."""
    broker = PikaBroker()
    yield broker
    assert broker.close() == []


class TestPikaDeliveries(QueueDeliveryContract):
    """What becomes of deliveries, with several consumers of one queue."""

    @pytest.fixture
    def stage(self, broker: PikaBroker) -> Iterator[QueueStage]:
        """Yield a fresh stage."""
        stage = PikaQueueStage(broker.url)
        yield stage
        stage.close()

    @pytest.mark.slow
    def test_consumes_again_when_its_queue_is_back_after_a_minute(self, play: QueuePlay) -> None:
        """A queue that was away for a minute is consumed again."""
        super().test_consumes_again_when_its_queue_is_back_after_a_minute(play)
