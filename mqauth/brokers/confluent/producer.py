"""The Kafka producer of confluent-kafka: ``produce`` with the client's own signature, each record signed.

``Sealing`` gives batches of sealed records to the client, and reports those that failed; when a batch is sealed
is decided in ``mqauth.brokers.log.sealing``. ``Replies`` sends signed answers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Final, TypeAlias

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from mqauth.brokers.closing import CLOSE_WITHIN, UnconfirmedError
from mqauth.brokers.confluent.client import (
    COMES_AGAIN,
    check_producer,
    error_of,
    is_idempotent,
    is_sendable,
    name_of,
)
from mqauth.brokers.confluent.confirmed import Report
from mqauth.brokers.log.producer import (
    DEFAULT_IN_FLIGHT,
    LogProducer,
    TopicReplies,
    later,
)
from mqauth.brokers.log.records import NativeHeaders, ProducerFatalError, native_headers
from mqauth.brokers.log.sealing import SMALL, ClientBuffer, RecordSealing, sealed_headers
from mqauth.errors import MalformedMessage, Unavailable, refusing, require
from mqauth.judging.verified import Verified
from mqauth.logs import emit
from mqauth.signer import DEFAULT_BATCH, Prepared, Signer
from mqauth.wire import memo

PATIENCE: Final = 60.0
"""Most seconds that a record waits for a free place; kafka-python's default of ``max_block_ms``."""
ROUND: Final = 0.1
"""Most seconds of one ``poll`` for a free place: another thread may serve the report that frees it."""
_SENDABLE: Final = memo.Memo(is_sendable)
_FATAL: Final = frozenset((KafkaError._FATAL, KafkaError._FENCED))


class _Inside(threading.local):
    """Says what a thread is in: entered while it serves delivery reports, and ``full`` while it makes room.

    A generator as a context manager would cost each poll a microsecond.
    """

    served = 0
    full = False

    def __enter__(self) -> None:
        self.served += 1

    def __exit__(self, *_: object) -> None:
        self.served -= 1


class Producer(LogProducer):
    """Signs records and sends them with a ``confluent_kafka.Producer``.

    Records of one topic that are published together share signatures: ``produce`` hashes its record and returns.
    The record is sealed and sent with others once there are ``batch`` of them, before the client would have sent
    it, or by ``flush``, ``close`` or ``commit_transaction``; at once while nothing else is in flight. Records
    reach the client in the order of the calls.

    Delivery reports are served inside ``poll`` and ``flush``, as by the client. Call those of this producer, not
    those of its client: confluent-kafka kills the process when ``poll`` is called inside a report, and this
    producer may have to poll in order to make room.

    Args:
        client: a ``confluent_kafka.Producer``.
        signer: signs; each call makes a new token, or takes a place in one.
        config: the settings that the client was made with, which it does not tell.
        value_serializer: makes bytes of values before they are signed; bytes and ``None`` pass as they are.
        max_in_flight: records in the client, with those whose report was not served yet. When there are more, or
            when the client's own queue is full, ``produce`` polls for up to 60 s.
        batch: most records under one signature, 1 to 1,024; with 1, each has its own, and ``produce`` raises
            whatever keeps it from being signed or sent.
        linger: seconds a record is held for others to join, 0 to 10, also where it arrives later by that.

    Raises:
        ConfigurationError: the client serializes by itself, which would run after signing, or a setting is wrong.
    """

    def __init__(
        self,
        client: confluent_kafka.Producer,
        signer: Signer,
        *,
        config: Mapping[str, Any],
        value_serializer: Callable[[Any], bytes] | None = None,
        max_in_flight: int = DEFAULT_IN_FLIGHT,
        batch: int = DEFAULT_BATCH,
        linger: float = 0,
    ) -> None:
        config = check_producer(client, config)
        super().__init__(
            client,
            signer,
            serialize=value_serializer,
            in_flight=max_in_flight,
            batch=batch,
            linger=linger,
            buffer=("batch.size", int(config.get("batch.size", SMALL))),
            transactional=bool(config.get("transactional.id")),
            idempotent=is_idempotent(config),
        )
        self._inside = _Inside()
        self._most = max_in_flight
        self._fatal: KafkaError | None = None
        if batch > 1:
            # librdkafka waits for 5 ms by default.
            wait_ms = float(
                config.get("linger.ms", config.get("queue.buffering.max.ms", 5))
            )
            self._sealing = Sealing(
                client,
                signer,
                self._give,
                # A batch of more records than may be in flight would never be full.
                batch=min(batch, max_in_flight),
                buffer=ClientBuffer(wait_ms / 1000, linger),
            )

    def produce(  # noqa: PLR0917 - the client's own signature
        self,
        topic: str,
        value: Any = None,
        key: bytes | None = None,
        partition: int = -1,
        callback: Callable[[Any, Any], None] | None = None,
        on_delivery: Callable[[Any, Any], None] | None = None,
        timestamp: int = 0,
        headers: list[tuple[str, bytes]] | None = None,
    ) -> None:
        """Sign a record and send it.

        Args:
            topic: the topic, which the token binds.
            value: bytes, or what ``value_serializer`` takes; ``None`` is a tombstone.
            key: the record key, which the token binds.
            partition: as the client has it.
            callback: another name of ``on_delivery``.
            on_delivery: called with an error and a message once the record was delivered or has failed, also when
                it could not be sealed or sent. Never retry a failed one with the same token: produce anew.
            timestamp: as the client has it, UTC milliseconds.
            headers: pairs of text and bytes; the list is not changed. Those named like one of the seven
                protected properties, ``content-type`` for example, are properties.

        Raises:
            MalformedMessage: the record cannot be signed or sent.
            ConfigurationError: a batch in a transaction that did not begin with ``begin_transaction``.
            ProducerFatalError: the client has failed for good.
            BufferError: no free place within 60 s, or at once inside a delivery report.
            KafkaException: the client refuses the record, for its size for example.
        """
        if self._inside.full:
            raise BufferError(
                "no free place: this delivery report is being served to make one"
            )
        message = self._message(topic, value, key, headers)
        for name, _ in message.headers:
            if not _SENDABLE[name]:
                raise MalformedMessage(
                    "a header's name must be UTF-8 without NUL: confluent-kafka cannot send another"
                )
        self.check_alive()
        until = 0.0
        while len(self.client) >= self._most:
            until = self._make_room(until)
        record: dict[str, Any] = {
            "key": message.key,
            "partition": partition,
            "timestamp": timestamp,
        }
        record["on_delivery"] = on_delivery or callback
        if self._sealing is not None:
            self._refuse_unbegun()
            return self._sealing.add(self._signer.prepare(message), topic, record)  # type: ignore[no-any-return]
        record["headers"] = native_headers(self._signer.sign(message).headers)
        self._give(topic, message.body, record)

    def poll(self, timeout: float = -1) -> int:
        """Serve delivery reports, as the client's ``poll`` does; return how many events were served.

        Args:
            timeout: seconds to wait for one at most, -1 without end.
        """
        with self._inside:
            return self.client.poll(timeout)  # type: ignore[no-any-return]

    def flush(self, timeout: float = -1) -> int:
        """Seal and send what waits, and wait until every record is delivered or has failed.

        Args:
            timeout: seconds, at most; -1 without end.

        Returns:
            How many records are neither yet, as the client says.
        """
        left = self._seal_all(None if timeout < 0 else timeout)
        with self.serving():
            # A client that is closed refuses a flush, and has nothing left.
            return (
                int(self.client.flush(-1 if left is None else left))
                if len(self.client)
                else 0
            )

    def close(self, timeout: float = CLOSE_WITHIN) -> None:
        """Take no more records, and close the client after a flush.

        Args:
            timeout: seconds for the flush, at most. Records without an outcome then fail.

        Raises:
            UnconfirmedError: the broker has not acknowledged everything.
        """
        left = 0
        try:
            if self._sealing is not None:
                self._sealing.end()
            left = self.flush(timeout)
        finally:
            with self.serving():
                # The client's own close would wait for them once more.
                if left:
                    self.client.purge()
                # Before 2.13 a client has no close, and ends with its last reference.
                getattr(self.client, "close", self.client.flush)()
        if left:
            raise UnconfirmedError.after(timeout, left)

    def responder(self) -> Replies:
        """Return what sends signed answers: what a consumer takes from its ``replies=``."""
        return Replies(self)

    def check_alive(self) -> None:
        """Raise again what the client has raised once: it never recovers.

        Raises:
            ProducerFatalError: it has failed for good.
        """
        if self._fatal is not None:
            raise ProducerFatalError.after(self._fatal.name())

    def note(self, error: KafkaError | None) -> None:
        """Note the error of a delivery report, which may say that the client has failed for good."""
        if error is not None and (error.fatal() or error.code() in _FATAL):
            self._fatal = error

    def serving(self) -> AbstractContextManager[None]:
        """Mark this thread as one that serves delivery reports."""
        return self._inside

    def _give(self, topic: str, value: bytes | None, record: dict[str, Any]) -> None:
        """Give a record to the client, when its queue has room."""
        until = 0.0
        while True:
            try:
                return self.client.produce(topic, value, **record)  # type: ignore[no-any-return]
            except BufferError:
                until = self._make_room(until)
            except KafkaException as error:
                self.note(error_of(error))
                self.check_alive()
                raise

    def _make_room(self, until: float) -> float:
        """Serve delivery reports for a moment; return the monotonic seconds that the next call is given.

        Raises:
            BufferError: the time is over, or this is inside a report.
        """
        until = until or time.monotonic() + PATIENCE
        if self._inside.served or time.monotonic() >= until:
            raise BufferError(f"no free place: {len(self.client)} records are in flight")
        # A report that produces now would wait for the batch that waits here.
        self._inside.full = True
        try:
            self.poll(ROUND)
        finally:
            self._inside.full = False
        return until


Record: TypeAlias = tuple[str, dict[str, Any], Context]
"""A record's topic, the other arguments of ``produce``, and the context of its sender, in which it is traced."""


class Sealing(RecordSealing):
    """The sender of one producer's ``Batches``.

    Args:
        client: the ``confluent_kafka.Producer``.
        signer: signs each batch.
        give: gives a record to the client.
        batch: how many records are sealed together.
        buffer: tells how long a record waits for others.
    """

    def __init__(
        self,
        client: Any,
        signer: Signer,
        give: Callable[..., None],
        *,
        batch: int,
        buffer: ClientBuffer,
    ) -> None:
        self._client = client
        self._give = give
        super().__init__(signer, batch=batch, buffer=buffer, patience=PATIENCE)

    def add(self, prepared: Prepared, topic: str, rest: dict[str, Any]) -> None:
        """Have a record sealed and sent.

        Raises:
            ConfigurationError: closed.
        """
        require(
            self.enqueue(prepared, (topic, rest, copy_context())),
            "the producer is closed",
        )

    def idle(self) -> bool:
        """Return whether nothing is in flight."""
        return not len(self._client)

    def send(
        self, prepared: Prepared, record: Record, token: str, /
    ) -> BaseException | None:
        """Give a record to the client; return its error, or ``None``."""
        topic, rest, context = record
        rest["headers"] = sealed_headers(prepared, token)
        try:
            context.run(self._give, topic, prepared.message.body, rest)
        except Exception as error:
            return self.failed(error)  # type: ignore[no-any-return]
        return None

    def handed(
        self, records: Sequence[Record], outcomes: Sequence[Any], /
    ) -> Iterable[Callable[[], object]]:
        """Return calls to the delivery reports of the records of a batch that were not sent."""
        return [
            partial(report_unsent, record, error)
            for record, error in zip(records, outcomes, strict=True)
            if error is not None
        ]


def report_unsent(record: Record, error: BaseException) -> None:
    """Call the delivery report of a record that was not sent."""
    topic, rest, context = record
    emit(
        "producer.unsent", "a record to %s was not sent: %s", topic, type(error).__name__
    )
    if rest["on_delivery"] is not None:
        if isinstance(error, KafkaException):
            reported = error_of(error)
        else:
            code = (
                KafkaError._QUEUE_FULL
                if isinstance(error, BufferError)
                else KafkaError._FAIL
            )
            reported = KafkaError(code, f"{type(error).__name__}: {error}")
        context.run(
            rest["on_delivery"],
            reported,
            confluent_kafka.Message(topic=topic, error=reported),
        )


_NO_TOPIC: Final = frozenset(
    (
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    )
)
_LATER: Final = (
    COMES_AGAIN | {KafkaError._MSG_TIMED_OUT, KafkaError._QUEUE_FULL}
) - _NO_TOPIC


class Replies(TopicReplies):
    """Sends signed answers to the topic in reply-to, and learns from reports whether the client has failed."""

    _producer: Producer

    def send(
        self, _verified: Verified, topic: str, body: bytes, headers: NativeHeaders
    ) -> Answer:
        """Send an answer.

        Raises:
            RetryLater: it cannot be sent now.
            KafkaException: the client refuses the answer.
        """
        answer = Answer(self._producer)
        with refusing(
            (BufferError, ProducerFatalError, Unavailable),
            lambda error: type(error).__name__,
            later,
        ):
            self._producer.produce(
                topic, value=body, headers=headers, on_delivery=answer.tell
            )
        return answer

    def check(self) -> None:
        """Serve reports; refuse to go on with a client that has failed for good.

        Raises:
            ProducerFatalError: it has.
        """
        self._producer.poll(0)
        super().check()


class Answer(Report):
    """An answer that was sent; ``get`` puts the handler off while the broker is out of reach.

    Args:
        producer: the producer that sent it.
    """

    def __init__(self, producer: Producer) -> None:
        super().__init__(producer.poll)
        self._note = producer.note

    def tell(self, error: KafkaError | None, message: Any) -> None:
        """Note the delivery report; called by the client."""
        super().tell(error, message)
        self._note(error)
        if error is not None:
            emit("reply.lost", "an answer was not delivered: %s", error.name())

    def get(self, timeout: float | None = None) -> Any:
        """Return the delivered message, after at most so many seconds.

        Raises:
            RetryLater: the broker is out of reach, or has not answered yet.
            TooLargeError: it is too large for the client or the broker.
            KafkaException: the broker refused it.
        """
        try:
            return super().get(timeout)
        except KafkaException as error:
            if error_of(error).code() in _LATER:
                raise later(name_of(error)) from error
            raise
