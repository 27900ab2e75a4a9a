"""What the producers of every client have in common: settings, transactions, and records to sign.

``TopicReplies`` sends signed answers: what ``Verified.reply`` calls.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import Any, Final

from mqauth.brokers.log.records import NativeHeaders, ProducerFatalError, to_message
from mqauth.brokers.log.sealing import SMALL
from mqauth.brokers.process import HomeProcess
from mqauth.errors import ConfigurationError, RetryLater, require
from mqauth.flow import Flow, call, run
from mqauth.judging.verified import Verified
from mqauth.logs import emit
from mqauth.signer import Signer, check_batching
from mqauth.threads import Closing
from mqauth.wire.message import Message

DEFAULT_IN_FLIGHT: Final = 10_000


class RecordProducer(ABC):
    """A producer on a client, synchronous or not.

    Args:
        client: the client.
        signer: signs.
        serialize: makes bytes of values before they are signed.
        batch: most records under one signature.
        linger: seconds a record is held for others to join.
        buffer: the client's setting of how many bytes it sends at once for a partition, and their number.
        transactional: whether the client has a transactional id.
        idempotent: whether the client's retries write no second copy.
        in_flight: most records in flight.

    Raises:
        ConfigurationError: a setting is wrong.
    """

    def __init__(
        self,
        client: Any,
        signer: Signer,
        *,
        serialize: Callable[[Any], bytes] | None,
        batch: int,
        linger: float,
        buffer: tuple[str, int],
        transactional: bool,
        idempotent: bool,
        in_flight: int = DEFAULT_IN_FLIGHT,
    ) -> None:
        check_batching(batch, linger)
        require(in_flight >= 1, f"max_in_flight must be at least 1, not {in_flight}")
        self.client = client
        self._home = HomeProcess("producer")
        self._signer = signer
        self._serialize = serialize
        self._transactional = transactional
        self._began = False
        self._sealing: Any = None
        if not idempotent:
            emit(
                "producer.not_idempotent",
                "a producer without idempotence: its retries will be rejected as replays",
            )
        if buffer[1] < SMALL:
            emit(
                "producer.small_buffer",
                "%s is %d bytes: with %d signed records cost half as much",
                *buffer,
                SMALL,
            )

    def _message(
        self, topic: str, value: Any, key: bytes | None, headers: Any
    ) -> Message:
        """Return what is to be signed.

        Raises:
            MalformedMessage: Kafka cannot carry it.
        """
        self._home.check()
        if (
            self._serialize is not None
            and value is not None
            and not isinstance(value, bytes)
        ):
            value = self._serialize(value)
        return to_message(topic, value, key, headers)

    def _refuse_unbegun(self) -> None:
        """Refuse a record of a batch in a transaction of which we would not see the end."""
        # Asked for each record: the call of ``require`` alone would cost as much as the question.
        if self._transactional and not self._began:
            raise ConfigurationError(
                "begin and end transactions by the producer, not its client, or set batch=1"
            )

    def _beginning(self) -> Flow[None]:
        """Begin a transaction."""
        yield from call(self._seal_all)
        yield from call(self.client.begin_transaction)
        if self._sealing is not None:
            self._sealing.failure = None
        self._began = True

    def _ending(
        self, end: Callable[..., Any], *timeout: float, complete: bool
    ) -> Flow[None]:
        """End a transaction, with what waits; one that must be complete raises why a record of it is missing."""
        yield from call(self._seal_all)
        if complete and self._sealing is not None and self._sealing.failure is not None:
            raise self._sealing.failure
        with self.serving():
            yield from call(end, *timeout)
        self._began = False

    def serving(self) -> AbstractContextManager[None]:
        """Return what is entered while the client may call delivery reports on this thread."""
        return nullcontext()

    @abstractmethod
    def _seal_all(self) -> Any:
        """Seal and send what waits; on an event loop a coroutine."""


class LogProducer(RecordProducer, Closing):
    """A producer on a synchronous client; records that wait to be sealed are part of its transactions."""

    def begin_transaction(self) -> None:
        """Begin a transaction of a client that has a transactional id."""
        run(self._beginning())

    def commit_transaction(self, *timeout: float) -> None:
        """Seal and send what waits, and commit; a transaction that lacks a record is not committed.

        Args:
            timeout: seconds, where the client takes them.

        Raises:
            Exception: why a record of it was not sealed or sent: abort it.
        """
        run(self._ending(self.client.commit_transaction, *timeout, complete=True))

    def abort_transaction(self, *timeout: float) -> None:
        """Abort the transaction, with what waits.

        Args:
            timeout: seconds, where the client takes them.
        """
        run(self._ending(self.client.abort_transaction, *timeout, complete=False))

    @abstractmethod
    def close(self) -> None:
        """Take no more records, and close the client after a flush; a leaf's own."""

    def _seal_all(self, timeout: float | None = None) -> float | None:
        """Seal and send what waits; return the seconds that are left of the timeout."""
        self._home.check()
        if self._sealing is None:
            return timeout
        until = None if timeout is None else time.monotonic() + timeout
        self._sealing.flush(timeout)
        return None if until is None else max(0.0, until - time.monotonic())


class TopicReplies(ABC):
    """Sends signed answers to the topic in reply-to; the leaf says how one is sent.

    While the broker or the signing key cannot be reached, the handler is deferred. An answer or a topic that is
    wrong fails the handler: the requester chooses the topic, and a missing one must not hold a partition for ever.

    Args:
        producer: signs and sends.
    """

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        if isinstance(producer, LogProducer):
            # Who answers must be told what keeps the answer from being signed or sent: it waits for no others.
            self._producer = copy(producer)
            self._producer._sealing = None

    def __call__(self, verified: Verified, body: bytes) -> Any:
        """Send an answer.

        Raises:
            RetryLater: it cannot be sent now.
            ConfigurationError: the request names no topic.
            Exception: the client's own, where it refuses the answer.
        """
        properties = verified.properties
        require(
            "reply-to" in properties, "the message cannot be answered: it has no reply-to"
        )
        names = ("correlation-id",) if "correlation-id" in properties else ()
        headers = [(name, properties[name].encode("utf-8")) for name in names]
        return self.send(verified, properties["reply-to"], body, headers)

    @abstractmethod
    def send(
        self, verified: Verified, topic: str, body: bytes, headers: NativeHeaders
    ) -> Any:
        """Send an answer, as ``__call__`` describes; a leaf's own.

        Args:
            verified: the request.
            topic: where the answer goes.
            body: of the answer.
            headers: of the answer.
        """

    def check(self) -> None:
        """Refuse to go on with a client that has failed for good: every request would be deferred.

        Raises:
            ProducerFatalError: it has.
        """
        try:
            self._producer.check_alive()
        except ProducerFatalError as error:
            emit(
                "reply.failed",
                "answers: %s; the consumer ends, and requests without an answer come again",
                error,
            )
            raise


def later(why: str) -> RetryLater:
    """Return the error that defers a handler whose answer cannot be sent now."""
    return RetryLater(f"the answer could not be sent: {why}")
