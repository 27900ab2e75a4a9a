"""Audit records on a Kafka topic, sent by a producer of their own; durable once the broker has acked them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from kafka.errors import KafkaError

from mqauth import strictjson
from mqauth.audit import AuditRecord
from mqauth.brokers.kafka_producer import producer_settings
from mqauth.errors import Cause, ConfigurationError, Unavailable

if TYPE_CHECKING:
    from kafka import KafkaProducer

MAX_BLOCK: Final = 5.0
MAX_UNKNOWN: Final = 1000
_ALL: Final = (-1, "all")


class AuditTopic:
    """An audit sink that sends each record as JSON, keyed by instance, and waits for the broker's confirm.

    Records stand there without ``prev`` and ``hash``: the chain is the file's. Those of one instance lie on one
    partition, in order. A topic with ``cleanup.policy=compact`` would lose all but the last of them.

    Args:
        client: a ``KafkaProducer(acks="all", enable_idempotence=False, allow_auto_create_topics=False)``; an
            idempotent one is poisoned for good by one refusal. Its ``max_block_ms`` is lowered to 5 s at most.
            The dead letters' client may serve.
        topic: the audit topic.
        timeout: seconds to wait for the confirm.

    Raises:
        ConfigurationError: the client is set up otherwise, or a setting is wrong.
    """

    def __init__(self, client: KafkaProducer, topic: str, *, timeout: float = 30) -> None:
        self.client: Any = client
        config = producer_settings(client)
        if config["enable_idempotence"] or config["acks"] not in _ALL:
            raise ConfigurationError(
                'an audit topic needs a KafkaProducer with acks="all", enable_idempotence=False'
            )
        if timeout <= 0 or not topic:
            raise ConfigurationError("topic is set, timeout above 0")
        config["max_block_ms"] = min(config["max_block_ms"], int(min(timeout, MAX_BLOCK) * 1000))
        self.name = topic
        self._timeout = timeout
        self._unknown: dict[str, Any] = {}
        self._lock = threading.Lock()

    def write(self, record: AuditRecord, /) -> None:
        """Send one record and return once the broker has confirmed it.

        One whose outcome is still open is waited for again instead of sent twice: the client keeps trying.

        Raises:
            Unavailable: ``audit_unavailable``: refused, timed out or not reachable.
        """
        try:
            future = self._open(record.id) or self.client.send(
                self.name, value=strictjson.dumps(record.as_dict()), key=record.instance.encode("utf-8", "replace")
            )
            self._await(future, record.id)
        except (KafkaError, ValueError, TypeError, OSError) as error:
            raise Unavailable(Cause.AUDIT_UNAVAILABLE, type(error).__name__) from error

    def _open(self, record: str) -> Any:
        """Return the future of a record whose outcome is open, ``None`` where there is none."""
        with self._lock:
            return self._unknown.pop(record, None)

    def _await(self, future: Any, record: str) -> None:
        """Wait for the broker's confirm, and remember a record of which it has not come."""
        try:
            future.get(timeout=self._timeout)
        finally:
            if not future.is_done:
                with self._lock:
                    while len(self._unknown) >= MAX_UNKNOWN:
                        self._unknown.pop(next(iter(self._unknown)), None)
                    self._unknown[record] = future
