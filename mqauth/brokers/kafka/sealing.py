"""Records of a kafka-python producer that are sealed together, and the futures of their senders.

When a batch is sealed is decided in ``brokers.log.sealing``; here is what its client is given.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Final, Self, TypeAlias

from kafka.errors import IllegalStateError, KafkaTimeoutError
from kafka.future import Future
from kafka.partitioner import DefaultPartitioner

from mqauth.brokers.log.sealing import ClientBuffer, RecordSealing, sealed_headers
from mqauth.errors import require
from mqauth.signer import Prepared, Signer

# kafka-python's class has no types.
_FUTURE: Final[Any] = Future


class InFlightLimit:
    """A limit to the records in flight; kafka-python has none of its own.

    It is a count, since ``threading.BoundedSemaphore`` takes three times as long for each record.

    Args:
        bound: most records in flight.

    Attributes:
        taken: records in flight now.
    """

    def __init__(self, bound: int) -> None:
        self.taken = 0
        self._bound = bound
        self._waiting = 0
        self._free = threading.Condition(threading.Lock())

    def enter(self, seconds: float) -> None:
        """Count a record, after waiting for a free place at most so many seconds.

        Raises:
            KafkaTimeoutError: no place became free.
        """
        with self._free:
            if self.taken >= self._bound:
                self._waiting += 1
                try:
                    require(
                        self._free.wait_for(lambda: self.taken < self._bound, seconds),
                        f"{self._bound} records are in flight, and none was acknowledged within {seconds} s",
                        KafkaTimeoutError,
                    )
                finally:
                    self._waiting -= 1
            self.taken += 1

    def leave(self, _outcome: object = None, places: int = 1) -> None:
        """Give places back; called on the client's sender thread."""
        with self._free:
            self.taken -= places
            if self._waiting:
                self._free.notify(places)

    def leave_with(self, futures: Sequence[Any]) -> None:
        """Give the places of records back once all of them are done."""
        # One future at a time calls us, the last one first, since those before it are mostly done by then: a call
        # for each would cost a twentieth of a send.
        for future in reversed(futures):
            if not future.is_done:
                future.add_both(lambda _: self.leave_with(futures))
                return
        self.leave(places=len(futures))


class RecordFuture(_FUTURE):  # type: ignore[misc]
    """A ``FutureRecordMetadata`` of a record that waits for its batch; from then on it shows the client's own.

    Args:
        sealing: gives its batch to the client.

    Attributes:
        sent: the client's future, ``None`` until then.
    """

    __slots__ = ("sealing", "sent")

    def __init__(self, sealing: Sealing) -> None:
        # The client's __init__ is not called, since its state is never used.
        self.sealing = sealing
        self.sent: Any = None

    @property
    def is_done(self) -> bool:
        """Whether the record was acknowledged, or has failed."""
        return self.sent is not None and self.sent.is_done

    @property
    def value(self) -> Any:
        """The record's metadata, once it was acknowledged."""
        return None if self.sent is None else self.sent.value

    @property
    def exception(self) -> BaseException | None:
        """Why the record failed, once it did."""
        return None if self.sent is None else self.sent.exception

    def get(self, timeout: float | None = None) -> Any:
        """Return the record's metadata, after at most so many seconds.

        Raises:
            kafka.errors.KafkaTimeoutError: it is not known yet.
            Exception: why the record failed.
        """
        until = None if timeout is None else time.monotonic() + timeout
        require(
            self.sent is not None or self.sealing.is_sent(self, timeout),
            f"Timeout after waiting for {timeout} secs.",
            KafkaTimeoutError,
        )
        return self.sent.get(
            None if until is None else max(0.0, until - time.monotonic())
        )

    def add_callback(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Self:
        """Have a function called with the record's metadata, after ``args``."""
        return self._to_sent(lambda sent: sent.add_callback(f, *args, **kwargs))

    def add_errback(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Self:
        """Have a function called with the record's error, after ``args``."""
        return self._to_sent(lambda sent: sent.add_errback(f, *args, **kwargs))

    def _add_cb_eb(self, cb: Callable[[Any], Any], eb: Callable[[Any], Any]) -> Self:
        # The client's ``chain`` calls this.
        return self.add_callback(cb).add_errback(eb)

    def _to_sent(self, call: Callable[[Any], Any]) -> Self:
        """Make a call on the client's future, now or once there is one."""
        if self.sent is not None or not self.sealing.keep(self, call):
            call(self.sent)
        return self


class FailedFuture(_FUTURE):  # type: ignore[misc]
    """The future of a record that was never given to the client.

    Args:
        error: why.
    """

    __slots__ = ()

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.failure(error)

    def get(self, timeout: float | None = None) -> Any:
        """Raise the error, at once."""
        raise self.exception


Record: TypeAlias = tuple[str, int | None, int | None, Context, RecordFuture]
"""Our form of a record: topic, partition, timestamp in UTC milliseconds, the context of its sender, in which it is
sent and traced, and the future that its sender has."""


class Sealing(RecordSealing):
    """Seals and sends the records of one producer: ``RecordSealing`` on kafka-python.

    Args:
        client: the ``KafkaProducer``.
        signer: signs each batch.
        room: counts the records in flight; left by each that was acknowledged or has failed.
        batch: how many records are sealed together.
        buffer: tells how long a record waits for others.

    Attributes:
        topics: those to which the client can send without waiting for their metadata.
    """

    def __init__(
        self,
        client: Any,
        signer: Signer,
        room: InFlightLimit,
        *,
        batch: int,
        buffer: ClientBuffer,
    ) -> None:
        self._client = client
        self._room = room
        self.topics: set[str] = set()
        self._handed = threading.Condition(threading.Lock())
        self._kept: dict[RecordFuture, list[Callable[[Any], Any]]] = {}
        self._chosen: dict[str, int | None] = {}
        super().__init__(
            signer,
            batch=batch,
            buffer=buffer,
            patience=client.config["max_block_ms"] / 1000,
        )

    def meet(self, topic: str) -> None:
        """Wait for the metadata of a topic that is new; in a batch other topics would wait for them too.

        Raises:
            kafka.errors.KafkaTimeoutError: there are none within the client's ``max_block_ms``.
        """
        if topic not in self.topics and not self._ended:
            self._client.partitions_for(topic)
            self.topics.add(topic)

    def add(
        self,
        prepared: Prepared,
        topic: str,
        partition: int | None,
        timestamp_ms: int | None,
    ) -> RecordFuture:
        """Have a record sealed and sent; it has its place in ``room``, and gives it back whatever becomes of it.

        Raises:
            kafka.errors.IllegalStateError: the producer was closed.
        """
        future = RecordFuture(self)
        if not self.enqueue(
            prepared, (topic, partition, timestamp_ms, copy_context(), future)
        ):
            self._room.leave()
            raise IllegalStateError("Producer already closed!")
        return future

    def keep(self, future: RecordFuture, call: Callable[[Any], Any]) -> bool:
        """Keep a call to make with the client's future; return false where there is one already."""
        with self._handed:
            if future.sent is None:
                self._kept.setdefault(future, []).append(call)
            return future.sent is None

    def is_sent(self, future: RecordFuture, timeout: float | None) -> bool:
        """Wait until there is a client's future, at most so many seconds; return whether there is."""
        with self._handed:
            return self._handed.wait_for(lambda: future.sent is not None, timeout)

    def flush(self, timeout: float | None) -> bool:
        """Seal and send what waits, and wait for another thread that is sending, at most so many seconds.

        Raises:
            kafka.errors.KafkaTimeoutError: the other thread is still sending.
        """
        return require(
            super().flush(timeout),
            f"records are still being sent after {timeout} s",
            KafkaTimeoutError,
        )

    def idle(self) -> bool:
        """Return whether nothing is in flight but the record that is being added."""
        return self._room.taken <= 1

    def send(self, prepared: Prepared, record: Record, token: str, /) -> Any:
        """Return the client's future of a record, or a failed one."""
        topic, partition, timestamp_ms, context, _ = record
        # A record before this one found that the topic is lost: do not wait for its metadata once for each.
        if topic not in self.topics:
            return self.failed(KafkaTimeoutError("no metadata of the topic"))
        message, headers = prepared.message, sealed_headers(prepared, token)
        try:
            # Each partition's consumer pays for a signature, so what shares one goes to one partition where the
            # client would choose any: none is named, and its partitioner looks at keys alone.
            if (
                partition is None
                and message.key is None
                and type(self._client.config.get("partitioner")) is DefaultPartitioner
            ):
                if (head := token.partition("~")[0]) not in self._chosen:
                    # None where the metadata are gone by now: the client's send waits for them.
                    self._chosen = {
                        head: self._client._partition(topic, None, None, None, None, None)
                    }
                partition = self._chosen[head]
            return context.run(
                self._client.send,
                topic,
                value=message.body,
                key=message.key,
                headers=headers,
                partition=partition,
                timestamp_ms=timestamp_ms,
            )
        except Exception as error:
            if isinstance(error, KafkaTimeoutError):
                self.topics.discard(topic)
            return self.failed(error)

    def failed(self, error: BaseException, /) -> FailedFuture:
        """Return the future of a record that was not sent."""
        return FailedFuture(super().failed(error))

    def handed(
        self, records: Sequence[Record], outcomes: Sequence[Any], /
    ) -> Iterable[Callable[[], object]]:
        """Give each future the client's, and its place back once that is done; return the calls that were kept."""
        told: list[Callable[[], object]] = []
        with self._handed:
            for (*_, future), sent in zip(records, outcomes, strict=True):
                future.sent = sent
                if self._kept:
                    told += [partial(call, sent) for call in self._kept.pop(future, ())]
            self._handed.notify_all()
        self._room.leave_with(outcomes)
        return told
