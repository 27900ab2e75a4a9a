"""The Kafka producer: ``send`` with the client's own signature, and a fresh token for each record.

``Replies`` sends signed answers: what ``Verified.reply`` calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from kafka import KafkaProducer
from kafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    RetriableError,
    UnknownTopicOrPartitionError,
)
from kafka.producer.future import FutureRecordMetadata

from mqauth.brokers.closing import CLOSE_WITHIN, GIVE_UP_WITHIN, UnconfirmedError
from mqauth.brokers.kafka.client import is_no_topic, producer_settings
from mqauth.brokers.kafka.sealing import InFlightLimit, Sealing
from mqauth.brokers.log.producer import (
    DEFAULT_IN_FLIGHT,
    LogProducer,
    TopicReplies,
    later,
)
from mqauth.brokers.log.records import NativeHeaders, ProducerFatalError, native_headers
from mqauth.brokers.log.sealing import ClientBuffer
from mqauth.errors import Unavailable
from mqauth.judging.verified import Verified
from mqauth.signer import DEFAULT_BATCH, Signer


class Producer(LogProducer):
    """Signs records and sends them with a connected ``KafkaProducer``.

    Records of one topic that are published together share signatures: ``send`` hashes its record and returns.
    The record is sealed and sent with others once there are ``batch`` of them, before the client would have sent
    it, or by ``flush``, ``close`` or ``commit_transaction``; at once while nothing else is in flight. Records
    reach the client in the order of the calls. The first record to a topic is sent alone.

    Args:
        client: a ``KafkaProducer`` without serializers.
        signer: signs; each call makes a new token, or takes a place in one.
        value_serializer: makes bytes of values before they are signed; bytes and ``None`` pass as they are.
        max_in_flight: records held, or sent and not yet acknowledged; kafka-python has no limit of its own.
        batch: most records under one signature, 1 to 1,024; with 1, each has its own, and ``send`` raises
            whatever keeps it from being signed or sent.
        linger: seconds a record is held for others to join, 0 to 10, also where it arrives later by that.

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
        batch: int = DEFAULT_BATCH,
        linger: float = 0,
    ) -> None:
        config = producer_settings(client)
        super().__init__(
            client,
            signer,
            serialize=value_serializer,
            in_flight=max_in_flight,
            batch=batch,
            linger=linger,
            buffer=("batch_size", config["batch_size"]),
            transactional=bool(config.get("transactional_id")),
            idempotent=config["enable_idempotence"],
        )
        self._room = InFlightLimit(max_in_flight)
        self._patience: float = config["max_block_ms"] / 1000
        if batch > 1:
            buffer = ClientBuffer(config["linger_ms"] / 1000, linger)
            # A batch of more records than may be in flight would never be full.
            self._sealing = Sealing(
                client, signer, self._room, batch=min(batch, max_in_flight), buffer=buffer
            )

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
        message = self._message(topic, value, key, headers)
        self.check_alive()
        if self._sealing is not None:
            self._refuse_unbegun()
            self._sealing.meet(topic)
            prepared = self._signer.prepare(message)
            self._room.enter(self._patience)
            return self._sealing.add(prepared, topic, partition, timestamp_ms)  # type: ignore[no-any-return]
        self._room.enter(self._patience)
        try:
            signed = self._signer.sign(message)
            future = self.client.send(
                topic,
                value=signed.body,
                key=signed.key,
                headers=native_headers(signed.headers),
                partition=partition,
                timestamp_ms=timestamp_ms,
            )
        except BaseException:
            self._room.leave()
            raise
        future.add_both(self._room.leave)
        return future  # type: ignore[no-any-return]

    def flush(self, timeout: float | None = None) -> None:
        """Seal and send what waits, and wait until every record is acknowledged or has failed.

        Args:
            timeout: seconds, at most.

        Raises:
            kafka.errors.KafkaTimeoutError: some are neither yet.
        """
        self.client.flush(self._seal_all(timeout))

    def close(self, timeout: float = CLOSE_WITHIN) -> None:
        """Take no more records, and close the client after a flush.

        Args:
            timeout: seconds for the flush, at most. Records without an outcome then fail.

        Raises:
            UnconfirmedError: the broker has not acknowledged everything.
        """
        if self._sealing is not None:
            self._sealing.end()
        error = None
        try:
            self.flush(timeout)
        except KafkaTimeoutError:
            error = UnconfirmedError.after(timeout, self._room.taken)
            # The client's own close would wait for them once more.
            self.client._sender.force_close()
        finally:
            self.client.close(GIVE_UP_WITHIN)
        if error is not None:
            raise error

    def responder(self) -> Replies:
        """Return what sends signed answers: what a consumer takes from its ``replies=``."""
        return Replies(self)

    def check_alive(self) -> None:
        """Raise where the client has failed for good; kafka-python itself does not say that it never recovers.

        Raises:
            ProducerFatalError: it has.
        """
        manager = getattr(self.client, "_transaction_manager", None)
        if manager is not None and manager.has_fatal_error():
            raise ProducerFatalError.after(type(manager.last_error).__name__)


_OUT_OF_REACH: Final = (RetriableError, ProducerFatalError, Unavailable)
"""Errors of a send while broker or signing key cannot be reached, or after the client has failed for good."""


class Replies(TopicReplies):
    """Sends signed answers to the topic in reply-to.

    An answer that the broker refuses makes an idempotent client fail for good: then the request of that answer
    fails, all others are deferred, and ``check`` ends the consumer.

    Args:
        producer: signs and sends.
    """

    def __init__(self, producer: Producer) -> None:
        super().__init__(producer)
        # By issuer, subject, token id and index of a request: the same for each attempt at it.
        self._refused: dict[tuple[str, str, str, int | None], KafkaError] = {}

    def send(
        self, verified: Verified, topic: str, body: bytes, headers: NativeHeaders
    ) -> Answer:
        """Send an answer.

        Raises:
            RetryLater: it cannot be sent now.
            kafka.errors.KafkaError: the topic does not exist, or the broker refused an earlier answer.
        """
        request = verified.issuer, verified.subject, verified.jti, verified.index
        began = time.monotonic()

        def note(error: KafkaError) -> None:
            # Remember which request's answer made the client fail for good: its next attempt fails.
            try:
                self._producer.check_alive()
            except ProducerFatalError:
                self._refused[request] = error

        try:
            return Answer(self._producer.send(topic, value=body, headers=headers), note)
        except _OUT_OF_REACH as error:
            if request in self._refused:
                raise self._refused[request] from error
            if isinstance(error, RetriableError) and is_no_topic(
                self._producer.client, topic, began
            ):
                raise
            raise later(type(error).__name__) from error


class Answer:
    """The client's future of an answer, whose ``get`` defers the handler while the broker is out of reach.

    Args:
        future: the client's.
        refused: called with the error where the broker refused the answer.
    """

    def __init__(self, future: Any, refused: Callable[[KafkaError], None]) -> None:
        self._future = future
        self._refused = refused

    def __getattr__(self, name: str) -> Any:
        return getattr(self._future, name)

    def get(self, timeout: float | None = None) -> Any:
        """Return the record's metadata, after at most so many seconds.

        Raises:
            RetryLater: the broker is out of reach, or has not answered yet.
            kafka.errors.KafkaError: it refused the answer.
        """
        try:
            return self._future.get(timeout=timeout)
        except UnknownTopicOrPartitionError:
            raise
        except _OUT_OF_REACH as error:
            raise later(type(error).__name__) from error
        except KafkaError as error:
            self._refused(error)
            raise
