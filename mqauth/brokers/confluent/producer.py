"""Kafka by confluent-kafka, the producer's side: ``produce`` with the client's own signature, but signed."""

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
from mqauth.brokers.log.errors import ProducerFatalError
from mqauth.brokers.log.records import native_headers, to_message
from mqauth.errors import ConfigurationError, MalformedMessage
from mqauth.signer import Signer
from mqauth.wire.batch_settings import DEFAULT_LINGER, check_batching

DEFAULT_IN_FLIGHT: Final = 10_000
PATIENCE: Final = 60.0
"""Seconds for which a record waits for room; kafka-python's default of ``max_block_ms``."""
ROUND: Final = 0.1
"""Seconds of one look for room: another thread may serve the reports that make it."""
_FATAL: Final = frozenset((KafkaError._FATAL, KafkaError._FENCED))
_LOG: Final = logging.getLogger("mqauth.kafka")


class TransactionCalls:
    """A producer that can make several records one, and that serves no delivery report inside another.

    Args:
        client: the ``confluent_kafka.Producer``.
        transactional: it has a ``transactional.id``.
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
        """Seal and send what waits; return the seconds that are left."""
        if self._sealing is None:
            return timeout
        until = time.monotonic() + timeout
        self._sealing.batches.flush(None if timeout < 0 else timeout)
        return timeout if timeout < 0 else max(0.0, until - time.monotonic())

    def _refuse_unbegun(self) -> None:
        """Refuse a batch in a transaction of which we know nothing."""
        if self._transactional and not self._began:
            raise ConfigurationError("with batches, begin and end transactions by the producer, not its client")

    @contextmanager
    def _serving(self) -> Iterator[None]:
        """Note that delivery reports are served on this thread: none may be served inside one."""
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

    Delivery reports are told as by the client: inside ``poll`` and ``flush``. Call those of the producer, not
    those of its client: confluent-kafka ends the process where ``poll`` is called inside a report.

    Args:
        client: a ``confluent_kafka.Producer``.
        signer: signs; each call makes a new token, or takes a place in one.
        config: the settings that the client was made with: it does not tell them.
        value_serializer: makes bytes of values before they are signed; bytes and ``None`` pass as they are.
        max_in_flight: records in the client, those whose report was not served yet among them; beyond it
            ``produce`` polls for up to 60 s, as it does where the client's own queue is full.
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
            raise ConfigurationError("max_in_flight is at least batch: it would never be full")
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
            on_delivery: called with error and message once the record was delivered or has failed, also where it
                could not be sealed or sent. Never retry a failed one with the same token: produce anew.
            timestamp: as the client has it, UTC milliseconds.
            headers: pairs of text and bytes; the list is not changed. Those named like one of the seven
                protected properties, ``content-type`` for example, are properties.

        Raises:
            MalformedMessage: the record cannot be signed or sent.
            ConfigurationError: a batch in a transaction that did not begin with ``begin_transaction``.
            ProducerFatalError: the client has failed for good.
            BufferError: no room within 60 s, or at once inside a delivery report.
            KafkaException: the client refuses the record, for its size for example.
        """
        if getattr(self._inside, "full", False):
            raise BufferError("no room for another record: this report is served to make some")
        message = to_message(topic, self._octets(value), key, headers)
        for name, _ in message.headers:
            _check_name(name)
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
        """Say again what the client said once: it never recovers.

        Raises:
            ProducerFatalError: it has failed for good.
        """
        if self._fatal is not None:
            name = self._fatal.name()
            raise ProducerFatalError(f"the producer failed for good with {name}: close it and make a new one")

    def note(self, error: KafkaError | None) -> None:
        """Note what a delivery report says: it may be that the client has failed for good."""
        if error is not None and (error.fatal() or error.code() in _FATAL):
            self._fatal = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _octets(self, value: Any) -> Any:
        """Return the value as it will be signed."""
        if self._serialize is None or value is None or isinstance(value, bytes):
            return value
        return self._serialize(value)

    def _give(self, topic: str, value: bytes | None, **record: Any) -> None:
        """Give a record to the client, once its queue has room."""
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
        """Serve delivery reports for a moment; what they call may produce nothing meanwhile.

        Raises:
            BufferError: it is too late, or a report is being served already.
        """
        if getattr(self._inside, "served", False) or time.monotonic() >= until:
            raise BufferError(f"no room for another record: {len(self.client)} are in flight")
        self._inside.full = True
        try:
            self.poll(ROUND)
        finally:
            self._inside.full = False


def _check_name(name: str) -> None:
    """Refuse a header's name that confluent-kafka 2.16 cuts at a NUL, or that makes it end the process.

    Raises:
        MalformedMessage: it is one.
    """
    try:
        cut = b"\0" in name.encode("utf-8")
    except UnicodeEncodeError:
        cut = True
    if cut:
        raise MalformedMessage("a header's name is UTF-8 without NUL: confluent-kafka cannot send another")
