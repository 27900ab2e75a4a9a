"""Records of aiokafka as ``Message``, the ids of their log, and a verdict for your own loop."""

from __future__ import annotations

from typing import Any

import aiokafka

from mqauth.brokers.aiokafka.client import cluster_of
from mqauth.brokers.judge import AsyncJudgement, ajudged
from mqauth.brokers.log.records import NO_LOG, Log, record_message
from mqauth.errors import ConfigurationError
from mqauth.judging.pipeline import Pipeline
from mqauth.wire.message import HeaderValue, Message


def from_native(record: Any, *, scope: str, log: Log = NO_LOG) -> Message:
    """Return the message of an ``aiokafka.ConsumerRecord``; nothing that the record holds makes this raise.

    Args:
        record: as ``AIOKafkaConsumer.getmany`` or ``getone`` returned it, without deserializers.
        scope: the consumer group.
        log: the id of its cluster (``Logs.of``).

    Raises:
        ConfigurationError: the record is of another client.
    """
    if not isinstance(record, aiokafka.ConsumerRecord):
        found = f"{type(record).__module__}.{type(record).__name__}"
        raise ConfigurationError(f"an aiokafka.ConsumerRecord is needed, not {found}")
    return record_message(record, scope, log)


def carries(_name: str, value: HeaderValue) -> bool:
    """Return whether aiokafka can send a header again unchanged."""
    return isinstance(value, bytes)


class Logs:
    """Returns the id of a client's cluster, for which the broker is asked once.

    aiokafka does not tell the id of a topic (KIP-516), so a topic that was deleted and made anew is taken for the
    same one.

    Args:
        client: a started ``AIOKafkaConsumer``.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self.known: Log | None = None
        """What was answered."""

    async def of(self, _topic: str = "") -> Log:
        """Return the ids of a topic: the cluster's alone.

        Raises:
            aiokafka.errors.KafkaError: the broker has not told its cluster's id yet.
        """
        if self.known is None:
            self.known = Log(await cluster_of(self._client))
        return self.known


async def judge(guard: Pipeline, record: Any, *, scope: str, log: Log = NO_LOG) -> AsyncJudgement:
    """Judge one ``aiokafka.ConsumerRecord``; an accepted one is claimed.

    Args:
        guard: the pipeline.
        record: as ``AIOKafkaConsumer.getmany`` or ``getone`` returned it, without deserializers.
        scope: the consumer group.
        log: the id of its cluster, ``await Logs(client).of(record.topic)``. Without it two clusters behind one
            replay store are one place.

    Raises:
        ConfigurationError: the record is of another client.
    """
    return await ajudged(guard, from_native(record, scope=scope, log=log))
