"""Dead letters and audit records on topics; each call waits until the broker has confirmed the record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from mqauth.audit.record import AuditRecord
from mqauth.brokers.confluent.client import check_producer, error_of, waits_for_all
from mqauth.brokers.confluent.translate import carries
from mqauth.brokers.dead_letters import Unconfirmed, first_taken
from mqauth.brokers.log.records import dead_letter_headers, record_size
from mqauth.errors import Cause, ConfigurationError, Unavailable
from mqauth.flow import run
from mqauth.letters.dead_letter import DeadLetter, Oversize, check_oversize, undelivered
from mqauth.wire import strict_json as strictjson
from mqauth.wire.message import Message

ROUND: Final = 0.05
"""Most seconds of one ``poll`` for a report: another thread may have served it."""
_TOO_LARGE: Final = frozenset((KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE))
_ERRORS: Final = (KafkaException, BufferError, ValueError, TypeError, RuntimeError)


class TooLargeError(Exception):
    """A record is too large for the client or the broker."""


class DeadLetters:
    """Sends dead letters to one topic and waits for the broker's confirm.

    Args:
        client: a ``confluent_kafka.Producer`` for dead letters alone, with ``"acks": "all"``, the default.
        topic: the dead-letter topic; let its ``max.message.bytes`` be above the source's, and the client's
            ``message.max.bytes`` too.
        timeout: seconds to wait for the confirm.
        config: the settings that the client was made with, which it does not tell.
        oversize_letters: a message that fits in no other form is dead-lettered by ``"reference"``
            (coordinates, digest, sizes) or deferred, ``"stop"``.

    Raises:
        ConfigurationError: the client is set up otherwise, or a setting is unknown.
    """

    def __init__(
        self,
        client: confluent_kafka.Producer,
        topic: str,
        timeout: float = 30,
        *,
        config: Mapping[str, Any],
        oversize_letters: Oversize = "reference",
    ) -> None:
        check_oversize(oversize_letters)
        self.client: Any = client
        self._records = Confirmed(client, topic, timeout, config)
        self.name = topic
        self._oversize = oversize_letters

    def publish(self, letter: DeadLetter, /) -> None:
        """Send a letter in the first of its forms that fits, and return once the broker has confirmed it.

        Raises:
            Unavailable: ``dead_letter_unavailable``: refused, timed out or not reachable.
        """
        send = partial(self._send, letter.id)
        run(first_taken(letter, send, carries, can_exist, TooLargeError, self._oversize))

    def _send(self, letter: str, form: Message) -> None:
        headers = dead_letter_headers(form.headers)
        try:
            self._records.send(letter, value=form.body, key=form.key, headers=headers)
        except _ERRORS as error:
            raise undelivered(_named(error)) from error


def can_exist(form: Message) -> bool:
    """Return whether a form can be sent: a record must have a key or a value."""
    return form.body is not None or form.key is not None


class Confirmed:
    """Sends records to one topic and waits for the broker's confirm; several threads may do so at once.

    Args:
        client: a ``confluent_kafka.Producer`` with ``"acks": "all"``.
        topic: the topic.
        timeout: seconds to wait for a confirm.
        config: the settings that the client was made with.

    Raises:
        ConfigurationError: the client is set up otherwise, or a setting is wrong.
    """

    def __init__(
        self, client: confluent_kafka.Producer, topic: str, timeout: float, config: Mapping[str, Any]
    ) -> None:
        config = check_producer(client, config)
        if not waits_for_all(config):
            raise ConfigurationError('confirms need a Producer of their own with "acks": "all"')
        if config.get("transactional.id"):
            raise ConfigurationError("confirms need a Producer without transactional.id: nobody would commit")
        if timeout <= 0 or not topic:
            raise ConfigurationError("a topic must be named, and timeout must be above 0 seconds")
        self._client: Any = client
        self._topic = topic
        self._timeout = timeout
        self._unconfirmed = Unconfirmed()

    def send(self, name: str, **record: Any) -> None:
        """Send a record, and return once the broker has confirmed it.

        Args:
            name: the record's id.
            record: what the client's ``produce`` takes.

        Raises:
            TooLargeError: it is too large for the client or the broker.
            Exception: the client's own; without a confirm a record does not exist.
        """
        # The client keeps trying after our timeout. So a record that is still open is waited for again: sending it
        # twice would write it twice.
        report = self._unconfirmed.take(name) or self._produce(record)
        until = time.monotonic() + self._timeout
        try:
            while not report.told and (left := until - time.monotonic()) > 0:
                self._client.poll(min(left, ROUND))
        finally:
            if not report.told:
                self._unconfirmed.keep(name, report, record_size(**record))
        report.check()

    def _produce(self, record: dict[str, Any]) -> Report:
        report = Report()
        try:
            self._client.produce(self._topic, on_delivery=report.tell, **record)
        except KafkaException as error:
            report.tell(error_of(error), None)
        return report


class Report:
    """The delivery report of one record."""

    def __init__(self) -> None:
        self.told = False
        self._error: KafkaError | None = None

    def tell(self, error: KafkaError | None, _message: Any) -> None:
        """Note the report; called by the client."""
        self._error = error
        self.told = True

    def check(self) -> None:
        """Return if the record is confirmed.

        Raises:
            TooLargeError: it is too large for the client or the broker.
            KafkaException: it was refused, or the broker has not answered yet.
        """
        if not self.told:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        if self._error is not None and self._error.code() in _TOO_LARGE:
            raise TooLargeError(self._error.name())
        if self._error is not None:
            raise KafkaException(self._error)


class AuditTopic:
    """An audit sink that sends each record as JSON, keyed by instance, and waits for the broker's confirm.

    The records have no ``prev`` and ``hash``: only the audit file is chained. Those of one instance are on one
    partition, in order. A topic with ``cleanup.policy=compact`` would lose all but the last of them.

    Args:
        client: a ``confluent_kafka.Producer`` with ``"acks": "all"``, as for ``DeadLetters``, whose client may be
            used.
        topic: the audit topic.
        timeout: seconds to wait for the confirm.
        config: the settings that the client was made with, which it does not tell.

    Raises:
        ConfigurationError: the client is set up otherwise, or a setting is wrong.
    """

    def __init__(
        self, client: confluent_kafka.Producer, topic: str, *, timeout: float = 30, config: Mapping[str, Any]
    ) -> None:
        self.client: Any = client
        self._records = Confirmed(client, topic, timeout, config)
        self.name = topic

    def write(self, record: AuditRecord, /) -> None:
        """Send one record and return once the broker has confirmed it.

        Raises:
            Unavailable: ``audit_unavailable``: refused, timed out or not reachable.
        """
        key = record.instance.encode("utf-8", "replace")
        try:
            self._records.send(record.id, value=strictjson.dumps(record.as_dict()), key=key)
        except (*_ERRORS, TooLargeError) as error:
            raise Unavailable(Cause.AUDIT_UNAVAILABLE, _named(error)) from error


def _named(error: BaseException) -> str:
    return error_of(error).name() if isinstance(error, KafkaException) else type(error).__name__
