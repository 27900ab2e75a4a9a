"""The Kafka producer of confluent-kafka: ``produce`` with the client's own signature, each record signed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from mqauth.brokers.confluent.client import check_producer, error_of, is_idempotent
from mqauth.brokers.confluent.sealing import Sealing
from mqauth.brokers.confluent.translate import is_sendable
from mqauth.brokers.log.errors import ProducerFatalError
from mqauth.brokers.log.producer import DEFAULT_IN_FLIGHT, LogProducer
from mqauth.brokers.log.records import native_headers
from mqauth.errors import MalformedMessage
from mqauth.signer import Signer
from mqauth.wire.batch import DEFAULT_LINGER

PATIENCE: Final = 60.0
"""Most seconds that a record waits for a free place; kafka-python's default of ``max_block_ms``."""
ROUND: Final = 0.1
"""Most seconds of one ``poll`` for a free place: another thread may serve the report that frees it."""
_FATAL: Final = frozenset((KafkaError._FATAL, KafkaError._FENCED))


class Producer(LogProducer):
    """Signs records and sends them with a ``confluent_kafka.Producer``.

    With ``batch`` above 1, records share signatures: ``produce`` hashes its record and returns, and the record is
    sealed and sent with others once there are ``batch`` of them, or after ``linger``, or by ``flush``, ``close``
    or ``commit_transaction``; at once while nothing else is in flight. Records reach the client in the order of
    the calls.

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
        batch: most records under one signature, 1 to 1,024; with 1, each has its own.
        linger: seconds a record is held at most for others to join, 0 to 10.

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
        batch: int = 1,
        linger: float = DEFAULT_LINGER,
    ) -> None:
        config = check_producer(client, config)
        super().__init__(
            client, signer, serialize=value_serializer, in_flight=max_in_flight, batch=batch, linger=linger,
            transactional=bool(config.get("transactional.id")), idempotent=is_idempotent(config),
        )  # fmt: skip
        self._inside = threading.local()
        self._most = max_in_flight
        self._fatal: KafkaError | None = None
        if batch > 1:
            self._sealing = Sealing(client, signer, self._give, batch=batch, linger=linger)

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
        if getattr(self._inside, "full", False):
            raise BufferError("no free place: this delivery report is being served to make one")
        message = self._message(topic, value, key, headers)
        for name, _ in message.headers:
            if not is_sendable(name):
                raise MalformedMessage(
                    "a header's name must be UTF-8 without NUL: confluent-kafka cannot send another"
                )
        self.check_alive()
        until = time.monotonic() + PATIENCE
        while len(self.client) >= self._most:
            self._make_room(until)
        rest = {"partition": partition, "on_delivery": on_delivery or callback, "timestamp": timestamp}
        if self._sealing is not None:
            self._refuse_unbegun()
            return self._sealing.add(self._signer.prepare(message), topic, rest)  # type: ignore[no-any-return]
        signed = self._signer.sign(message)
        self._give(topic, signed.body, key=signed.key, headers=native_headers(signed.headers), **rest)

    def poll(self, timeout: float = -1) -> int:
        """Serve delivery reports, as the client's ``poll`` does; return how many events were served.

        Args:
            timeout: seconds to wait for one at most, -1 without end.
        """
        with self.serving():
            return int(self.client.poll(timeout))

    def flush(self, timeout: float = -1) -> int:
        """Seal and send what waits, and wait until every record is delivered or has failed.

        Args:
            timeout: seconds, at most; -1 without end.

        Returns:
            How many records are neither yet, as the client says.
        """
        left = self._seal_all(None if timeout < 0 else timeout)
        with self.serving():
            return int(self.client.flush(-1 if left is None else left))

    def close(self, timeout: float = -1) -> None:
        """Take no more records, and close the client after a flush, at most so many seconds."""
        try:
            if self._sealing is not None:
                self._sealing.end()
            self.flush(timeout)
        finally:
            with self.serving():
                # Before 2.13 a client has no close, and ends with its last reference.
                getattr(self.client, "close", self.client.flush)()

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

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Mark this thread as one that serves delivery reports."""
        outer = getattr(self._inside, "served", False)
        self._inside.served = True
        try:
            yield
        finally:
            self._inside.served = outer

    def _give(self, topic: str, value: bytes | None, **record: Any) -> None:
        """Give a record to the client, when its queue has room."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return self.client.produce(topic, value, **record)  # type: ignore[no-any-return]
            except BufferError:
                self._make_room(until)
            except KafkaException as error:
                self.note(error_of(error))
                self.check_alive()
                raise

    def _make_room(self, until: float) -> None:
        """Serve delivery reports for a moment.

        Raises:
            BufferError: the time is over, or this is inside a report.
        """
        if getattr(self._inside, "served", False) or time.monotonic() >= until:
            raise BufferError(f"no free place: {len(self.client)} records are in flight")
        # A report that produces now would wait for the batch that waits here.
        self._inside.full = True
        try:
            self.poll(ROUND)
        finally:
            self._inside.full = False
