"""The broker contract on a real RabbitMQ."""

import pytest

from integration.client_bench import stage_on
from integration.scale import nightly
from mqauth.testing.contract import BatchContract, BrokerContract
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from tests.kit.delivery_contract_queue import QueueDeliveryContract, QueuePlay
from tests.kit.stage_rabbitmq_queue import RabbitMQQueueStage


class TestRabbitMQ(BrokerContract):
    """What every broker wrapper must do, done by ours for RabbitMQ."""

    stage = stage_on("rabbitmq", RabbitMQStage)


class TestRabbitMQInBatches(BatchContract):
    """The same with batch tokens."""

    stage = stage_on("rabbitmq", RabbitMQStage)


class RealQueueDeliveries(QueueDeliveryContract):
    """What becomes of deliveries; what takes long is not for a quick look."""

    @pytest.mark.slow
    def test_consumes_again_when_its_queue_is_back(self, play: QueuePlay) -> None:
        """A queue that was away for some seconds is consumed again."""
        super().test_consumes_again_when_its_queue_is_back(play)

    @pytest.mark.slow
    def test_consumes_again_when_its_queue_is_back_after_a_minute(
        self, play: QueuePlay
    ) -> None:
        """A queue is consumed again that was away until its consumer waits for the longest time between two looks.

        At night it is away for a minute.
        """
        self._again(play, lambda _: self._away(play, nightly(60, otherwise=12)), times=1)


class TestRabbitMQDeliveries(RealQueueDeliveries):
    """What becomes of deliveries, with several consumers of one queue."""

    stage = stage_on("rabbitmq", RabbitMQQueueStage)
