"""The broker contract on a real Kafka."""

from integration.client_bench import stage_on
from mqauth.testing.contract import BatchContract, BrokerContract
from mqauth.testing.stage_kafka import KafkaStage
from tests.kit.delivery_contract import LogDeliveryContract
from tests.kit.stage_kafka_log import KafkaLogStage


class TestKafka(BrokerContract):
    """Every promise, on topics of its own."""

    stage = stage_on("kafka", KafkaStage)


class TestKafkaInBatches(BatchContract):
    """The same with batch tokens."""

    stage = stage_on("kafka", KafkaStage)


class TestKafkaDeliveries(LogDeliveryContract):
    """What becomes of deliveries, with several consumers of one group."""

    stage = stage_on("kafka", KafkaLogStage)
