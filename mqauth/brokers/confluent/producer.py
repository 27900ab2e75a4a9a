"""The Kafka producer of confluent-kafka: ``produce`` with the client's own signature, each record signed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from mqauth.brokers.confluent.client import check_producer, error_of, is_idempotent
from mqauth.brokers.confluent.sealing import Sealing
from mqauth.brokers.confluent.translate import is_sendable
from mqauth.brokers.log.errors import ProducerFatalError
from mqauth.brokers.log.records import native_headers, to_message
from mqauth.errors import ConfigurationError, MalformedMessage
from mqauth.signer import Signer
from mqauth.wire.batch import DEFAULT_LINGER, check_batching

DEFAULT_IN_FLIGHT: Final = 10_000
PATIENCE: Final = 60.0
"""Most seconds that a record waits for a free place; kafka-python's default of ``max_block_ms``."""
ROUND: Final = 0.1
"""Most seconds of one ``poll`` for a free place: another thread may serve the report that frees it."""
_FATAL: Final = frozenset((KafkaError._FATAL, KafkaError._FENCED))
_LOG: Final = logging.getLogger("mqauth.kafka")


class TransactionCalls:
    """The transactions of a producer, and its rule that no delivery report is served inside another.

    Args:
        client: the ``confluent_kafka.Producer``.
        transactional: whether it has a ``transactional.id``.
    """

    _sealing: Sealing | None = None

    def __init__(self, client: Any, *, transactional: bool) -> None:
        self.client = client
        self._transactional = transactional
        self._inside = threading.local()
        self._began = False

    def begin_transaction(self) -> None:
        """Begin a transaction of a client that has a ``transactional.id``."""
        self._seal_all()
        self.client.begin_transaction()
        if self._sealing is not None:
            self._sealing.failure = None
        self._began = True

    def commit_transaction(self, timeout: float = -1) -> None:
        """Seal and send what waits, and commit; a transaction that lacks a record is not committed.

        Raises:
            Exception: why a record of it was not sealed or sent: abort it.
        """
        self._seal_all()
        if self._sealing is not None and self._sealing.failure is not None:
            raise self._sealing.failure
        with self._serving():
            self.client.commit_transaction(timeout)
        self._began = False

    def abort_transaction(self, timeout: float = -1) -> None:
        """Abort the transaction, with what waits."""
        self._seal_all()
        with self._serving():
            self.client.abort_transaction(timeout)
        self._began = False

    def _seal_all(self, timeout: float = -1) -> float:
        """Seal and send what waits; return the seconds that are left of the timeout."""
        if self._sealing is None:
            return timeout
        until = time.monotonic() + timeout
        self._sealing.batches.flush(None if timeout < 0 else timeout)
        return timeout if timeout < 0 else max(0.0, until - time.monotonic())

    def _refuse_unbegun(self) -> None:
        if self._transactional and not self._began:
            raise ConfigurationError("with batches, begin and end transactions by the producer, not its client")

    @contextmanager
    def _serving(self) -> Iterator[None]:
        """Mark this thread as one that serves delivery reports."""
        outer = getattr(self._inside, "served", False)
        self._inside.served = True
        try:
            yield
        finally:
            self._inside.served = outer


class Producer(TransactionCalls):
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
        check_batching(batch, linger)
        if not batch <= max_in_flight:
            raise ConfigurationError("max_in_flight must be at least batch: a batch would never be full")
        super().__init__(client, transactional=bool(config.get("transactional.id")))
        self._signer = signer
        self._serialize = value_serializer
        self._most = max_in_flight
        self._fatal: KafkaError | None = None
        self._sealing = Sealing(client, signer, self._give, batch=batch, linger=linger) if batch > 1 else None
        if not is_idempotent(config):
            _LOG.warning("a producer without enable.idempotence: its retries will be rejected as replays")

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
        message = to_message(topic, self._octets(value), key, headers)
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
            return self._sealing.add(self._signer.prepare(message), topic, rest)
        signed = self._signer.sign(message)
        self._give(topic, signed.body, key=signed.key, headers=native_headers(signed.headers), **rest)

    def poll(self, timeout: float = -1) -> int:
        """Serve delivery reports, as the client's ``poll`` does; return how many events were served.

        Args:
            timeout: seconds to wait for one at most, -1 without end.
        """
        with self._serving():
            return int(self.client.poll(timeout))

    def flush(self, timeout: float = -1) -> int:
        """Seal and send what waits, and wait until every record is delivered or has failed.

        Args:
            timeout: seconds, at most; -1 without end.

        Returns:
            How many records are neither yet, as the client says.
        """
        left = self._seal_all(timeout)
        with self._serving():
            return int(self.client.flush(left))

    def close(self, timeout: float = -1) -> None:
        """Take no more records, and close the client after a flush, at most so many seconds."""
        try:
            if self._sealing is not None:
                self._sealing.end()
            self.flush(timeout)
        finally:
            with self._serving():
                self.client.close()

    def check_alive(self) -> None:
        """Raise again what the client has raised once: it never recovers.

        Raises:
            ProducerFatalError: it has failed for good.
        """
        if self._fatal is not None:
            name = self._fatal.name()
            raise ProducerFatalError(f"the producer failed for good with {name}: close it and make a new one")

    def note(self, error: KafkaError | None) -> None:
        """Note the error of a delivery report, which may say that the client has failed for good."""
        if error is not None and (error.fatal() or error.code() in _FATAL):
            self._fatal = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _octets(self, value: Any) -> Any:
        if self._serialize is None or value is None or isinstance(value, bytes):
            return value
        return self._serialize(value)

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
