"""The calls for FastStream's ``KafkaBroker``, on aiokafka: its records, and what it publishes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from functools import partial
from typing import Any, Final

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import ConsumerStoppedError, KafkaError, KafkaTimeoutError
from faststream.kafka.publisher.usecase import BatchPublisher
from faststream.kafka.subscriber.usecase import DefaultSubscriber

from mqauth.brokers.aiokafka import client as aiokafka_client
from mqauth.brokers.aiokafka.consumer import Offsets
from mqauth.brokers.log.records import record_message
from mqauth.delivery.start import Committed
from mqauth.errors import Unavailable
from mqauth.integrations.faststream_log import (
    LogProcessor,
    Place,
    Records,
    check,
    only_signed,
    prove,
    seal,
    sought,
)
from mqauth.wire.message import Message

__all__ = [
    "BATCHES",
    "check",
    "is_out_of_reach",
    "only_signed",
    "processor",
    "prove",
    "seal",
]
BATCHES: Final = (BatchPublisher,)
"""Kinds of publishers that send batches."""


class AioKafkaRecords(Records):
    """The calls for the records of one subscriber."""

    lost = (KafkaError, ConsumerStoppedError, TimeoutError)

    def place(self, native: ConsumerRecord[Any, Any], /) -> Place:
        """Return where a record is."""
        return Place(native.topic, native.partition, native.offset)

    def partition(self, native: ConsumerRecord[Any, Any], /) -> TopicPartition:
        """Return the partition of a record."""
        return TopicPartition(native.topic, native.partition)

    def record(self, native: ConsumerRecord[Any, Any], /) -> Message:
        """Return a record as a message; never raises."""
        return record_message(native, self.queue)

    @property
    def held(self) -> Set[Any]:
        """What is assigned to the client."""
        consumer = self._subscriber.consumer
        return frozenset() if consumer is None else consumer.assignment()

    @property
    def generation(self) -> object:
        """What changes with each rebalance."""
        consumer = self._subscriber.consumer
        return None if consumer is None else aiokafka_client.generation_of(consumer)

    async def look(self) -> None:
        """Do nothing: the client can be asked at any time."""

    def offsets(self) -> SubscriberOffsets:
        """Return the calls that say and move where the group stands."""
        return SubscriberOffsets(self._subscriber.consumer, self.queue)

    async def left_out(self, place: Any, expected: int, offset: int | None) -> int | None:
        """Return the first offset that is left, where the client has left ``expected`` out."""
        offsets = self.offsets()
        if offset is None and offsets.position(place) in (None, expected):
            return None
        first = (await offsets.bounds([place], False))[place]
        if offset is not None and offset < expected:
            return (
                first if (await offsets.bounds([place], True))[place] < expected else None
            )
        return first if first > expected else None

    async def seek(self, place: Any, offset: int) -> bool:
        """Have a partition read from an offset next."""
        return await sought(
            partial(self._subscriber.consumer.seek, place, offset), self.lost
        )


class SubscriberOffsets(Offsets):
    """The calls of a subscriber's client that say and move where its group stands.

    Args:
        client: aiokafka's.
        group: the consumer group.
    """

    def __init__(self, client: Any, group: str) -> None:
        self._client = client
        self._generation = aiokafka_client.generation_of(client)
        self.scope = group
        self.reset = aiokafka_client.reset_of(client)

    async def send_commit(self, offsets: Mapping[Any, Committed], /) -> str | None:
        """Commit offsets by partition, unless there was a rebalance; return the name of an error that passes."""
        same = aiokafka_client.generation_of(self._client) == self._generation
        return await super().send_commit(offsets) if same else "a rebalance"


def processor(subscriber: Any) -> Callable[..., LogProcessor]:
    """Return what makes the ``Processor`` of a subscriber's records.

    Raises:
        ConfigurationError: it takes batches, has several workers, or no group.
    """
    return partial(LogProcessor, AioKafkaRecords(subscriber, DefaultSubscriber))


def is_out_of_reach(error: BaseException) -> bool:
    """Return whether a publish failed since the broker, or the signing key, is out of reach."""
    return isinstance(error, Unavailable | KafkaTimeoutError) or bool(
        getattr(error, "retriable", False)
    )
