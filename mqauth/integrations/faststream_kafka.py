"""The calls for FastStream's ``KafkaBroker``, on aiokafka: its records, and what it publishes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import ConsumerStoppedError, KafkaError, KafkaTimeoutError
from faststream.kafka.publisher.usecase import BatchPublisher
from faststream.kafka.subscriber.usecase import DefaultSubscriber

from mqauth.brokers.log.records import record_message
from mqauth.errors import Unavailable
from mqauth.integrations.faststream_log import SETTINGS, Place, Records, attempt, check, only_signed, prove, seal
from mqauth.wire.message import Message

__all__ = ["BATCHES", "check", "deliveries", "is_out_of_reach", "only_signed", "prove", "seal"]
BATCHES: Final = (BatchPublisher,)
"""Kinds of publishers that send batches."""
_LOST: Final = (KafkaError, ConsumerStoppedError)


class AioKafkaRecords(Records):
    """The calls for the records of one subscriber."""

    def place(self, native: ConsumerRecord[Any, Any], /) -> Place:
        """Return where a record is."""
        return Place(native.topic, native.partition, native.offset)

    def record(self, native: ConsumerRecord[Any, Any], /) -> Message:
        """Return a record as a message; never raises."""
        return record_message(native, self.queue)

    def assigned(self, consumer: Any) -> Iterable[tuple[str, int]]:
        """Return what is assigned to the client."""
        return () if consumer is None else consumer.assignment()

    async def commit(self, consumer: Any, place: Place) -> bool:
        """Commit what is before a place."""
        wanted = {TopicPartition(place.topic, place.partition): place.offset}
        return await attempt(consumer.commit(wanted), _LOST, "commit")

    async def seek(self, consumer: Any, place: Place) -> bool:
        """Go on reading at a place."""

        async def seek() -> None:
            consumer.seek(TopicPartition(place.topic, place.partition), place.offset)

        return await attempt(seek(), _LOST, "seek")


def deliveries(subscriber: Any) -> tuple[AioKafkaRecords, dict[str, Any]]:
    """Return the calls for a subscriber's records, and settings of its ``Processor``.

    Raises:
        ConfigurationError: it takes batches, has several workers, or no group.
    """
    return AioKafkaRecords(subscriber, DefaultSubscriber), SETTINGS


def is_out_of_reach(error: BaseException) -> bool:
    """Return whether a publish failed since the broker, or the signing key, is out of reach."""
    return isinstance(error, Unavailable | KafkaTimeoutError) or bool(getattr(error, "retriable", False))
