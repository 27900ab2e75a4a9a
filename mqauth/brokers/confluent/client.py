"""Checks of the confluent-kafka objects that users give us, and the meaning of their error codes.

A client of confluent-kafka does not tell its settings. Of a consumer, the one setting that matters is found out
by a call; of a producer, the user gives us the settings beside the client.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from mqauth.brokers.dead_letters import LOOK
from mqauth.errors import ConfigurationError, require

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
COMES_AGAIN: Final = frozenset(getattr(KafkaError, name) for name in _NAMES.split() if hasattr(KafkaError, name))
"""Codes of errors after which the same call may succeed; ``KafkaError.retriable`` knows transactions only."""
REBALANCING: Final = frozenset(("ILLEGAL_GENERATION", "REBALANCE_IN_PROGRESS"))
"""Names of errors of a commit that is refused while a rebalance goes on, or after one that we were not told of."""
_ALL: Final = (-1, "-1", "all")


class Membership(NamedTuple):
    """A consumer's membership of its group.

    Args:
        group: the group's id.
        generation: the number of the last rebalance, -1 while the consumer is no member.
    """

    group: str
    generation: int


def check_consumer(client: Any, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse a consumer that commits by itself, or deserializes before verification; return its settings.

    Args:
        client: the consumer.
        config: the settings it was made with.

    Raises:
        ConfigurationError: it does, it is of another kind, or the settings are not its own.
    """
    _check_kind(client, confluent_kafka.Consumer, confluent_kafka.DeserializingConsumer)
    # Storing an empty list of offsets fails with _INVALID_ARG where enable.auto.offset.store is on, and asks the
    # broker nothing. Without stored offsets enable.auto.commit has nothing to commit, on or off.
    try:
        client.store_offsets(offsets=[])
    except KafkaException as error:
        raise ConfigurationError(
            'set "enable.auto.offset.store" to False: offsets are committed when records are settled'
        ) from error
    found = _dotted(config)
    require(
        found.get("group.id") == membership_of(client).group,
        "config must be the mapping that the Consumer was made with: its group.id is another one",
    )
    return found


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
    return all(config.get(name, "all") in _ALL for name in ("acks", "request.required.acks"))


def is_idempotent(config: Mapping[str, Any]) -> bool:
    """Return whether a producer's own retries write no second copy; librdkafka's default is that they may."""
    return bool(config.get("transactional.id")) or str(config.get("enable.idempotence")).lower() == "true"


def membership_of(client: Any) -> Membership:
    """Return a consumer's group and generation, decoded from librdkafka's own encoding.

    Raises:
        ConfigurationError: the encoding is not the one of librdkafka 2.
    """
    found = bytes(client.consumer_group_metadata())
    begin = len(_METADATA) + 4
    if not found.startswith(_METADATA):
        raise ConfigurationError(f"the group's metadata must begin with {_METADATA!r}, not {found[:7]!r}")
    generation = int.from_bytes(found[len(_METADATA) : begin], sys.byteorder, signed=True)
    return Membership(found[begin:].partition(b"\0")[0].decode("utf-8"), generation)


def error_of(raised: BaseException) -> KafkaError:
    """Return the error that a ``KafkaException`` carries."""
    found = raised.args[0] if raised.args else None
    return found if isinstance(found, KafkaError) else KafkaError(KafkaError.UNKNOWN)


def name_of(error: BaseException) -> str:
    """Return the name of an error: of the client's code, else of its type."""
    return error_of(error).name() if isinstance(error, KafkaException) else type(error).__name__


def _dotted(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of a client, with names in dots."""
    require(isinstance(config, Mapping), "config must be the mapping that the client was made with")
    found = {name.replace("_", "."): value for name, value in config.items()}
    return found | dict(found.get("default.topic.config", {}))


def _check_kind(client: Any, kind: type, refused: type) -> None:
    if isinstance(client, refused) or not isinstance(client, kind):
        found = f"{type(client).__module__}.{type(client).__name__}"
        raise ConfigurationError(f"a confluent_kafka.{kind.__name__} is needed, not {found}")


def has_topic(client: Any, topic: str) -> bool:
    """Return whether the broker has a topic; all are asked for, so that none is made.

    Raises:
        KafkaException: it does not answer.
    """
    return topic in client.list_topics(timeout=LOOK).topics
