"""Records of a kafka-python producer that are sealed together: what its client is given, and says of topics.

When they are sealed is for ``log_sealing``.

The future of a record that waits for its batch to be sealed; from then on it shows the client's own.

How many records may be in flight, counted; kafka-python bounds them in no way of its own.
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

from mqauth.brokers.log.sealing import Batches
from mqauth.signer import Prepared, Signer
from mqauth.wire.message import TOKEN_HEADER


class InFlightLimit:
    """A bounded count; ``threading.BoundedSemaphore`` takes three times as long for each record.

    Args:
        bound: how many may be inside.
    """

    __slots__ = ("_bound", "_free", "_waiting", "taken")

    def __init__(self, bound: int) -> None:
        self.taken = 0
        self._bound = bound
        self._waiting = 0
        self._free = threading.Condition(threading.Lock())

    def enter(self, seconds: float) -> None:
        """Take a place, after at most so many seconds.

        Raises:
            KafkaTimeoutError: none became free.
        """
        with self._free:
            if self.taken >= self._bound:
                self._wait(seconds)
            self.taken += 1

    def leave(self, _outcome: object = None, places: int = 1) -> None:
        """Give places back; runs on the client's sender thread."""
        with self._free:
            self.taken -= places
            if self._waiting:
                self._free.notify(places)

    def leave_with(self, futures: Sequence[Any]) -> None:
        """Give the places of records back once all of them are done.

        One future at a time is asked to call, the last one first, behind which the others are mostly done: a
        call for each costs a twentieth of a send.
        """
        for future in reversed(futures):
            if not future.is_done:
                future.add_both(lambda _: self.leave_with(futures))
                return
        self.leave(places=len(futures))

    def _wait(self, seconds: float) -> None:
        """Wait for a place."""
        self._waiting += 1
        try:
            if not self._free.wait_for(lambda: self.taken < self._bound, seconds):
                raise KafkaTimeoutError(f"no room for another record in flight within {seconds} s")
        finally:
            self._waiting -= 1


_FUTURE: Final[Any] = Future  # it has no types


class BatchHandover:
    """What the futures of one batch wait for: that it was handed to the client, or failed."""

    __slots__ = ("_calls", "_lock", "_over")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._calls: list[tuple[RecordFuture, Callable[[Any], Any]]] = []

    def wait(self, timeout: float | None) -> bool:
        """Tell whether the batch is over, after at most so many seconds."""
        return self._over.wait(timeout)

    def keep(self, future: RecordFuture, call: Callable[[Any], Any]) -> bool:
        """Keep what is to be called with the client's future; false where there is one already."""
        with self._lock:
            if future.sent is None:
                self._calls.append((future, call))
            return future.sent is None

    def end(self, outcomes: Iterable[tuple[RecordFuture, Any]]) -> None:
        """Give each future the client's."""
        with self._lock:
            for future, sent in outcomes:
                future.sent = sent
        self._over.set()

    def call(self) -> None:
        """Make the calls that were kept, on this thread."""
        calls, self._calls = self._calls, []
        for future, call in calls:
            call(future.sent)


class RecordFuture(_FUTURE):  # type: ignore[misc]
    """A ``FutureRecordMetadata`` of a record that was not sent yet.

    Args:
        stage: of its batch.
    """

    __slots__ = ("sent", "stage")

    def __init__(self, stage: BatchHandover) -> None:  # not the client's: its state is never used
        self.stage = stage
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
        if self.sent is None and not self.stage.wait(timeout):
            raise KafkaTimeoutError(f"Timeout after waiting for {timeout} secs.")
        return self.sent.get(None if until is None else max(0.0, until - time.monotonic()))

    def add_callback(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Self:
        """Have the record's metadata given to a function, after ``args``."""
        return self._to_sent(lambda sent: sent.add_callback(f, *args, **kwargs))

    def add_errback(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Self:
        """Have the record's error given to a function, after ``args``."""
        return self._to_sent(lambda sent: sent.add_errback(f, *args, **kwargs))

    def _add_cb_eb(self, cb: Callable[[Any], Any], eb: Callable[[Any], Any]) -> Self:
        """Add both; the client's ``chain`` asks for this."""
        return self.add_callback(cb).add_errback(eb)

    def _to_sent(self, call: Callable[[Any], Any]) -> Self:
        """Make a call on the client's future, now or once there is one."""
        if self.sent is not None or not self.stage.keep(self, call):
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


MAX_TOPICS: Final = 10_000


Record: TypeAlias = tuple[str, int | None, int | None, Context, RecordFuture]
"""What is kept of a record: topic, partition, timestamp in UTC milliseconds, its sender's context, in which it is
sent and traced, and what its sender holds of it."""


class Sealing:
    """Seals and sends records of one producer; it is the sender that its ``batches`` ask.

    Args:
        client: the ``KafkaProducer``.
        signer: signs each batch.
        room: left by each record that was acknowledged or has failed.
        batch: how many records are sealed together.
        linger: seconds a record waits at most for others.
    """

    def __init__(self, client: Any, signer: Signer, room: InFlightLimit, *, batch: int, linger: float) -> None:
        self._client = client
        self._room = room
        self._topics: set[str] = set()
        patience = client.config["max_block_ms"] / 1000
        self.batches = Batches(signer, self, batch=batch, linger=linger, patience=patience)
        self.failure: BaseException | None = None
        """The first record's that could not be sealed or sent, since this was last set to ``None``."""

    def knows(self, topic: str) -> bool:
        """Tell whether the client can send to a topic without having to wait for its metadata."""
        return topic in self._topics

    def learn(self, topic: str) -> None:
        """Note that the client has sent to a topic."""
        if len(self._topics) < MAX_TOPICS:
            self._topics.add(topic)

    def add(self, prepared: Prepared, topic: str, partition: int | None, timestamp_ms: int | None) -> RecordFuture:
        """Have a record sealed and sent; it has its place in ``room``, and gives it back whatever becomes of it.

        Raises:
            kafka.errors.IllegalStateError: closed.
        """
        context = copy_context()
        record = self.batches.add(
            prepared, lambda stage: (topic, partition, timestamp_ms, context, RecordFuture(stage))
        )
        if record is None:
            self._room.leave()
            raise IllegalStateError("Producer already closed!")
        return record[-1]

    def flush(self, timeout: float | None) -> None:
        """Seal and send what waits, and wait for what another thread is sending, at most so many seconds.

        Raises:
            kafka.errors.KafkaTimeoutError: another thread is still sending.
        """
        if not self.batches.flush(timeout):
            raise KafkaTimeoutError(f"records are still being sent after {timeout} s")

    def end(self) -> None:
        """Take no more records."""
        self.batches.end()

    def begin(self) -> BatchHandover:
        """Return what the futures of one batch wait for."""
        return BatchHandover()

    def idle(self) -> bool:
        """Tell whether nothing is in flight but the record that is being added."""
        return self._room.taken <= 1

    def send(self, prepared: Prepared, record: Record, token: str, /) -> Any:
        """Return the client's future of a record, or a failed one."""
        topic, partition, timestamp_ms, context, _ = record
        if topic not in self._topics:  # lost a moment ago: do not wait for it once a record
            return self.failed(KafkaTimeoutError("no metadata of the topic"))
        message = prepared.message
        headers = [*message.headers, (TOKEN_HEADER, token.encode("ascii"))]
        send = partial(self._client.send, topic, value=message.body, key=message.key, headers=headers)
        try:
            return context.run(send, partition=partition, timestamp_ms=timestamp_ms)
        except Exception as error:
            if isinstance(error, KafkaTimeoutError):
                self._topics.discard(topic)
            return self.failed(error)

    def failed(self, error: BaseException, /) -> FailedFuture:
        """Return the future of a record that was not sent."""
        self.failure = self.failure or error
        return FailedFuture(error)

    def handed(self, common: BatchHandover, records: Sequence[Record], outcomes: Sequence[Any], /) -> None:
        """Give each future the client's, and its place back once that is done."""
        common.end(zip([record[-1] for record in records], outcomes, strict=True))
        self._room.leave_with(outcomes)

    def tell(self, common: BatchHandover, /) -> None:
        """Call who waits for a batch."""
        common.call()
