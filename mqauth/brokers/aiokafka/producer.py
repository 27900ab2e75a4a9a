"""The Kafka producer of aiokafka: ``send`` with the client's own signature, and a fresh token for each record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import aiokafka

from mqauth.brokers.aiokafka import client as aiokafka_client
from mqauth.brokers.aiokafka.sealing import Sealing
from mqauth.brokers.event_loop import signed
from mqauth.brokers.log.errors import ProducerFatalError
from mqauth.brokers.log.producer import RecordProducer
from mqauth.brokers.log.records import native_headers
from mqauth.signer import Signer
from mqauth.wire.batch import DEFAULT_LINGER


class Producer(RecordProducer):
    """Signs records and sends them with a started ``AIOKafkaProducer``.

    With ``batch`` above 1, records share signatures: ``send`` hashes its record and returns, and the record is
    sealed and sent with others once there are ``batch`` of them, or after ``linger``, or by ``flush``, ``stop``
    or ``commit_transaction``; at once while nothing else is in flight. Records reach the client in the order of
    the calls.

    Args:
        client: an ``AIOKafkaProducer`` without serializers.
        signer: signs; each call makes a new token, or takes a place in one.
        value_serializer: makes bytes of values before they are signed; bytes and ``None`` pass as they are.
        batch: most records under one signature, 1 to 1,024; with 1, each has its own.
        linger: seconds a record is held at most for others to join, 0 to 10.

    Raises:
        ConfigurationError: the client has serializers, which would run after signing, or a setting is wrong.
    """

    def __init__(
        self,
        client: aiokafka.AIOKafkaProducer,
        signer: Signer,
        *,
        value_serializer: Callable[[Any], bytes] | None = None,
        batch: int = 1,
        linger: float = DEFAULT_LINGER,
    ) -> None:
        aiokafka_client.check_producer(client)
        super().__init__(
            client, signer, serialize=value_serializer, batch=batch, linger=linger,
            transactional=aiokafka_client.transactional_id(client) is not None,
            idempotent=aiokafka_client.is_idempotent(client),
        )  # fmt: skip
        self._known: set[str] = set()
        if batch > 1:
            self._sealing = Sealing(client, signer, batch=batch, linger=linger)

    async def send(  # noqa: PLR0917 - the client's own signature
        self,
        topic: str,
        value: Any = None,
        key: bytes | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: list[tuple[str, bytes]] | None = None,
    ) -> asyncio.Future[Any]:
        """Sign a record and send it.

        Args:
            topic: the topic, which the token binds.
            value: bytes, or what ``value_serializer`` takes; ``None`` is a tombstone.
            key: the record key, which the token binds.
            partition: as the client has it.
            timestamp_ms: as the client has it, UTC milliseconds.
            headers: pairs of text and bytes; the list is not changed. Those named like one of the seven
                protected properties, ``content-type`` for example, are properties.

        Returns:
            The client's own future; in a batch one like it, and what cannot be sealed or sent fails it. Never
            retry a failed one with the same token: send anew.

        Raises:
            MalformedMessage: the record cannot be signed or sent.
            ConfigurationError: a batch in a transaction that did not begin with ``begin_transaction``.
            ProducerFatalError: the client has failed for good.
            aiokafka.errors.KafkaError: the client refuses the record: for its size with the token, or since its
                topic does not exist.
        """
        message = self._message(topic, value, key, headers)
        self.check_alive()
        rest = {"partition": partition, "timestamp_ms": timestamp_ms}
        if self._sealing is not None:
            self._refuse_unbegun()
            await self._learn(topic)
            return await self._sealing.add(self._signer.prepare(message), topic, rest)  # type: ignore[no-any-return]
        sealed = await signed(self._signer, self._signer.sign, message)
        return await self.client.send(  # type: ignore[no-any-return]
            topic, sealed.body, key=sealed.key, headers=native_headers(sealed.headers), **rest
        )

    async def send_and_wait(self, topic: str, value: Any = None, **record: Any) -> Any:
        """Sign a record, send it, and return its metadata once the broker has acknowledged it.

        Args:
            topic: the topic, which the token binds.
            value: as ``send`` has it.
            record: the other arguments of ``send``.
        """
        return await (await self.send(topic, value, **record))

    async def flush(self) -> None:
        """Seal and send what waits, and wait until every record is acknowledged or has failed."""
        await self._seal_all()
        await self.client.flush()

    async def stop(self) -> None:
        """Take no more records, and stop the client after a flush."""
        try:
            if self._sealing is not None:
                self._sealing.end()
            await self._seal_all()
        finally:
            await self.client.stop()

    async def begin_transaction(self) -> None:
        """Begin a transaction of a client that has a transactional id."""
        await self._seal_all()
        await self.client.begin_transaction()
        if self._sealing is not None:
            self._sealing.failure = None
        self._began = True

    async def commit_transaction(self) -> None:
        """Seal and send what waits, and commit; a transaction that lacks a record is not committed.

        Raises:
            Exception: why a record of it was not sealed or sent: abort it.
        """
        await self._seal_all()
        if self._sealing is not None and self._sealing.failure is not None:
            raise self._sealing.failure
        await self.client.commit_transaction()
        self._began = False

    async def abort_transaction(self) -> None:
        """Abort the transaction, with what waits."""
        await self._seal_all()
        await self.client.abort_transaction()
        self._began = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def check_alive(self) -> None:
        """Raise where the client has failed for good: its sending task has ended, and no send reaches the broker.

        Raises:
            ProducerFatalError: it has.
        """
        error = aiokafka_client.fatal_error(self.client)
        if error is not None:
            raise ProducerFatalError.after(type(error).__name__)

    async def _learn(self, topic: str) -> None:
        """Wait for the metadata of a topic that is new: in a batch others would wait for it too."""
        if topic not in self._known:
            await self.client.partitions_for(topic)
            self._known.add(topic)

    async def _seal_all(self) -> None:
        if self._sealing is not None:
            await self._sealing.flush()
