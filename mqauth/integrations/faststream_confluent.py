"""The calls for FastStream's ``KafkaBroker`` on confluent-kafka: its records, and what it publishes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaException, Message, TopicPartition
from faststream.confluent.publisher.usecase import BatchPublisher
from faststream.confluent.subscriber.usecase import DefaultSubscriber

from mqauth.brokers.confluent.client import COMES_AGAIN, error_of
from mqauth.brokers.confluent.translate import from_native, is_sendable
from mqauth.errors import MalformedMessage, Unavailable, require
from mqauth.integrations import faststream_log
from mqauth.integrations.faststream_log import SETTINGS, Place, Records, attempt, check, only_signed, prove
from mqauth.signer import Signer
from mqauth.wire import message as wire

__all__ = ["BATCHES", "check", "deliveries", "is_out_of_reach", "only_signed", "prove", "seal"]
BATCHES: Final = (BatchPublisher,)
"""Kinds of publishers that send batches."""
_LOST: Final = (KafkaException, RuntimeError)
"""What the client raises where the partition is gone, the broker out of reach, or the consumer closed."""


class ConfluentRecords(Records):
    """The calls for the records of one subscriber."""

    def place(self, native: Message, /) -> Place:
        """Return where a record is."""
        return Place(native.topic() or "", native.partition() or 0, native.offset() or 0)

    def record(self, native: Message, /) -> wire.Message:
        """Return a record as a message; never raises."""
        return from_native(native, scope=self.queue)

    def assigned(self, consumer: Any) -> Iterable[tuple[str, int]]:
        """Return what is assigned to the client."""
        try:
            found = () if consumer is None else consumer.consumer.assignment()
        except _LOST:
            return ()
        return [(each.topic, each.partition) for each in found]

    async def commit(self, consumer: Any, place: Place) -> bool:
        """Commit what is before a place; the client's own commit covers what was read and given back, too."""
        wanted = [TopicPartition(*place)]
        return await attempt(
            _on_thread(consumer, partial(consumer.consumer.commit, offsets=wanted, asynchronous=False)),
            _LOST,
            "commit",
        )

    async def seek(self, consumer: Any, place: Place) -> bool:
        """Go on reading at a place."""
        return await attempt(
            _on_thread(consumer, partial(consumer.consumer.seek, TopicPartition(*place))), _LOST, "seek"
        )


async def _on_thread(consumer: Any, call: Callable[[], Any]) -> None:
    """Make a call of the client on the one thread on which FastStream makes them."""
    await asyncio.get_running_loop().run_in_executor(consumer._thread_pool, call)


def deliveries(subscriber: Any) -> tuple[ConfluentRecords, dict[str, Any]]:
    """Return the calls for a subscriber's records, and settings of its ``Processor``.

    Raises:
        ConfigurationError: it takes batches, has several workers, or no group; the broker's ``config`` has another
            group, or has the client commit.
    """
    config = subscriber._outer_config.connection_config.consumer_config
    require(
        str(config.get("enable.auto.commit", False)).lower() == "false",
        "enable.auto.commit would commit records before their verdict: leave it out of config=",
    )
    require("group.id" not in config, "config= has group.id for all subscribers: give each its group_id=")
    return ConfluentRecords(subscriber, DefaultSubscriber), SETTINGS


async def seal(broker: Any, command: Any, send: Any, signer: Signer, *, answers: bool) -> None:
    """Encode what a command publishes, and sign it.

    Raises:
        MalformedMessage: it cannot be sent.
    """
    if not all(map(is_sendable, command.headers)):
        raise MalformedMessage("a header's name must be UTF-8 without NUL: confluent-kafka cannot send another")
    await faststream_log.seal(broker, command, send, signer, answers=answers)


def is_out_of_reach(error: BaseException) -> bool:
    """Return whether a publish failed since the broker, or the signing key, is out of reach."""
    found = isinstance(error, KafkaException) and error_of(error).code() in COMES_AGAIN
    return found or isinstance(error, Unavailable)
