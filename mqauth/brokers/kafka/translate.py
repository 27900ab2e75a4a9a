"""Records of kafka-python as ``Message``, the ids of their log, and a verdict for your own poll loop."""

from __future__ import annotations

import base64
from typing import Any
from uuid import UUID

from mqauth.brokers.judge import Judgement, judged
from mqauth.brokers.kafka.client import refuse_foreign
from mqauth.brokers.log.records import NO_LOG, Log, record_message
from mqauth.judging.pipeline import Pipeline
from mqauth.wire.message import HeaderValue, Message


def from_native(record: Any, *, scope: str, log: Log = NO_LOG) -> Message:
    """Return the message of a ``ConsumerRecord``; nothing that the record holds makes this raise.

    Args:
        record: as ``KafkaConsumer.poll`` returned it, without deserializers.
        scope: the consumer group.
        log: the ids of its cluster and topic (``Logs.of``).

    Raises:
        ConfigurationError: the record is aiokafka's or confluent-kafka's.
    """
    refuse_foreign(record)
    return record_message(record, scope, log)


def carries(_name: str, value: HeaderValue) -> bool:
    """Return whether kafka-python can send a header again: it delivers ``None`` but refuses to send it."""
    return isinstance(value, bytes)


class Logs:
    """Returns the ids of cluster and topic, from a client's metadata.

    A topic's name is not enough where there are two clusters, or where a topic was deleted and made anew. Both ids
    come with every metadata response (the topic's from Kafka 2.8 on, KIP-516), so that asking costs no request.

    Args:
        client: a ``KafkaConsumer``.
    """

    def __init__(self, client: Any) -> None:
        self._metadata: Any = getattr(client, "_cluster", None)
        self._known: dict[str, Log] = {}

    def of(self, topic: str) -> Log:
        """Return the ids of a topic; never asks the broker, and never raises."""
        # An id that was known once is kept until the metadata name another one. A topic that is being deleted, or
        # may not be seen for a moment, comes without its id; the records at hand must not change their place.
        before = self._known.get(topic, NO_LOG)
        found = Log(self._cluster() or before.cluster, self._topic_id(topic) or before.topic_id)
        if found != before:
            self._known[topic] = found
        return found

    def _cluster(self) -> str | None:
        found = getattr(self._metadata, "cluster_id", None)
        return found if isinstance(found, str) and found else None

    def _topic_id(self, topic: str) -> str | None:
        """Return the id of a topic in Kafka's own spelling: base64url without padding, 22 characters."""
        ask = getattr(self._metadata, "topic_id", None)
        found = None if ask is None else ask(topic)
        if not isinstance(found, UUID) or not found.int:
            return None
        return base64.urlsafe_b64encode(found.bytes).rstrip(b"=").decode("ascii")


def judge(guard: Pipeline, record: Any, *, scope: str, log: Log = NO_LOG) -> Judgement:
    """Judge one ``ConsumerRecord``, and claim it in the replay store where it is accepted.

    Args:
        guard: the pipeline.
        record: as ``KafkaConsumer.poll`` returned it, without deserializers.
        scope: the consumer group.
        log: the ids of cluster and topic, ``Logs(client).of(record.topic)``. Without them the replay store cannot
            tell two clusters, or a topic from one that was deleted and made anew, apart.

    Raises:
        ConfigurationError: a plug-in is asynchronous, or the record is aiokafka's or confluent-kafka's.
    """
    return judged(guard, from_native(record, scope=scope, log=log))
