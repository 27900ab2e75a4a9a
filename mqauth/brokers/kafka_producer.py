"""Kafka, the producer's side: ``send`` with the client's own signature, each record with a fresh token."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from kafka.errors import KafkaTimeoutError

from mqauth.brokers.kafka_translate import native_headers, to_message
from mqauth.errors import ConfigurationError, MqauthError
from mqauth.signer import Signer

if TYPE_CHECKING:
    from kafka import KafkaProducer
    from kafka.producer.future import FutureRecordMetadata

DEFAULT_IN_FLIGHT: Final = 10_000
_LOG: Final = logging.getLogger("mqauth.kafka")


class ProducerFatalError(MqauthError):
    """An idempotent kafka-python producer has failed for good; close it and make a new one.

    One error that cannot be retried, an unauthorized topic for example, makes every later send to every
    topic fail with it (KIP-360 state ``FATAL_ERROR``).
    """

    code = "producer_fatal"


class Producer:
    """Signs each record and sends it with a connected ``KafkaProducer``.

    Args:
        client: a ``KafkaProducer`` without serializers.
        signer: signs; each call makes a new token.
        value_serializer: makes bytes of values before they are signed; bytes and ``None`` pass as they are.
        max_in_flight: records sent and not yet acknowledged; kafka-python bounds them in no way of its own.

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
    ) -> None:
        refuse_serializers(client)
        if max_in_flight < 1:
            raise ConfigurationError("max_in_flight is at least 1")
        self.client: Any = client
        self._signer = signer
        self._serialize = value_serializer
        self._room = threading.BoundedSemaphore(max_in_flight)
        if not self.client.config["enable_idempotence"]:
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
            The client's own future. Never retry a failed one with the same token: send anew.

        Raises:
            MalformedMessage: the record cannot be signed or sent.
            ProducerFatalError: the client has failed for good.
            kafka.errors.KafkaTimeoutError: no room or no metadata within the client's ``max_block_ms``.
            kafka.errors.MessageSizeTooLargeError: over the client's ``max_request_size``, token included.
        """
        message = to_message(topic, self._octets(value), key, headers)
        self._refuse_fatal()
        self._enter()
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
            self._room.release()
            raise
        future.add_both(self._leave)
        return future  # type: ignore[no-any-return]

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every record sent is acknowledged or has failed, at most so many seconds."""
        self.client.flush(timeout)

    def close(self, timeout: float | None = None) -> None:
        """Close the client after a flush, at most so many seconds."""
        self.client.close(timeout)

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

    def _enter(self) -> None:
        """Wait for room."""
        seconds = self.client.config["max_block_ms"] / 1000
        if not self._room.acquire(timeout=seconds):
            raise KafkaTimeoutError(f"no room for another record in flight within {seconds} s")

    def _leave(self, _outcome: object) -> None:
        """Give room back; runs on the client's sender thread."""
        self._room.release()

    def _refuse_fatal(self) -> None:
        """Say what the client will not say by itself: it never recovers."""
        manager = getattr(self.client, "_transaction_manager", None)
        if manager is not None and manager.has_fatal_error():
            first = type(manager.last_error).__name__
            raise ProducerFatalError(f"the producer failed for good with {first}: close it and make a new one")


def refuse_serializers(client: Any) -> None:
    """Refuse a client whose serializers would change what was signed.

    Raises:
        ConfigurationError: it has one.
    """
    for name in ("key_serializer", "value_serializer"):
        if client.config.get(name) is not None:
            raise ConfigurationError(f"leave {name} out of the KafkaProducer: it would run after signing")
