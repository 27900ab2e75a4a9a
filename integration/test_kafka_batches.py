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
        """Return what is committed, once the broker has ended every transaction.

        It answers a commit before it writes the markers, and until then a reader of what is committed takes the
        transaction's begin for the end. So a reader of everything asks where the end is.
        """
        places = [TopicPartition(self.topic, partition) for partition in (0, 1)]
        asking = _PYTHON.KafkaConsumer(bootstrap_servers=self.stage.servers)
        reader = _PYTHON.KafkaConsumer(
            bootstrap_servers=self.stage.servers, auto_offset_reset="earliest", isolation_level="read_committed"
        )
        try:
            ends = asking.end_offsets(places)
            return [seen for place in places for seen in _read(reader, place, ends[place])]
        finally:
            asking.close()
            reader.close()

    def close(self) -> None:
        """Close every client."""
        for client in self._clients:
            client.close()


def _read(reader: Any, place: Any, end: int) -> Iterator[Seen]:
    """Yield the committed records of a partition before an offset."""
    reader.assign([place])
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
