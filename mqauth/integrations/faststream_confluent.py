"""The calls for FastStream's ``KafkaBroker`` on confluent-kafka: its records, and what it publishes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Set
from contextlib import suppress
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaException, Message
from faststream.confluent.publisher.usecase import BatchPublisher
from faststream.confluent.subscriber.usecase import DefaultSubscriber

from mqauth.brokers.confluent.client import (
    COMES_AGAIN,
    error_of,
    from_native,
    is_sendable,
    membership_of,
)
from mqauth.brokers.confluent.positions import (
    Offsets,
    bounds,
    left_out,
    native,
    places_of,
    reset_of,
)
from mqauth.brokers.confluent.positions import Place as Partition
from mqauth.delivery.start import Committed
from mqauth.errors import MalformedMessage, Unavailable, require
from mqauth.integrations import faststream_log
from mqauth.integrations.faststream_log import (
    LogProcessor,
    Place,
    Records,
    check,
    only_signed,
    prove,
    sought,
)
from mqauth.signer import Signer
from mqauth.wire import message as wire

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


class ConfluentRecords(Records):
    """The calls for the records of one subscriber."""

    lost = (KafkaException, RuntimeError)

    def place(self, native: Message, /) -> Place:
        """Return where a record is."""
        return Place(native.topic() or "", native.partition() or 0, native.offset() or 0)

    def partition(self, native: Message, /) -> Partition:
        """Return the partition of a record."""
        return Partition(native.topic() or "", native.partition() or 0)

    def record(self, native: Message, /) -> wire.Message:
        """Return a record as a message; never raises."""
        return from_native(native, scope=self.queue)

    held: Set[Any] = frozenset()
    generation: object = None

    async def look(self) -> None:
        """See what is assigned to the client."""
        assigned: tuple[Set[Any], object] = frozenset(), None
        if self._subscriber.consumer is not None:
            # On its thread: ``assignment`` never returns while another thread polls (confluent-kafka 2.16).
            with suppress(*self.lost):
                client = self._subscriber.consumer.consumer
                assigned = await self.offsets().here(
                    lambda: (
                        places_of(client.assignment()),
                        membership_of(client).generation,
                    )
                )
        # Not before: until it answers, what is being handled is ours as it was.
        self.held, self.generation = assigned

    def offsets(self) -> SubscriberOffsets:
        """Return the calls that say and move where the group stands."""
        return SubscriberOffsets(self._subscriber.consumer, self.queue, self.generation)

    async def left_out(self, place: Any, expected: int, offset: int | None) -> int | None:
        """Return the first offset that is left, where the client has left ``expected`` out."""
        offsets = self.offsets()
        first: int | None = await offsets.here(
            left_out, offsets.client, place, expected, offset
        )
        return first

    async def seek(self, place: Any, offset: int) -> bool:
        """Have a partition read from an offset next."""
        offsets = self.offsets()
        return await sought(
            partial(offsets.here, offsets.client.seek, native(place, offset)), self.lost
        )


class Ends:
    """Notes the ends of partitions as they are assigned, before anything is read: a moment later they are others.

    Args:
        theirs: the callback that the consumer had before.
    """

    def __init__(self, theirs: Callable[..., None] | None) -> None:
        self._theirs = theirs
        self.ends: Mapping[Any, int] = {}

    def __call__(self, client: Any, partitions: Any) -> None:
        """Note ends, on the thread of the client."""
        # Where that fails they are asked for later.
        with suppress(KafkaException):
            self.ends = {**self.ends, **bounds(client, places_of(partitions), end=True)}
        if self._theirs is not None:
            self._theirs(client, partitions)


def built(theirs: Callable[..., Any], *topics: Any, **settings: Any) -> Any:
    """Return a consumer, with ``Ends``, as ``theirs`` of FastStream builds it."""
    consumer = theirs(*topics, **settings)
    if reset_of(consumer.config) == "latest":
        consumer._on_assign = Ends(consumer._on_assign)
    return consumer


class SubscriberOffsets(Offsets):
    """The calls of a subscriber's client that say and move where its group stands.

    They are made on the one thread on which FastStream makes them.

    Args:
        consumer: FastStream's, with the client.
        group: the consumer group.
        generation: in which they commit.
    """

    def __init__(self, consumer: Any, group: str, generation: object) -> None:
        self._client = self.client = consumer.consumer
        self._generation = generation
        self._pool = consumer._thread_pool
        self._ends = (
            consumer._on_assign.ends if isinstance(consumer._on_assign, Ends) else {}
        )
        self.scope = group
        self.reset = reset_of(consumer.config)

    def bounds(self, places: Collection[Any], end: bool, /) -> Any:
        """Return the first offset of each partition, or the end that it had when it was assigned."""
        return bounds(self._client, places, end=end) | {
            place: self._ends[place] for place in places if end and place in self._ends
        }

    def send_commit(self, offsets: Mapping[Any, Committed], /) -> Any:
        """Commit offsets by partition, unless there was a rebalance; return the name of an error that passes."""
        same = membership_of(self._client).generation == self._generation
        return super().send_commit(offsets) if same else "a rebalance"

    def here(self, work: Callable[..., Any], /, *args: Any) -> Any:
        """Make a call on the thread."""
        return asyncio.get_running_loop().run_in_executor(self._pool, work, *args)


def processor(subscriber: Any) -> Callable[..., LogProcessor]:
    """Return what makes the ``Processor`` of a subscriber's records.

    Raises:
        ConfigurationError: it takes batches, has several workers, or no group; the broker's ``config`` has another
            group, or has the client commit.
    """
    config = subscriber._outer_config.connection_config.consumer_config
    require(
        str(config.get("enable.auto.commit", False)).lower() == "false",
        "enable.auto.commit would commit records before their verdict: leave it out of config=",
    )
    require(
        "group.id" not in config,
        "config= has group.id for all subscribers: give each its group_id=",
    )
    broker = subscriber._outer_config.broker_config
    if getattr(broker.builder, "func", None) is not built:
        broker.builder = partial(built, broker.builder)
    return partial(LogProcessor, ConfluentRecords(subscriber, DefaultSubscriber))


async def seal(
    broker: Any, command: Any, send: Any, signer: Signer, *, answers: bool
) -> None:
    """Encode what a command publishes, and sign it.

    Raises:
        MalformedMessage: it cannot be sent.
    """
    require(
        all(map(is_sendable, command.headers)),
        "a header's name must be UTF-8 without NUL: confluent-kafka cannot send another",
        MalformedMessage,
    )
    await faststream_log.seal(broker, command, send, signer, answers=answers)


def is_out_of_reach(error: BaseException) -> bool:
    """Return whether a publish failed since the broker, or the signing key, is out of reach."""
    return isinstance(error, Unavailable) or (
        isinstance(error, KafkaException) and error_of(error).code() in COMES_AGAIN
    )
