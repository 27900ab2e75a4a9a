"""Dead letters and audit records on Kafka, each durable once the broker has confirmed it."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from kafka import KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError

from mqauth.audit.record import AuditRecord
from mqauth.brokers.dead_letters import Unconfirmed, first_taken
from mqauth.brokers.kafka.client import producer_settings
from mqauth.brokers.kafka.translate import carries
from mqauth.brokers.log.records import dead_letter_headers, record_size
from mqauth.errors import Cause, ConfigurationError, Unavailable
from mqauth.flow import run
from mqauth.letters.dead_letter import DeadLetter, Oversize, check_oversize, undelivered
from mqauth.wire import strict_json as strictjson
from mqauth.wire.message import Message

MAX_BLOCK: Final = 5.0
"""Most seconds that a record waits for metadata of its topic: a missing topic must not hold up the others."""
_FAILED: Final = (KafkaError, ValueError, TypeError, OSError)


class Confirmed:
    """Sends records to one topic and waits for the broker's confirm; several threads may do so at once.

    Args:
        client: a ``KafkaProducer(acks="all", enable_idempotence=False)``. Its ``max_block_ms`` is lowered to 5 s
            at most.
        topic: the topic.
        timeout: seconds to wait for a confirm.

    Raises:
        ConfigurationError: the client is set up otherwise, or a setting is wrong.
    """

    def __init__(self, client: KafkaProducer, topic: str, timeout: float) -> None:
        config = producer_settings(client)
        # One record that the broker refuses makes an idempotent producer of kafka-python fail for good (decision
        # 50).
        if config["enable_idempotence"] or config["acks"] not in (-1, "all"):
            raise ConfigurationError(
                'confirms need a KafkaProducer of their own with acks="all" and enable_idempotence=False'
            )
        if timeout <= 0 or not topic:
            raise ConfigurationError("a topic must be named, and timeout must be above 0 seconds")
        config["max_block_ms"] = min(config["max_block_ms"], int(min(timeout, MAX_BLOCK) * 1000))
        self._client: Any = client
        self._topic = topic
        self._timeout = timeout
        self._unconfirmed = Unconfirmed()

    def send(self, name: str, **record: Any) -> None:
        """Send a record, and return once the broker has confirmed it.

        Args:
            name: the record's id.
            record: keywords of the client's ``send``.

        Raises:
            Exception: the client's own; without a confirm a record does not exist.
        """
        # The client keeps trying after our timeout. So a record that is still open is waited for again: sending it
        # twice would write it twice.
        future = self._unconfirmed.take(name) or self._client.send(self._topic, **record)
        try:
            future.get(timeout=self._timeout)
        finally:
            if not future.is_done:
                self._unconfirmed.keep(name, future, record_size(**record))


class DeadLetters:
    """Sends dead letters to one topic and waits for the broker's confirm.

    Args:
        client: a ``KafkaProducer(acks="all", enable_idempotence=False)`` for dead letters alone: one letter that
            the broker refuses makes an idempotent client fail for good. Its ``max_block_ms`` is lowered to 5 s at
            most. Give it ``allow_auto_create_topics=False`` unless the broker may create the topic.
        topic: the dead-letter topic; its ``max.message.bytes`` should be above the source's.
        timeout: seconds to wait for the confirm.
        oversize_letters: a message that fits in no other form is dead-lettered by ``"reference"``
            (coordinates, digest, sizes) or deferred, ``"stop"``.

    Raises:
        ConfigurationError: the client is set up otherwise, or a setting is unknown.
    """

    def __init__(
        self,
        client: KafkaProducer,
        topic: str,
        timeout: float = 30,
        *,
        oversize_letters: Oversize = "reference",
    ) -> None:
        check_oversize(oversize_letters)
        self.client: Any = client
        self._records = Confirmed(client, topic, timeout)
        self.name = topic
        self._oversize = oversize_letters

    def publish(self, letter: DeadLetter, /) -> None:
        """Send a letter in the first of its forms that fits, and return once the broker has confirmed it.

        Raises:
            Unavailable: ``dead_letter_unavailable``: refused, timed out or not reachable.
        """
        send = partial(self._send, letter.id)
        run(first_taken(letter, send, carries, can_exist, MessageSizeTooLargeError, self._oversize))

    def _send(self, letter: str, form: Message) -> None:
        headers = dead_letter_headers(form.headers)
        try:
            self._records.send(letter, value=form.body, key=form.key, headers=headers)
        except MessageSizeTooLargeError:
            raise
        except _FAILED as error:
            raise undelivered(type(error).__name__) from error


class AuditTopic:
    """An audit sink that sends each record as JSON, keyed by instance, and waits for the broker's confirm.

    The records have no ``prev`` and ``hash``: only the audit file is chained. Those of one instance are on one
    partition, in order. A topic with ``cleanup.policy=compact`` would lose all but the last of them.

    Args:
        client: a ``KafkaProducer(acks="all", enable_idempotence=False, allow_auto_create_topics=False)``, as for
            ``DeadLetters``, whose client may be used. Its ``max_block_ms`` is lowered to 5 s at most.
        topic: the audit topic.
        timeout: seconds to wait for the confirm.

    Raises:
        ConfigurationError: the client is set up otherwise, or a setting is wrong.
    """

    def __init__(self, client: KafkaProducer, topic: str, *, timeout: float = 30) -> None:
        self.client: Any = client
        self._records = Confirmed(client, topic, timeout)
        self.name = topic

    def write(self, record: AuditRecord, /) -> None:
        """Send one record and return once the broker has confirmed it.

        Raises:
            Unavailable: ``audit_unavailable``: refused, timed out or not reachable.
        """
        key = record.instance.encode("utf-8", "replace")
        try:
            self._records.send(record.id, value=strictjson.dumps(record.as_dict()), key=key)
        except _FAILED as error:
            raise Unavailable(Cause.AUDIT_UNAVAILABLE, type(error).__name__) from error


def can_exist(form: Message) -> bool:
    """Return whether kafka-python sends such a record: it refuses one without key and value."""
    return form.body is not None or form.key is not None
