"""Records of confluent-kafka as ``Message``, the ids of their log, and a verdict for your own poll loop."""

from __future__ import annotations

import operator
from typing import Any, Final

import confluent_kafka
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaError, KafkaException

from mqauth.brokers.confluent.client import COMES_AGAIN
from mqauth.brokers.judge import AsyncJudgement, Judgement, ajudged, judged
from mqauth.brokers.log.errors import PoisonRecordError
from mqauth.brokers.log.records import NO_LOG, Log, RecordPlace, unreadable
from mqauth.errors import ConfigurationError, require
from mqauth.judging.pipeline import Pipeline
from mqauth.logs import emit
from mqauth.wire.message import HeaderValue, Message

CLUSTER_TIMEOUT: Final = 5.0
"""Most seconds to wait for the cluster's id, which comes with the first metadata."""
_UNREADABLE: Final = frozenset((KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError.INVALID_MSG))
_NO_HEADERS: Final = (None,)
"""Stands for headers that cannot be read: it makes the message malformed, and keeps its body."""

# A call in Python code, ``record.headers()``, notices the error only while the interpreter has not specialised it:
# from the ninth or so call on, CPython 3.11 looks at the result alone. A call from C is always checked for both.
_CALL_HEADERS: Final = operator.methodcaller("headers")


def from_native(record: Any, *, scope: str, log: Log = NO_LOG) -> Message:
    """Return the message of a ``confluent_kafka.Message``; nothing that the record holds makes this raise.

    Args:
        record: as ``Consumer.poll`` or ``consume`` returned it.
        scope: the consumer group.
        log: the id of its cluster (``Logs.of``).

    Raises:
        ConfigurationError: the record is of another client.
    """
    kind = type(record)
    require(
        isinstance(record, confluent_kafka.Message),
        f"a confluent_kafka.Message is needed, not {kind.__module__}.{kind.__name__}",
    )
    return translated(record, RecordPlace(record.topic(), record.partition(), scope, log))


def translated(record: Any, place: RecordPlace) -> Message:
    """Return the message of a record of this place; nothing that the record holds makes this raise."""
    try:
        kind, stamp = record.timestamp()
        # At a header name that is not UTF-8, which anybody may send, confluent-kafka 2.16 returns a list with a
        # null pointer in it although it has set an error; touching that list kills the process. The list is kept,
        # and the next call returns it without an error. So the headers are asked for once, and replaced when that
        # fails.
        try:
            headers = _CALL_HEADERS(record)
        except Exception:
            record.set_headers([])
            headers = _NO_HEADERS
        return place.message(
            record.offset(),
            stamp,
            kind == TIMESTAMP_LOG_APPEND_TIME,
            record.key(),
            record.value(),
            headers,
            record,
        )
    except Exception:
        return unreadable(record)


def carries(name: str, value: HeaderValue) -> bool:
    """Return whether confluent-kafka can send a header again unchanged."""
    return isinstance(value, bytes) and is_sendable(name)


def is_sendable(name: str) -> bool:
    """Return whether confluent-kafka can send a header's name."""
    # Version 2.16 cuts a name at a NUL, and ends the process (SIGSEGV) at a lone surrogate.
    try:
        return b"\0" not in name.encode("utf-8")
    except UnicodeEncodeError:
        return False


def heed(record: Any) -> None:
    """Act on an error that the client returned in place of a record.

    Raises:
        PoisonRecordError: a record cannot be parsed.
        KafkaException: the broker refuses for good.
    """
    error = record.error()
    if error.code() == KafkaError._PARTITION_EOF:
        return
    if error.code() in _UNREADABLE:
        place = f"{record.topic()}-{record.partition()}"
        raise PoisonRecordError(
            f"{place}: the batch at offset {record.offset()} cannot be parsed ({error.name()})"
        )
    if error.code() not in COMES_AGAIN:
        raise KafkaException(error)
    emit("client.poll_failed", "consume failed with %s; trying again", error.name())


class Logs:
    """Returns the id of a client's cluster, for which the broker is asked once.

    confluent-kafka does not tell the id of a topic (KIP-516), so a topic that was deleted and made anew is taken
    for the same one.

    Args:
        client: a ``confluent_kafka.Consumer``.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._log: Log | None = None

    def of(self, _topic: str = "") -> Log:
        """Return the ids of a topic: the cluster's alone.

        Raises:
            KafkaException: the broker has not told its cluster's id yet.
        """
        if self._log is None:
            self._log = Log(self._client.cluster_id(timeout=CLUSTER_TIMEOUT) or None)
        return self._log


def judge(guard: Pipeline, record: Any, *, scope: str, log: Log = NO_LOG) -> Judgement:
    """Judge one ``confluent_kafka.Message``; an accepted one is claimed.

    Args:
        guard: the pipeline.
        record: as ``Consumer.poll`` or ``consume`` returned it, with no ``error()``.
        scope: the consumer group.
        log: the id of its cluster, ``Logs(client).of(record.topic())``. Without it two clusters behind one replay
            store are one place.

    Raises:
        ConfigurationError: a plug-in is asynchronous, or the record is of another client, or an error.
    """
    return judged(guard, _checked(record, scope, log))


async def ajudge(guard: Pipeline, record: Any, *, scope: str, log: Log = NO_LOG) -> AsyncJudgement:
    """Judge one ``confluent_kafka.Message`` in an event loop; an accepted one is claimed.

    Args:
        guard: the pipeline.
        record: as ``AIOConsumer.poll`` or ``consume`` returned it, with no ``error()``.
        scope: the consumer group.
        log: the id of its cluster, ``Log(await client.cluster_id())``. Without it two clusters behind one replay
            store are one place.

    Raises:
        ConfigurationError: the record is of another client, or an error.
    """
    return await ajudged(guard, _checked(record, scope, log))


def _checked(record: Any, scope: str, log: Log) -> Message:
    """Return the message of a record that is to be judged.

    Raises:
        ConfigurationError: it is of another client, or an error.
    """
    message = from_native(record, scope=scope, log=log)
    if (error := record.error()) is not None:
        raise ConfigurationError(f"the record is an error of the client, {error.name()}: look at error() first")
    return message
