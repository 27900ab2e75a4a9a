"""What a confluent-kafka client must be set up like, and what its error codes mean.

A client of confluent-kafka tells none of its settings. What a consumer's safety hangs on is found out by calls
that ask the broker nothing; of a producer the settings themselves are asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from mqauth.errors import ConfigurationError

_METADATA: Final = b"CGMDv2:"
"""How librdkafka 1.9 to 2.x begins a group's metadata; a generation of 4 bytes and the group's name follow."""
COMES_AGAIN: Final = frozenset(
    (
        KafkaError._ALL_BROKERS_DOWN, KafkaError._ASSIGNMENT_LOST, KafkaError._DESTROY_BROKER,
        KafkaError._IN_PROGRESS, KafkaError._MAX_POLL_EXCEEDED, KafkaError._NO_OFFSET, KafkaError._OUTDATED,
        KafkaError._PREV_IN_PROGRESS, KafkaError._RESOLVE, KafkaError._RETRY, KafkaError._STATE,
        KafkaError._TIMED_OUT, KafkaError._TIMED_OUT_QUEUE, KafkaError._TRANSPORT,
        KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC, KafkaError._WAIT_CACHE,
        KafkaError._WAIT_COORD, KafkaError.BROKER_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.FENCED_LEADER_EPOCH, KafkaError.FENCED_MEMBER_EPOCH,
        KafkaError.FETCH_SESSION_ID_NOT_FOUND, KafkaError.ILLEGAL_GENERATION,
        KafkaError.INCONSISTENT_TOPIC_ID, KafkaError.INVALID_FETCH_SESSION_EPOCH,
        KafkaError.KAFKA_STORAGE_ERROR, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.MEMBER_ID_REQUIRED,
        KafkaError.NETWORK_EXCEPTION, KafkaError.NOT_COORDINATOR, KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND, KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.OFFSET_NOT_AVAILABLE, KafkaError.REBALANCE_IN_PROGRESS, KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.REQUEST_TIMED_OUT, KafkaError.STALE_MEMBER_EPOCH, KafkaError.THROTTLING_QUOTA_EXCEEDED,
        KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.UNKNOWN_MEMBER_ID, KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.UNSTABLE_OFFSET_COMMIT,
    )
)  # fmt: skip
"""Codes of what is to be tried again. Kafka's own table says ``retriable`` of them; librdkafka tells it of
transactions alone."""
_ALL: Final = (-1, "-1", "all")


class Membership(NamedTuple):
    """Of which group a consumer is, and since which rebalance.

    Args:
        group: the group's id.
        generation: the rebalance's number, -1 while the consumer is no member.
    """

    group: str
    generation: int


def check_consumer(client: Any) -> None:
    """Refuse a consumer whose settings lose, change or condemn messages.

    Where librdkafka stores no offsets by itself, ``enable.auto.commit`` has nothing to commit: that one setting
    is enough, and the only one that a client gives away. Storing no offsets at all is refused at once where it is
    on, without a word to the broker.

    Raises:
        ConfigurationError: it is of another kind, deserializes before verification, or stores offsets by itself.
    """
    _check_kind(client, confluent_kafka.Consumer, confluent_kafka.DeserializingConsumer)
    try:
        client.store_offsets(offsets=[])
    except KafkaException as error:
        raise ConfigurationError(
            'set "enable.auto.offset.store" to False: offsets are committed when records are settled'
        ) from error


def check_producer(client: Any, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse a producer that would change what was signed; return its settings, named with dots.

    Args:
        client: the producer.
        config: the settings it was made with.

    Raises:
        ConfigurationError: it is of another kind, or serializes after signing.
    """
    _check_kind(client, confluent_kafka.Producer, confluent_kafka.SerializingProducer)
    if not isinstance(config, Mapping):
        raise ConfigurationError("config is the mapping that the Producer was made with: it tells no settings")
    found = {name.replace("_", "."): value for name, value in config.items()}
    return found | dict(found.get("default.topic.config", {}))


def waits_for_all(config: Mapping[str, Any]) -> bool:
    """Tell whether every replica in sync acknowledges a producer's records, which is librdkafka's default."""
    return all(config.get(name, "all") in _ALL for name in ("acks", "request.required.acks"))


def is_idempotent(config: Mapping[str, Any]) -> bool:
    """Tell whether a producer's own retries make no second copy; librdkafka's default is that they may."""
    return bool(config.get("transactional.id")) or str(config.get("enable.idempotence")).lower() == "true"


def membership_of(client: Any) -> Membership:
    """Return a consumer's group and generation, which it tells in an encoding of librdkafka's own.

    Raises:
        ConfigurationError: the encoding is another.
    """
    found = bytes(client.consumer_group_metadata())
    begin = len(_METADATA) + 4
    if not found.startswith(_METADATA):
        raise ConfigurationError(f"group metadata begin with {_METADATA!r} in librdkafka 2, not {found[:7]!r}")
    generation = int.from_bytes(found[len(_METADATA) : begin], sys.byteorder, signed=True)
    return Membership(found[begin:].partition(b"\0")[0].decode("utf-8"), generation)


def error_of(raised: BaseException) -> KafkaError:
    """Return the error that a ``KafkaException`` carries."""
    found = raised.args[0] if raised.args else None
    return found if isinstance(found, KafkaError) else KafkaError(KafkaError.UNKNOWN)


def _check_kind(client: Any, kind: type, refused: type) -> None:
    """Refuse a client of another library, and one that runs code between the wire and us."""
    if isinstance(client, refused) or not isinstance(client, kind):
        found = f"{type(client).__module__}.{type(client).__name__}"
        raise ConfigurationError(f"a confluent_kafka.{kind.__name__} is needed, not {found}")
