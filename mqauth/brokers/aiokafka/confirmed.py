"""Dead letters and audit records on topics; each call waits until the broker has confirmed the record."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

import aiokafka
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from mqauth.audit.record import AuditRecord
from mqauth.brokers.aiokafka.client import check_producer, has_topic, is_idempotent, waits_for_all
from mqauth.brokers.aiokafka.translate import carries
from mqauth.brokers.log.confirmed import MAX_BLOCK, ConfirmingClient, TopicAudit, TopicLetters
from mqauth.errors import require
from mqauth.flow import arun
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
        carries=carries,
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
        super().__init__(client, confirming(client, timeout), topic, timeout, oversize_letters)

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

    def __init__(self, client: aiokafka.AIOKafkaProducer, topic: str, *, timeout: float = 30) -> None:
        super().__init__(client, confirming(client, timeout), topic, timeout)

    async def write(self, record: AuditRecord, /) -> None:
        """Send one record and return once the broker has confirmed it.

        Raises:
            Unavailable: ``audit_unavailable``: refused, timed out or not reachable.
        """
        await arun(self.writing(record))
