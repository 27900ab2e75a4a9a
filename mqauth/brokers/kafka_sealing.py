"""Kafka records that wait to be sealed together, and their way to the client in the order they came.

A batch is closed when it is full, when its first record has waited long enough, on a flush, and at once while
nothing else is in flight. One thread at a time seals and sends; what it cannot seal fails, and is never sent.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeAlias

from kafka.errors import IllegalStateError, KafkaTimeoutError

from mqauth.brokers.kafka_alarm import Alarm, ThreadAlarm
from mqauth.brokers.kafka_future import Failed, RecordFuture, Stage
from mqauth.brokers.kafka_room import Room
from mqauth.errors import MalformedMessage
from mqauth.message import TOKEN_HEADER
from mqauth.signer import Prepared, Signer

MAX_TOPICS: Final = 10_000
_LOG: Final = logging.getLogger("mqauth.kafka")


Record: TypeAlias = tuple[Prepared, str, int | None, int | None, Context, RecordFuture]
"""What waits: prepared, with topic, partition, timestamp in UTC milliseconds, its sender's context, in which it is
sent and traced, and what its sender holds of it."""


@dataclass(slots=True, eq=False)
class Waiting:
    """The records of one batch."""

    stage: Stage = field(default_factory=Stage)
    records: list[Record] = field(default_factory=list)


class Sealing:
    """Seals and sends records of one producer.

    Args:
        client: the ``KafkaProducer``.
        signer: signs each batch.
        room: left by each record that was acknowledged or has failed.
        batch: how many records are sealed together.
        linger: seconds a record waits at most for others.
        alarm: makes what rings when that time is over.
    """

    def __init__(
        self,
        client: Any,
        signer: Signer,
        room: Room,
        *,
        batch: int,
        linger: float,
        alarm: Callable[[Callable[[], None]], Alarm] = ThreadAlarm,
    ) -> None:
        self._client = client
        self._signer = signer
        self._room = room
        self._batch = batch
        self._linger = linger
        self._alarm = alarm(self.release)
        self._lock = threading.Lock()  # of what waits; nothing is called under it
        self._order = threading.Lock()  # held while sealing and sending
        self._open: Waiting | None = None
        self._closed_batches: deque[Waiting] = deque()
        self._topics: set[str] = set()
        self._ended = False
        self._patience = client.config["max_block_ms"] / 1000
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
        with self._lock:
            if self._ended:
                self._room.leave()
                raise IllegalStateError("Producer already closed!")
            waiting = self._open or Waiting()
            future = RecordFuture(waiting.stage)
            waiting.records.append((prepared, topic, partition, timestamp_ms, copy_context(), future))
            complete = len(waiting.records) >= self._batch or self._room.taken <= 1
            self._open = None if complete else waiting
            if complete:
                self._closed_batches.append(waiting)
            first = len(waiting.records) == 1
        if (complete and not self._send_all(self._patience)) or (first and not complete):
            self._alarm.set(self._linger)
        return future

    def release(self) -> None:
        """Seal and send what waits."""
        self.flush(None)

    def flush(self, timeout: float | None) -> None:
        """Seal and send what waits, and wait for what another thread is sending, at most so many seconds.

        Raises:
            kafka.errors.KafkaTimeoutError: another thread is still sending.
        """
        self._close_open()
        if not self._send_all(timeout):
            raise KafkaTimeoutError(f"records are still being sent after {timeout} s")

    def end(self) -> None:
        """Take no more records."""
        with self._lock:
            self._ended = True

    def _close_open(self) -> None:
        """Have no more records join the batch that waits."""
        with self._lock:
            if self._open is not None:
                self._closed_batches.append(self._open)
                self._open = None

    def _send_all(self, timeout: float | None) -> bool:
        """Send every closed batch; false where another thread is at it for so long: it sends them then."""
        if not self._order.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)):
            return False
        sent: list[Stage] = []
        try:
            while self._closed_batches:
                waiting = self._closed_batches.popleft()
                sent.append(waiting.stage)
                self._send(waiting)
        finally:
            self._order.release()
            for stage in sent:  # by then a callback may send again
                stage.call()
        return True

    def _send(self, waiting: Waiting) -> None:
        """Seal a batch and give its records to the client; each future has its outcome in the end."""
        records, outcomes, error = waiting.records, list[Any](), None
        try:
            tokens = self._signer.tokens([record[0] for record in records])
            for record, token in zip(records, tokens, strict=True):
                outcomes.append(self._outcome(record, token))
        except BaseException as caught:
            error = caught
            _LOG.error("%d of %d records not sent: %s", len(records) - len(outcomes), len(records), _named(error))
            if not isinstance(error, Exception):
                raise
        finally:
            outcomes += [self._failed(error or IllegalStateError("not sent")) for _ in records[len(outcomes) :]]
            waiting.stage.end(zip([record[-1] for record in records], outcomes, strict=True))
            self._room.leave_with(outcomes)

    def _outcome(self, record: Record, token: str | MalformedMessage) -> Any:
        """Return the client's future of a record, or a failed one."""
        prepared, topic, partition, timestamp_ms, context, _ = record
        if isinstance(token, MalformedMessage):
            return self._failed(token)
        if topic not in self._topics:  # lost a moment ago: do not wait for it once a record
            return self._failed(KafkaTimeoutError("no metadata of the topic"))
        message = prepared.message
        headers = [*message.headers, (TOKEN_HEADER, token.encode("ascii"))]
        send = partial(self._client.send, topic, value=message.body, key=message.key, headers=headers)
        try:
            return context.run(send, partition=partition, timestamp_ms=timestamp_ms)
        except Exception as error:
            if isinstance(error, KafkaTimeoutError):
                self._topics.discard(topic)
            return self._failed(error)

    def _failed(self, error: BaseException) -> Failed:
        """Return the future of a record that was not sent."""
        self.failure = self.failure or error
        return Failed(error)


def _named(error: BaseException) -> str:
    """Return an error as it may be logged."""
    return f"{type(error).__name__} {getattr(error, 'cause', '')}".strip()
