"""The Kafka producer of aiokafka: ``send`` with the client's own signature, and a fresh token for each record.

``Sealing`` seals records together and gives them to the client in their order. ``Replies`` sends signed answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Final, TypeAlias

import aiokafka
from aiokafka.errors import KafkaError, KafkaTimeoutError, UnknownTopicOrPartitionError

from mqauth.brokers.aiokafka import client as aiokafka_client
from mqauth.brokers.event_loop import signed
from mqauth.brokers.log.producer import RecordProducer, TopicReplies, later
from mqauth.brokers.log.records import NativeHeaders, ProducerFatalError, native_headers
from mqauth.brokers.log.sealing import ClientBuffer, sealed_headers
from mqauth.errors import MalformedMessage, Unavailable, require
from mqauth.flow import arun
from mqauth.judging.verified import Verified
from mqauth.logs import emit
from mqauth.signer import DEFAULT_BATCH, Prepared, Signer


class Producer(RecordProducer, AbstractAsyncContextManager["Producer"]):
    """Signs records and sends them with a started ``AIOKafkaProducer``.

    Records of one topic that are published together share signatures: ``send`` hashes its record and returns.
    The record is sealed and sent with others once there are ``batch`` of them, before the client would have sent
    it, or by ``flush``, ``stop`` or ``commit_transaction``; at once while nothing else is in flight. Records
    reach the client in the order of the calls.

    Args:
        client: an ``AIOKafkaProducer`` without serializers.
        signer: signs; each call makes a new token, or takes a place in one.
        value_serializer: makes bytes of values before they are signed; bytes and ``None`` pass as they are.
        batch: most records under one signature, 1 to 1,024; with 1, each has its own, and ``send`` raises
            whatever keeps it from being signed or sent.
        linger: seconds a record is held for others to join, 0 to 10, also where it arrives later by that.

    Raises:
        ConfigurationError: the client has serializers, which would run after signing, or a setting is wrong.
    """

    def __init__(
        self,
        client: aiokafka.AIOKafkaProducer,
        signer: Signer,
        *,
        value_serializer: Callable[[Any], bytes] | None = None,
        batch: int = DEFAULT_BATCH,
        linger: float = 0,
    ) -> None:
        aiokafka_client.check_producer(client)
        super().__init__(
            client,
            signer,
            serialize=value_serializer,
            batch=batch,
            linger=linger,
            buffer=("max_batch_size", aiokafka_client.buffer_of(client)[0]),
            transactional=aiokafka_client.transactional_id(client) is not None,
            idempotent=aiokafka_client.is_idempotent(client),
        )
        self._known: set[str] = set()
        if batch > 1:
            buffer = ClientBuffer(aiokafka_client.buffer_of(client)[1], linger)
            self._sealing = Sealing(client, signer, batch=batch, buffer=buffer)

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
            # The metadata of a topic that is new are waited for here: in a batch others would wait for them too.
            if topic not in self._known:
                await self.client.partitions_for(topic)
                self._known.add(topic)
            return await self._sealing.add(self._signer.prepare(message), topic, rest)  # type: ignore[no-any-return]
        sealed = await signed(self._signer, self._signer.sign, message)
        return await self.client.send(  # type: ignore[no-any-return]
            topic,
            sealed.body,
            key=sealed.key,
            headers=native_headers(sealed.headers),
            **rest,
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
        await arun(self._beginning())

    async def commit_transaction(self) -> None:
        """Seal and send what waits, and commit; a transaction that lacks a record is not committed.

        Raises:
            Exception: why a record of it was not sealed or sent: abort it.
        """
        await arun(self._ending(self.client.commit_transaction, complete=True))

    async def abort_transaction(self) -> None:
        """Abort the transaction, with what waits."""
        await arun(self._ending(self.client.abort_transaction, complete=False))

    async def __aexit__(self, *_exception: object) -> None:
        await self.stop()

    def responder(self) -> Replies:
        """Return what sends signed answers: what a consumer takes from its ``replies=``."""
        return Replies(self)

    def check_alive(self) -> None:
        """Raise where the client has failed for good: its sending task has ended, and no send reaches the broker.

        Raises:
            ProducerFatalError: it has.
        """
        error = aiokafka_client.fatal_error(self.client)
        if error is not None:
            raise ProducerFatalError.after(type(error).__name__)

    async def _seal_all(self) -> None:
        self._home.check()
        if self._sealing is not None:
            await self._sealing.flush()


Outcome: TypeAlias = asyncio.Future[Any]


Record: TypeAlias = tuple[Prepared, str, Mapping[str, Any], Outcome]
"""A record that waits to be sealed: its message, its topic, the other arguments of the client's ``send``, and the
future that its sender has."""


class Sealing:
    """Seals the records of one producer and sends them; who completes a batch waits until it is with the client.

    Args:
        client: the ``AIOKafkaProducer``.
        signer: signs each batch.
        batch: how many records are sealed together.
        buffer: tells how long a record waits for others.

    Attributes:
        failure: why the first record failed that could not be sealed or sent, since this was last set to ``None``.
    """

    def __init__(
        self, client: Any, signer: Signer, *, batch: int, buffer: ClientBuffer
    ) -> None:
        self._client = client
        self._signer = signer
        self._batch = batch
        self._buffer = buffer
        self._open: list[Record] = []
        self._timer: asyncio.TimerHandle | None = None
        # The lock is fair: batches reach the client in the order in which they were closed.
        self._order = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight: set[Outcome] = set()
        self._ended = False
        self.failure: BaseException | None = None

    async def add(
        self, prepared: Prepared, topic: str, rest: Mapping[str, Any]
    ) -> Outcome:
        """Have a record sealed and sent; return the future of its outcome.

        Raises:
            ConfigurationError: closed.
        """
        require(not self._ended, "the producer is closed")
        outcome: Outcome = asyncio.get_running_loop().create_future()
        alone = not self._in_flight
        self._in_flight.add(outcome)
        outcome.add_done_callback(self._in_flight.discard)
        self._open.append((prepared, topic, rest, outcome))
        if alone:
            # In this very task: another one would cost it turns of the loop.
            closed, self._open = self._open, []
            try:
                await self._send_all(closed)
            except asyncio.CancelledError:
                outcome.cancel()
                raise
        elif len(self._open) >= self._batch:
            await self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(
                self._buffer.hold(), self._close
            )
        return outcome

    async def flush(self) -> None:
        """Seal what waits, and return once all of it is with the client; its caller's end changes nothing."""
        self._close()
        if self._tasks:
            await asyncio.shield(asyncio.gather(*self._tasks))

    def end(self) -> None:
        """Take no more records."""
        self._ended = True

    def _close(self) -> None:
        """Close the open batch; a task of its own seals and sends it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._open:
            closed, self._open = self._open, []
            task = asyncio.create_task(self._send_all(closed))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send_all(self, records: list[Record]) -> None:
        async with self._order:
            self._buffer.filled()
            try:
                tokens = await signed(
                    self._signer, self._signer.tokens, [record[0] for record in records]
                )
            except Exception as error:
                emit(
                    "producer.unsent",
                    "%d records not sent: %s",
                    len(records),
                    type(error).__name__,
                )
                return self._fail(records, error)
            for record, token in zip(records, tokens, strict=True):
                prepared, topic, rest, outcome = record
                try:
                    if isinstance(token, MalformedMessage):
                        raise token
                    message, headers = prepared.message, sealed_headers(prepared, token)
                    sent = await self._client.send(
                        topic, message.body, key=message.key, headers=headers, **rest
                    )
                    sent.add_done_callback(partial(_tell, outcome))
                except Exception as error:
                    self._fail([record], error)

    def _fail(self, records: list[Record], error: BaseException) -> None:
        self.failure = self.failure or error
        for *_, outcome in records:
            if not outcome.done():
                outcome.set_exception(error)


def _tell(outcome: Outcome, sent: Outcome) -> None:
    """Pass the outcome of the client's future on."""
    if outcome.done():
        return
    if sent.cancelled():
        outcome.cancel()
    elif (error := sent.exception()) is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(sent.result())


PATIENCE: Final = 10.0
"""Most seconds that an answer waits for the broker."""


class Replies(TopicReplies):
    """Sends signed answers to the topic in reply-to, each to be awaited."""

    _producer: Producer

    async def send(
        self, _verified: Verified, topic: str, body: bytes, headers: NativeHeaders
    ) -> Any:
        """Send an answer, and return its metadata once the broker has acknowledged it.

        Raises:
            RetryLater: it cannot be sent now.
            aiokafka.errors.KafkaError: the broker refuses it, or the topic does not exist.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._producer.send_and_wait(topic, body, headers=headers)
        except UnknownTopicOrPartitionError:
            raise
        except (
            ProducerFatalError,
            Unavailable,
            KafkaTimeoutError,
            TimeoutError,
        ) as error:
            raise later(type(error).__name__) from error
        except KafkaError as error:
            if not error.retriable:
                raise
            raise later(type(error).__name__) from error
