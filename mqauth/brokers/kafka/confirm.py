"""Records of which the broker's confirm is waited for: dead letters, audit records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mqauth.brokers.kafka.client import producer_settings
from mqauth.brokers.letters import Unknown
from mqauth.errors import ConfigurationError

if TYPE_CHECKING:
    from kafka import KafkaProducer

MAX_BLOCK: Final = 5.0
"""Seconds one record may wait for its topic's metadata: longer, and a missing topic would hold up the others."""
_ALL: Final = (-1, "all")


class Confirmed:
    """Sends records to one topic and waits for the broker's confirm; several threads may do so at once.

    Args:
        client: a ``KafkaProducer(acks="all", enable_idempotence=False)``: an idempotent one is poisoned for good
            by one refusal. Its ``max_block_ms`` is lowered to 5 s at most.
        topic: the topic.
        timeout: seconds to wait for a confirm.

    Raises:
        ConfigurationError: the client is set up otherwise, or a setting is wrong.
    """

    def __init__(self, client: KafkaProducer, topic: str, timeout: float) -> None:
        config = producer_settings(client)
        if config["enable_idempotence"] or config["acks"] not in _ALL:
            raise ConfigurationError(
                'confirms need a KafkaProducer of their own with acks="all" and enable_idempotence=False'
            )
        if timeout <= 0 or not topic:
            raise ConfigurationError("topic is set, timeout above 0 seconds")
        config["max_block_ms"] = min(config["max_block_ms"], int(min(timeout, MAX_BLOCK) * 1000))
        self._client: Any = client
        self._topic = topic
        self._timeout = timeout
        self._unknown = Unknown()

    def send(self, name: str, **record: Any) -> None:
        """Send a record, and return once the broker has confirmed it.

        One whose outcome is still open is waited for again instead of sent twice: the client keeps trying.

        Args:
            name: the record's id.
            record: what the client's ``send`` takes.

        Raises:
            Exception: the client's own; without a confirm a record does not exist.
        """
        future = self._unknown.take(name) or self._client.send(self._topic, **record)
        try:
            future.get(timeout=self._timeout)
        finally:
            if not future.is_done:
                self._unknown.keep(name, future)
