"""The Kafka producer: ``send`` with the client's own signature, and a fresh token for each record."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from kafka import KafkaProducer
from kafka.producer.future import FutureRecordMetadata

from mqauth.brokers.kafka.client import producer_settings
from mqauth.brokers.kafka.sealing import InFlightLimit, Sealing
from mqauth.brokers.log.errors import ProducerFatalError
from mqauth.brokers.log.records import native_headers, to_message
from mqauth.errors import ConfigurationError
from mqauth.signer import Signer
from mqauth.wire.batch import DEFAULT_LINGER, check_batching
from mqauth.wire.message import Message

DEFAULT_IN_FLIGHT: Final = 10_000
_LOG: Final = logging.getLogger("mqauth.kafka")


class TransactionCalls:
    """Transactions of a producer, of which the records that wait to be sealed are a part."""

    client: Any
    _sealing: Sealing | None
    _began = False

    def begin_transaction(self) -> None:
        """Begin a transaction of a client that has a ``transactional_id``."""
        self._settle()
        self.client.begin_transaction()
        if self._sealing is not None:
            self._sealing.failure = None
        self._began = True

    def commit_transaction(self) -> None:
        """Seal and send what waits, and commit; a transaction that lacks a record is not committed.

        Raises:
            Exception: why a record of it was not sealed or sent: abort it.
        """
        self._settle()
        if self._sealing is not None and self._sealing.failure is not None:
            raise self._sealing.failure
        self.client.commit_transaction()
        self._began = False

    def abort_transaction(self) -> None:
        """Abort the transaction, with what waits."""
        self._settle()
        self.client.abort_transaction()
        self._began = False

    def _settle(self, timeout: float | None = None) -> float | None:
        """Seal and send what waits; return the seconds that are left of the timeout."""
        if self._sealing is None:
            return timeout
        until = None if timeout is None else time.monotonic() + timeout
        self._sealing.flush(timeout)
        return None if until is None else max(0.0, until - time.monotonic())


class Producer(TransactionCalls):
    """Signs records and sends them with a connected ``KafkaProducer``.

    With ``batch`` above 1, records share signatures: ``send`` hashes its record and returns, and the record is
    sealed and sent with others once there are ``batch`` of them, or after ``linger``, or by ``flush``, ``close``
    or ``commit_transaction``; at once while nothing else is in flight. Records reach the client in the order of
    the calls. The first record to a topic is sent alone.

    Args:
        client: a ``KafkaProducer`` without serializers.
        signer: signs; each call makes a new token, or takes a place in one.
        value_serializer: makes bytes of values before they are signed; bytes and ``None`` pass as they are.
        max_in_flight: records held, or sent and not yet acknowledged; kafka-python has no limit of its own.
        batch: most records under one signature, 1 to 1,024; with 1, each has its own.
        linger: seconds a record is held at most for others to join, 0 to 10.

    Raises:
        ConfigurationError: the client has serializers, which would run after signing, or a setting is wrong.
    """

    def __init__(
        self,
        client: KafkaProducer,
        signer: Signer,
        *,
        value_serializer: Callable[[Any], bytes] | None = None,
        max_in_flight: int = DEFAULT_IN_FLIGHT,
        batch: int = 1,
        linger: float = DEFAULT_LINGER,
    ) -> None:
        config = producer_settings(client)
        check_batching(batch, linger)
        if not batch <= max_in_flight:
            raise ConfigurationError("max_in_flight must be at least batch: a batch would never be full")
        self.client: Any = client
        self._signer = signer
        self._serialize = value_serializer
        self._room = InFlightLimit(max_in_flight)
        self._patience: float = config["max_block_ms"] / 1000
        self._sealing: Sealing | None = None
        if batch > 1:
            self._sealing = Sealing(client, signer, self._room, batch=batch, linger=linger)
        if not config["enable_idempotence"]:
            _LOG.warning("a producer without enable_idempotence: its retries will be rejected as replays")

    def send(  # noqa: PLR0917 - the client's own signature
        self,
        topic: str,
        value: Any = None,
        key: bytes | None = None,
        headers: list[tuple[str, bytes]] | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> FutureRecordMetadata:
        """Sign a record and send it.

        Args:
            topic: the topic, which the token binds.
            value: bytes, or what ``value_serializer`` takes; ``None`` is a tombstone.
            key: the record key, which the token binds.
            headers: pairs of text and bytes; the list is not changed. Those named like one of the seven
                protected properties, ``content-type`` for example, are properties.
            partition: as the client has it.
            timestamp_ms: as the client has it, UTC milliseconds.

        Returns:
            The client's own future, or one like it until the record is sealed; what cannot be sealed or sent then
            fails it. Never retry a failed one with the same token: send anew.

        Raises:
            MalformedMessage: the record cannot be signed or sent.
            ConfigurationError: a batch in a transaction that did not begin with ``begin_transaction``.
            ProducerFatalError: the client has failed for good.
            kafka.errors.KafkaTimeoutError: no free place in flight or no metadata within the client's
                ``max_block_ms``.
            kafka.errors.MessageSizeTooLargeError: over the client's ``max_request_size``, token included.
        """
        if self._serialize is not None and value is not None and not isinstance(value, bytes):
            value = self._serialize(value)
        message = to_message(topic, value, key, headers)
        self.check_alive()
        sealing = self._sealing
        if sealing is None or not self._joins(sealing, topic):
            return self._send_alone(topic, message, partition, timestamp_ms)  # type: ignore[no-any-return]
        prepared = self._signer.prepare(message)
        self._room.enter(self._patience)
        return sealing.add(prepared, topic, partition, timestamp_ms)

    def flush(self, timeout: float | None = None) -> None:
        """Seal and send what waits, and wait until every record is acknowledged or has failed.

        Args:
            timeout: seconds, at most.

        Raises:
            kafka.errors.KafkaTimeoutError: some are neither yet.
        """
        self.client.flush(self._settle(timeout))

    def close(self, timeout: float | None = None) -> None:
        """Take no more records, and close the client after a flush, at most so many seconds."""
        try:
            if self._sealing is not None:
                self._sealing.end()
            timeout = self._settle(timeout)
        finally:
            self.client.close(timeout)

    def check_alive(self) -> None:
        """Raise where the client has failed for good; kafka-python itself does not say that it never recovers.

        Raises:
            ProducerFatalError: it has.
        """
        manager = getattr(self.client, "_transaction_manager", None)
        if manager is not None and manager.has_fatal_error():
            first = type(manager.last_error).__name__
            raise ProducerFatalError(f"the producer failed for good with {first}: close it and make a new one")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send_alone(self, topic: str, message: Message, partition: int | None, timestamp_ms: int | None) -> Any:
        """Send a record with a token of its own."""
        self._room.enter(self._patience)
        try:
            signed = self._signer.sign(message)
            future = self.client.send(
                topic, value=signed.body, key=signed.key, headers=native_headers(signed.headers),
                partition=partition, timestamp_ms=timestamp_ms,
            )  # fmt: skip
        except BaseException:
            self._room.leave()
            raise
        future.add_both(self._room.leave)
        if self._sealing is not None and not future.failed():
            self._sealing.learn(topic)
        return future

    def _joins(self, sealing: Sealing, topic: str) -> bool:
        """Return whether a record joins a batch; the first to a topic does not, and waits for metadata alone."""
        if self.client.config.get("transactional_id") and not self._began:
            raise ConfigurationError("with batches, begin and end transactions by the producer, not its client")
        if sealing.knows(topic):
            return True
        # The topic may have been known before: what waits for it goes first, so that the order is kept.
        sealing.flush(self._patience)
        return False
