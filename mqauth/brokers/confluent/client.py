"""Checks of the confluent-kafka objects that users give us, and the meaning of their error codes.

A client of confluent-kafka does not tell its settings. Of a consumer, the one setting that matters is found out
by a call; of a producer, the user gives us the settings beside the client.

It also has records as ``Message``, the ids of their log, and a verdict for your own poll loop.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import confluent_kafka
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaError, KafkaException

from mqauth.brokers.dead_letters import LOOK
from mqauth.brokers.judge import AsyncJudgement, Judgement, ajudged, judged
from mqauth.brokers.log.records import (
    NO_LOG,
    Log,
    PoisonRecordError,
    RecordPlace,
    unreadable,
)
from mqauth.errors import ConfigurationError, refusing, require
from mqauth.judging.pipeline import Pipeline
from mqauth.logs import emit
from mqauth.wire.message import HeaderValue, Message

_METADATA: Final = b"CGMDv2:"
"""How librdkafka 1.9 to 2.x begins a group's metadata; a generation of 4 bytes and the group's name follow."""
_NAMES: Final = """
    _ALL_BROKERS_DOWN _ASSIGNMENT_LOST _DESTROY_BROKER _IN_PROGRESS _MAX_POLL_EXCEEDED _NO_OFFSET _OUTDATED
    _PREV_IN_PROGRESS _RESOLVE _RETRY _STATE _TIMED_OUT _TIMED_OUT_QUEUE _TRANSPORT _UNKNOWN_PARTITION
    _UNKNOWN_TOPIC _WAIT_CACHE _WAIT_COORD BROKER_NOT_AVAILABLE COORDINATOR_LOAD_IN_PROGRESS
    COORDINATOR_NOT_AVAILABLE FENCED_LEADER_EPOCH FENCED_MEMBER_EPOCH FETCH_SESSION_ID_NOT_FOUND
    ILLEGAL_GENERATION INCONSISTENT_TOPIC_ID INVALID_FETCH_SESSION_EPOCH KAFKA_STORAGE_ERROR
    LEADER_NOT_AVAILABLE MEMBER_ID_REQUIRED NETWORK_EXCEPTION NOT_COORDINATOR NOT_ENOUGH_REPLICAS
    NOT_ENOUGH_REPLICAS_AFTER_APPEND NOT_LEADER_FOR_PARTITION OFFSET_NOT_AVAILABLE REBALANCE_IN_PROGRESS
    REPLICA_NOT_AVAILABLE REQUEST_TIMED_OUT STALE_MEMBER_EPOCH THROTTLING_QUOTA_EXCEEDED UNKNOWN_LEADER_EPOCH
    UNKNOWN_MEMBER_ID UNKNOWN_TOPIC_ID UNKNOWN_TOPIC_OR_PART UNSTABLE_OFFSET_COMMIT
"""
# A client of before 2.15 has no code for some of them, and never gives those.
COMES_AGAIN: Final = frozenset(
    getattr(KafkaError, name) for name in _NAMES.split() if hasattr(KafkaError, name)
)
"""Codes of errors after which the same call may succeed; ``KafkaError.retriable`` knows transactions only."""
PASSES: Final = COMES_AGAIN | {KafkaError._DESTROY}
"""Those, and that of a client that is being closed: nobody was refused."""
REBALANCING: Final = frozenset(("ILLEGAL_GENERATION", "REBALANCE_IN_PROGRESS"))
"""Names of errors of a commit that is refused while a rebalance goes on, or after one that we were not told of."""


class Membership(NamedTuple):
    """A consumer's membership of its group.

    Args:
        group: the group's id.
        generation: the number of the last rebalance, -1 while the consumer is no member.
    """

    group: str
    generation: int


def check_consumer(
    client: Any, config: Mapping[str, Any], transactional: bool = False
) -> Mapping[str, Any]:
    """Refuse a consumer that commits by itself, or deserializes before verification; return its settings.

    Args:
        client: the consumer.
        config: the settings it was made with.
        transactional: whether its letters are committed in one transaction with its offsets.

    Raises:
        ConfigurationError: it does, it is of another kind, or the settings are not its own.
    """
    _check_kind(client, confluent_kafka.Consumer, confluent_kafka.DeserializingConsumer)
    # Storing an empty list of offsets fails with _INVALID_ARG where enable.auto.offset.store is on, and asks the
    # broker nothing. Without stored offsets enable.auto.commit has nothing to commit, on or off.
    with refusing(
        KafkaException,
        'set "enable.auto.offset.store" to False: offsets are committed when records are settled',
    ):
        client.store_offsets(offsets=[])
    settings, group = _dotted(config), membership_of(client).group
    another = "config must be the mapping that the Consumer was made with: its group.id is another one"
    require(settings.get("group.id") == group, another)
    # It would read a committed offset of a transaction that is still open (KIP-447).
    open_too = 'transactional dead letters need "isolation.level": "read_committed" in the consumer'
    require(
        not transactional or settings.get("isolation.level") in (None, "read_committed"),
        open_too,
    )
    return settings


def check_producer(client: Any, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse a producer that serializes after signing; return its settings, with names in dots.

    Args:
        client: the producer.
        config: the settings it was made with.

    Raises:
        ConfigurationError: it is of another kind, or serializes after signing.
    """
    _check_kind(client, confluent_kafka.Producer, confluent_kafka.SerializingProducer)
    return _dotted(config)


def waits_for_all(config: Mapping[str, Any]) -> bool:
    """Return whether all replicas in sync acknowledge a producer's records, as they do by default."""
    return all(
        config.get(name, "all") in (-1, "-1", "all")
        for name in ("acks", "request.required.acks")
    )


def is_idempotent(config: Mapping[str, Any]) -> bool:
    """Return whether a producer's own retries write no second copy; librdkafka's default is that they may."""
    return (
        bool(config.get("transactional.id"))
        or str(config.get("enable.idempotence")).lower() == "true"
    )


def membership_of(client: Any) -> Membership:
    """Return a consumer's group and generation, decoded from librdkafka's own encoding.

    Raises:
        ConfigurationError: the encoding is not the one of librdkafka 2.
    """
    encoded = bytes(client.consumer_group_metadata())
    begin = len(_METADATA) + 4
    found = encoded[: len(_METADATA)]
    require(
        found == _METADATA,
        f"the group's metadata must begin with {_METADATA!r}, not {found!r}",
    )
    generation = int.from_bytes(
        encoded[len(_METADATA) : begin], sys.byteorder, signed=True
    )
    return Membership(encoded[begin:].partition(b"\0")[0].decode("utf-8"), generation)


def error_of(raised: BaseException) -> KafkaError:
    """Return the error that a ``KafkaException`` carries."""
    error = raised.args[0] if raised.args else None
    return error if isinstance(error, KafkaError) else KafkaError(KafkaError.UNKNOWN)


def name_of(error: BaseException) -> str:
    """Return the name of an error: of the client's code, else of its type."""
    return (
        error_of(error).name()
        if isinstance(error, KafkaException)
        else type(error).__name__
    )


def _dotted(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of a client, with names in dots."""
    require(
        isinstance(config, Mapping),
        "config must be the mapping that the client was made with",
    )
    settings = {name.replace("_", "."): value for name, value in config.items()}
    return settings | dict(settings.get("default.topic.config", {}))


def _check_kind(client: Any, kind: type, refused: type) -> None:
    name = f"{type(client).__module__}.{type(client).__name__}"
    wanted = isinstance(client, kind) and not isinstance(client, refused)
    require(wanted, f"a confluent_kafka.{kind.__name__} is needed, not {name}")


def has_topic(client: Any, topic: str) -> bool:
    """Return whether the broker has a topic; all are asked for, so that none is made.

    Raises:
        KafkaException: it does not answer.
    """
    return topic in client.list_topics(timeout=LOOK).topics


_UNREADABLE: Final = frozenset(
    (KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError.INVALID_MSG)
)

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
            # Stands for headers that cannot be read: it makes the message malformed, and keeps its body.
            headers = (None,)
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
            # Most seconds to wait for the cluster's id, which comes with the first metadata.
            if hasattr(self._client, "cluster_id"):
                cluster = self._client.cluster_id(timeout=5.0)
            else:
                # Before 2.14 only the metadata of all topics have it.
                cluster = self._client.list_topics(timeout=5.0).cluster_id
            self._log = Log(cluster or None)
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


async def ajudge(
    guard: Pipeline, record: Any, *, scope: str, log: Log = NO_LOG
) -> AsyncJudgement:
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
        raise ConfigurationError(
            f"the record is an error of the client, {error.name()}: look at error() first"
        )
    return message
