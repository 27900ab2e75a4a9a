"""Dead letters and audit records on topics; each call waits until the broker has confirmed the record.

``TransactionalDeadLetters`` makes the calls for dead letters and offsets in one Kafka transaction. A transaction
runs on a thread of its own, as on every client; the calls are made on the event loop, where the producer lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Final

import aiokafka
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    ProducerFenced,
    RecordListTooLargeError,
)

from mqauth.audit.record import AuditRecord
from mqauth.brokers.aiokafka.client import (
    check_producer,
    fatal_error,
    has_topic,
    is_idempotent,
    transactional_id,
    waits_for_all,
)
from mqauth.brokers.aiokafka.membership import fence
from mqauth.brokers.log.confirmed import (
    MAX_BLOCK,
    ConfirmingClient,
    TopicAudit,
    TopicLetters,
)
from mqauth.brokers.log.transaction import TransactionalLetters
from mqauth.delivery.start import Committed
from mqauth.errors import require
from mqauth.flow import R, arun
from mqauth.letters.dead_letter import DeadLetter, Oversize

TOO_LARGE: Final = (MessageSizeTooLargeError, RecordListTooLargeError)


def confirming(client: Any, timeout: float) -> ConfirmingClient:
    """Return the calls of an ``AIOKafkaProducer`` for confirmed records.

    Raises:
        ConfigurationError: it does not wait for all replicas, is idempotent, or serializes.
    """
    check_producer(client)
    # After a record that the broker refuses the numbers of an idempotent producer have a gap: it fails for good.
    require(
        waits_for_all(client) and not is_idempotent(client),
        'confirms need an AIOKafkaProducer of their own with acks="all" and enable_idempotence=False',
    )

    async def send(topic: str, **record: Any) -> list[asyncio.Future[Any]]:
        # In a list: the future itself would be awaited here.
        async with asyncio.timeout(min(timeout, MAX_BLOCK)):
            return [await client.send(topic, **record)]

    async def wait(sent: list[asyncio.Future[Any]], seconds: float) -> None:
        await asyncio.wait_for(asyncio.shield(sent[0]), seconds)

    return ConfirmingClient(
        send=send,
        wait=wait,
        over=lambda sent: sent[0].done(),
        has=partial(has_topic, client),
        too_large=TOO_LARGE,
        failed=(KafkaError, TimeoutError, ValueError, TypeError, AssertionError, OSError),
    )


class DeadLetters(TopicLetters):
    """Sends dead letters to one topic and waits for the broker's confirm.

    Args:
        client: a started ``AIOKafkaProducer(acks="all")`` for dead letters alone, not idempotent: one letter that
            the broker refuses would make it fail for good.
        topic: the dead-letter topic; let its ``max.message.bytes`` be above the source's, and the client's
            ``max_request_size`` too.
        timeout: seconds to wait for the confirm.
        oversize_letters: a message that fits in no other form is dead-lettered by ``"reference"``
            (coordinates, digest, sizes) or deferred, ``"stop"``.

    Raises:
        ConfigurationError: the client is set up otherwise, or a setting is unknown.
    """

    def __init__(
        self,
        client: aiokafka.AIOKafkaProducer,
        topic: str,
        timeout: float = 30,
        *,
        oversize_letters: Oversize = "reference",
    ) -> None:
        super().__init__(
            client, confirming(client, timeout), topic, timeout, oversize_letters
        )

    async def publish(self, letter: DeadLetter, /) -> None:
        """Send a letter in the first of its forms that fits, and return once the broker has confirmed it.

        Raises:
            Unavailable: ``dead_letter_unavailable``: refused, timed out or not reachable.
        """
        await arun(self.publishing(letter))


class AuditTopic(TopicAudit):
    """An audit sink that sends each record as JSON, keyed by instance, and waits for the broker's confirm.

    The records have no ``prev`` and ``hash``: only the audit file is chained. Those of one instance are on one
    partition, in order. A topic with ``cleanup.policy=compact`` would lose all but the last of them.

    Args:
        client: a started ``AIOKafkaProducer(acks="all")``, as for ``DeadLetters``, whose client may be used.
        topic: the audit topic.
        timeout: seconds to wait for the confirm.

    Raises:
        ConfigurationError: the client is set up otherwise, or a setting is wrong.
    """

    def __init__(
        self, client: aiokafka.AIOKafkaProducer, topic: str, *, timeout: float = 30
    ) -> None:
        super().__init__(client, confirming(client, timeout), topic, timeout)

    async def write(self, record: AuditRecord, /) -> None:
        """Send one record and return once the broker has confirmed it.

        Raises:
            Unavailable: ``audit_unavailable``: refused, timed out or not reachable.
        """
        await arun(self.writing(record))


class TransactionalDeadLetters(TransactionalLetters):
    """Dead letters that are written if and only if the offsets of their records are committed.

    Give it to an ``aiokafka.Consumer`` whose client has ``isolation_level="read_committed"``, and read the dead
    letters with that too. Once audited, a letter waits in memory; with the next commit it is written, in order and
    in the first of its forms that fits, together with the offsets. A transaction that fails is made again with
    the same letters; meanwhile their partitions are paused, and nothing of them is committed. Needs Kafka 2.5 or
    newer.

    Args:
        make_client: makes an ``AIOKafkaProducer(transactional_id=...)`` for these letters alone, which is not
            started; called at once, and after each failed transaction. The id is one for each running consumer and
            the same after its restart: a second instance with it shuts the first one out. Its clients are started
            and stopped here.
        topic: the dead-letter topic; let its ``max.message.bytes`` be above the source's, and the client's
            ``max_request_size`` too.
        timeout: seconds to wait for the broker to take the letters; longer ones are shown as stalled.

    Raises:
        ConfigurationError: the client has no ``transactional_id``, or a setting is out of its limits.
    """

    too_large = TOO_LARGE

    def __init__(
        self,
        make_client: Callable[[], aiokafka.AIOKafkaProducer],
        topic: str,
        timeout: float = 30,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing: list[Future[None]] = []
        super().__init__(make_client, topic, timeout)
        self.longest = self.client._txn_manager.transaction_timeout_ms / 1000
        # The client is made on the loop too.
        self._make = lambda: on_loop(self._loop, _called(make_client), timeout)

    def checked(self, client: Any) -> Any:
        """Return a new client, with the settings that it must have.

        Raises:
            ConfigurationError: it has no ``transactional_id``, or a serializer.
        """
        check_producer(client)
        require(
            transactional_id(client),
            "transactional dead letters need an AIOKafkaProducer(transactional_id=...)",
        )
        fence(client)
        return client

    def made(self, work: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        """Make a call of the client on its event loop, from the thread of a transaction."""
        return on_loop(self._loop, work(*args, **named), self.timeout)

    def start(self) -> None:
        """Start the client; a transaction that its predecessor left open is ended first."""
        self.made(self.client.start)

    def confirmed(self, sent: Any) -> None:
        """Return once the broker has a record; raise why not, after ``timeout`` at most."""
        self.made(_outcome, sent)

    def send_offsets(self, offsets: Mapping[Any, Committed], group: Any) -> None:
        """Add offsets to the transaction, by partition."""
        self.made(self.client.send_offsets_to_transaction, dict(offsets), group)

    def fenced(self, error: BaseException) -> bool:
        """Return whether another producer has taken over the id, or the broker has ended a long transaction."""
        first = None if self.client is None else fatal_error(self.client)
        return isinstance(error, ProducerFenced) or isinstance(first, ProducerFenced)

    def close_client(self, client: Any) -> None:
        """Have a client closed within seconds, whatever its state."""
        self._closing.append(asyncio.run_coroutine_threadsafe(_stop(client), self._loop))

    async def closed(self) -> None:
        """Return once all clients are closed."""
        await asyncio.gather(*map(asyncio.wrap_future, self._closing))


def on_loop(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, R], timeout: float
) -> R:
    """Run a coroutine on another thread's loop, and return what it returns.

    Raises:
        TimeoutError: it took longer; it is cancelled.
    """
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result(timeout)
    except TimeoutError:
        future.cancel()
        raise


async def _called(make_client: Callable[[], Any]) -> Any:
    return make_client()


async def _outcome(sent: asyncio.Future[Any]) -> Any:
    return await asyncio.shield(sent)


async def _stop(client: Any) -> None:
    with suppress(Exception):
        # Most seconds in which a producer may end in order.
        async with asyncio.timeout(1.0):
            return await client.stop()  # type: ignore[no-any-return]
    # It waits for records that cannot be sent: what it leaves behind is ended one by one.
    with suppress(Exception):
        await client._sender.close()
    with suppress(Exception):
        await client.client.close()
