"""What FastStream's two ``KafkaBroker`` have in common: records of a subscriber, and sealing what is published."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Set
from dataclasses import replace
from typing import Any, NamedTuple

from faststream._internal.parser import DefaultCodec

from mqauth.brokers.event_loop import signed
from mqauth.brokers.log.records import native_headers, to_message
from mqauth.brokers.queue.processor import Processor
from mqauth.delivery.log_work import check_log
from mqauth.errors import require
from mqauth.flow import settled
from mqauth.integrations.faststream_positions import Positions
from mqauth.judging.pipeline import Outcome, Pipeline
from mqauth.judging.verified import Verified
from mqauth.logs import emit
from mqauth.signer import Signer
from mqauth.wire.message import Message


class Place(NamedTuple):
    """Where a record is."""

    topic: str
    partition: int
    offset: int


class Records:
    """The calls for the records of one subscriber (``DeliveryClient``, ``SubscriberClient``).

    Those of its client are left to a subclass.

    FastStream's ``TestBroker`` gives a subscriber no consumer, and a record without a key an empty one.

    Args:
        subscriber: FastStream's.

    Raises:
        ConfigurationError: it takes batches, has several workers, or no group.
    """

    def __init__(self, subscriber: Any, kind: type) -> None:
        require(
            type(subscriber) is kind,
            "a subscriber takes single messages with one worker: leave batch= and max_workers= out",
        )
        require(
            bool(subscriber.group_id),
            "a subscriber needs group_id=: offsets are committed for a group",
        )
        self.queue: str = subscriber.group_id
        self._subscriber = subscriber
        self._again: set[Place] = set()
        self.positions: Positions

    @abstractmethod
    def place(self, native: Any, /) -> Place:
        """Return where a record is."""

    @abstractmethod
    def partition(self, native: Any, /) -> Any:
        """Return the partition of a record, as the client names it."""

    @abstractmethod
    def record(self, native: Any, /) -> Message:
        """Return a record as a message."""

    @property
    @abstractmethod
    def held(self) -> Set[Any]:
        """The partitions that are assigned to the client, as it is known."""

    @abstractmethod
    async def seek(self, place: Any, offset: int) -> bool:
        """Have a partition read from an offset next; return ``False`` where the client cannot."""

    async def end(self) -> None:
        """Stop the subscriber."""
        await self._subscriber.stop()

    def message(self, native: Any, /) -> Message:
        """Return a record as a message; one that is read again after it was given back is known."""
        message, place = self.record(native), self.place(native)
        if self.is_tested and message.key == b"":
            message = replace(message, key=None)
        if place in self._again:
            self._again.discard(place)
            message = replace(message, origin=replace(message.origin, redelivered=True))
        return message

    def tag(self, native: Any, /) -> int:
        """Return its offset."""
        return self.place(native).offset

    def consumer(self, _native: Any, /) -> str:
        """Return nothing: a subscriber has one consumer."""
        return ""

    def size(self, native: Any, /) -> int:
        """Return the bytes of its value."""
        return len(self.record(native).body or b"")

    def returns(self, _native: Any, /) -> int:
        """Return 0: Kafka counts no deliveries."""
        return 0

    def is_settled(self, _native: Any, /) -> bool:
        """Return ``False``: a commit may be repeated."""
        return False

    def ended(self, native: Any, /) -> bool:
        """Return whether its partition belongs to somebody else by now."""
        return not self.is_tested and self.partition(native) not in self.held

    async def ack(self, native: Any, /) -> bool:
        """Commit it; return ``False`` where the client cannot."""
        if self.is_tested or self.ended(native):
            return self.is_tested
        return await self.positions.commit(
            self.partition(native), self.place(native).offset + 1
        )

    async def requeue(self, native: Any, /) -> bool:
        """Have it read again; return ``False`` where the client cannot."""
        place, partition = self.place(native), self.partition(native)
        self._again.add(place)
        self.positions.read_again(partition, place.offset)
        # A subscriber that has stopped has no client: the next one begins at the committed offset.
        return (
            self.is_tested
            if self._subscriber.consumer is None
            else await self.seek(partition, place.offset)
        )

    async def lives(self, native: Any, /) -> bool:
        """Return whether its partition is still ours."""
        return not self.ended(native)

    @property
    def is_tested(self) -> bool:
        """Whether FastStream's ``TestBroker`` gave it its records."""
        return self._subscriber.running and self._subscriber.consumer is None


class LogProcessor(Processor):
    """Carries the records of one subscriber through the pipeline, each once its partition has begun.

    Args:
        calls: for its records.
        guard: the pipeline.
        rest: as ``Processor`` has them.
    """

    def __init__(
        self, calls: Records, guard: Pipeline, *rest: Any, **settings: Any
    ) -> None:
        check_log(guard)
        # What is deferred is held until it is decided, since nothing after it may be committed.
        super().__init__(calls, guard, *rest, consumer_timeout=math.inf, **settings)
        self._records = calls
        self.positions = calls.positions = Positions(calls, guard.clock)

    async def process(self, native: Any, *rest: Any) -> Outcome | None:
        """Carry a record to its end; return ``None`` for one that is no longer ours, or comes again.

        Raises:
            OffsetsRefusedError: the broker does not let the group commit.
        """
        place, offset = (
            self._records.partition(native),
            self._records.place(native).offset,
        )
        if not (self._records.is_tested or await self.positions.ready(place, offset)):
            return None
        self.positions.running += 1
        try:
            return await super().process(native, *rest)
        finally:
            self.positions.running -= 1


async def sought(seek: Callable[[], Any], lost: tuple[type[Exception], ...]) -> bool:
    """Seek; log and return ``False`` where the client cannot.

    Args:
        seek: makes the client's call, and may return an awaitable.
        lost: what the client raises where the partition is gone, or the broker is out of reach.
    """
    try:
        await settled(seek())
    except lost as error:
        emit(
            "client.commit_failed",
            "seek failed, what is not committed comes again: %s",
            type(error).__name__,
        )
        return False
    return True


async def seal(
    broker: Any, command: Any, send: Any, signer: Signer, *, answers: bool
) -> None:
    """Encode what a command publishes, and sign it.

    Args:
        broker: FastStream's.
        command: changed: it gets the encoded body, all headers, and the token.
        send: the producer's method that publishes it.
        signer: signs.
        answers: whether an answer is awaited.

    Raises:
        MalformedMessage: it cannot be sent.
        ConfigurationError: a codec would encode what is signed once more, or an answer would not be verified.
    """
    require(not answers, "answers are verified on RabbitMQ alone")
    require(
        type(send.__self__.codec) is DefaultCodec,
        "a codec of your own would encode after the signature",
    )
    kind = None
    # None without a key is an empty value: a record needs one of the two
    if command.body is not None or command.key is None:
        command.body, kind = await DefaultCodec().encode(
            command.body, broker.config.fd_config._serializer
        )
    if isinstance(command.key, str):
        command.key = command.key.encode()
    pairs = [
        (name, (text or "").encode())
        for name, text in {
            "content-type": kind or "",
            **command.headers_to_publish(),
        }.items()
    ]
    message = to_message(command.destination, command.body, command.key, pairs)
    sealed = await signed(signer, signer.sign, message)
    command.headers = {
        name: value.decode() for name, value in native_headers(sealed.headers)
    }


def only_signed(message: Any, verified: Verified) -> None:
    """Have a message answered only where its token says: FastStream reads that from a header, signed or not."""
    if verified.header("reply_to") is None and "reply_to" in message.headers:
        message.reply_to = ""


def check(_command: Any, _found: object) -> None:
    """Do nothing: a record that was not written is an error."""


async def prove(*_: object) -> None:
    """Do nothing: Kafka says itself of what type a record's timestamp is."""
