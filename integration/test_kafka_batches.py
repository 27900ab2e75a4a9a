"""Kafka records sealed together, on a real broker: the contract a client of our own making keeps too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kafka as kafka_python
import pytest
from kafka import TopicPartition

from integration.kafka_batches import BatchContract, Seen
from integration.services import Kafka
from mqauth.testing.stage_kafka import KafkaStage

_PYTHON: Any = kafka_python


class RealWorld:
    """A topic of two partitions on the broker."""

    def __init__(self, stage: KafkaStage) -> None:
        self.stage = stage
        self.topic = stage.topic
        self._clients: list[Any] = []

    def client(self, **settings: Any) -> Any:
        """Return a new client."""
        self._clients.append(_PYTHON.KafkaProducer(bootstrap_servers=self.stage.servers, **settings))
        return self._clients[-1]

    def settle(self) -> None:
        """Nothing is to be done: the broker acknowledges by itself."""

    def log(self) -> list[Seen]:
        """Return what is committed."""
        reader = _PYTHON.KafkaConsumer(
            bootstrap_servers=self.stage.servers, auto_offset_reset="earliest", isolation_level="read_committed"
        )
        try:
            return [seen for place in (0, 1) for seen in _read(reader, TopicPartition(self.topic, place))]
        finally:
            reader.close()

    def close(self) -> None:
        """Close every client."""
        for client in self._clients:
            client.close()


def _read(reader: Any, place: Any) -> Iterator[Seen]:
    """Yield the committed records of a partition."""
    reader.assign([place])
    end = reader.end_offsets([place])[place]
    while reader.position(place) < end:
        for records in reader.poll(timeout_ms=100).values():
            for record in records:
                yield Seen(record.partition, record.offset, record.key, record.value, tuple(record.headers),
                           record.timestamp)  # fmt: skip


class TestContract(BatchContract):
    """kafka-python on Kafka."""

    @pytest.fixture
    def world(self, kafka: Kafka) -> Iterator[RealWorld]:
        """A topic of two partitions."""
        stage = KafkaStage(kafka.url, partitions=2)
        found = RealWorld(stage)
        yield found
        found.close()
        stage.close()
