"""What both Kafka brokers in memory share: records, settings, and the partitions that a consumer holds."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

PRODUCER = {
    "acks": "all", "enable_idempotence": False, "max_block_ms": 60_000, "batch_size": 262_144, "linger_ms": 0,
    "key_serializer": None, "value_serializer": None,
}  # fmt: skip
"""The settings of kafka-python's ``KafkaProducer`` that are looked at."""


@dataclass(slots=True, eq=False)
class Record:
    """What is read of a ``ConsumerRecord``."""

    topic: str
    partition: int
    offset: int
    value: Any
    key: Any
    headers: Any
    timestamp: int = 0
    timestamp_type: int = 0


class Partitions:
    """The calls of kafka-python's ``KafkaConsumer`` that need no broker.

    Args:
        topic: to which it is subscribed.
        session: seconds of silence after which the group puts it out.

    Attributes:
        held: the partitions that it believes to be its own.
    """

    def __init__(self, topic: str, session: float) -> None:
        self.config = {
            "enable_auto_commit": False, "key_deserializer": None, "value_deserializer": None,
            "group_id": "billing", "auto_offset_reset": "earliest", "session_timeout_ms": int(session * 1000),
            "max_poll_interval_ms": 60_000,
        }  # fmt: skip
        self._topic = topic
        self._subscription = SimpleNamespace(rebalance_listener=None)
        self._paused: set[Any] = set()
        self.held: set[Any] = set()

    def subscription(self) -> set[str]:
        """Return the topic."""
        return {self._topic}

    def assignment(self) -> set[Any]:
        """Return what is held."""
        return set(self.held)

    def paused(self) -> set[Any]:
        """Return what is paused."""
        return set(self._paused)

    def pause(self, *places: Any) -> None:
        """Fetch no more of these."""
        self._paused |= set(places)

    def resume(self, *places: Any) -> None:
        """Fetch of these again."""
        self._paused -= set(places)
