"""Checks of the kafka-python objects that users give us; each refusal says what to change.

It also has records as ``Message``, the ids of their log, and a verdict for your own poll loop.
"""

from __future__ import annotations

import base64
import math
import time
from contextlib import suppress
from typing import Any, Final, Literal
from uuid import UUID

import kafka.codec as codecs
from kafka.errors import KafkaTimeoutError

from mqauth.brokers.judge import Judgement, judged
from mqauth.brokers.log.records import NO_LOG, Log, record_message
from mqauth.errors import ConfigurationError, require
from mqauth.judging.pipeline import Pipeline
from mqauth.wire.message import Message

_TELLING: Final = {"KafkaConsumer": "group_id", "KafkaProducer": "max_block_ms"}
"""A setting that only clients of this kind have."""
_OTHERS: Final = {
    "aiokafka": "aiokafka",
    "confluent_kafka": "confluent_kafka",
    "cimpl": "confluent_kafka",
}
"""Other Kafka clients, by the package that their classes claim to be of."""


def settings_of(
    client: Any, kind: Literal["KafkaConsumer", "KafkaProducer"]
) -> dict[str, Any]:
    """Return the settings of a kafka-python client.

    Args:
        client: what the user gave us.
        kind: what it must be.

    Raises:
        ConfigurationError: it is something else; the text names it.
    """
    settings: Any = getattr(client, "config", None)
    require(
        isinstance(settings, dict) and _TELLING[kind] in settings,
        f"a {kind} of kafka-python is needed, not {_name(type(client))}",
    )
    return settings  # type: ignore[no-any-return]


def producer_settings(client: Any) -> dict[str, Any]:
    """Return the settings of a ``KafkaProducer`` without serializers, which would change what was signed.

    Raises:
        ConfigurationError: it has a serializer, or is of another library.
    """
    settings = settings_of(client, "KafkaProducer")
    for name in ("key_serializer", "value_serializer"):
        require(
            settings.get(name) is None,
            f"leave {name} out of the KafkaProducer: it would run after signing",
        )
    return settings


def check_client(client: Any) -> None:
    """Refuse a ``KafkaConsumer`` whose settings lose, change or condemn messages.

    Raises:
        ConfigurationError: it is of another library, commits by itself, deserializes before verification, or has
            no group.
    """
    config = settings_of(client, "KafkaConsumer")
    require(
        not config["enable_auto_commit"],
        "set enable_auto_commit=False: offsets are committed when records are settled",
    )
    for name in ("key_deserializer", "value_deserializer"):
        require(
            config[name] is None,
            f"leave {name} out: raw bytes are verified; decode= runs afterwards",
        )
    require(config["group_id"], "set group_id: without it nothing can be committed")


def session_of(client: Any) -> float:
    """Return the seconds of silence after which the group gives our partitions to others.

    Partitions that are assigned by hand are never given away.
    """
    if client.subscription() is None:
        return math.inf
    return float(client.config.get("session_timeout_ms", math.inf)) / 1000


def rebalance_patience(client: Any) -> float:
    """Return the seconds for which a rebalance may wait for handlers: half of what the group waits for us."""
    return float(client.config.get("max_poll_interval_ms", math.inf)) / 2000


def check_isolation(client: Any) -> None:
    """Refuse a ``KafkaConsumer`` that reads a committed offset of a transaction that is still open (KIP-447).

    Raises:
        ConfigurationError: it does.
    """
    require(
        client.config["isolation_level"] == "read_committed",
        'transactional dead letters need isolation_level="read_committed" in the consumer',
    )


def has_topic(client: Any, topic: str) -> bool | None:
    """Return whether the broker has a topic, in ``max_block_ms``; ``None`` where the client may make it."""
    if client.config["allow_auto_create_topics"]:
        return None
    began = time.monotonic()
    with suppress(KafkaTimeoutError):
        client.partitions_for(topic)
    return not is_no_topic(client, topic, began)


def is_no_topic(client: Any, topic: str, began: float) -> bool:
    """Return whether the broker has answered since ``began`` (monotonic seconds) and does not know the topic.

    kafka-python 3.0.12 raises ``KafkaTimeoutError`` both for this and for a broker out of reach. A requester
    chooses the topic: an answer to a topic that does not exist must not stop the request's partition for ever.
    """
    metadata = client._metadata
    answered: bool = metadata._last_successful_refresh_ms >= began * 1000
    return answered and metadata.partitions_for_topic(topic) is None


def _name(kind: type) -> str:
    """Return the name of a class with its package, as users import it."""
    package = kind.__module__.partition(".")[0]
    return f"{_OTHERS.get(package, package)}.{kind.__name__}"


def from_native(record: Any, *, scope: str, log: Log = NO_LOG) -> Message:
    """Return the message of a ``ConsumerRecord``; nothing that the record holds makes this raise.

    Args:
        record: as ``KafkaConsumer.poll`` returned it, without deserializers.
        scope: the consumer group.
        log: the ids of its cluster and topic (``Logs.of``).

    Raises:
        ConfigurationError: the record is aiokafka's or confluent-kafka's.
    """
    kind: Any = type(record)
    # Fields of another client's record may mean something else.
    if kind.__module__.partition(".")[0] in _OTHERS:
        raise ConfigurationError(
            f"a ConsumerRecord of kafka-python is needed, not {_name(kind)}"
        )
    return record_message(record, scope, log)


_PACKAGES: Final = {"snappy": "python-snappy", "lz4": "lz4", "zstd": "zstandard"}


def lacking(codec: str) -> str | None:
    """Return the package that kafka-python needs for a codec and does not find, ``None`` where it has it."""
    return None if getattr(codecs, f"has_{codec}")() else _PACKAGES.get(codec)


class Logs:
    """Returns the ids of cluster and topic, from a client's metadata.

    A topic's name is not enough where there are two clusters, or where a topic was deleted and made anew. Both ids
    come with every metadata response (the topic's from Kafka 2.8 on, KIP-516), so that asking costs no request.

    Args:
        client: a ``KafkaConsumer``.
    """

    def __init__(self, client: Any) -> None:
        self._metadata: Any = getattr(client, "_cluster", None)
        self._known: dict[str, Log] = {}

    def of(self, topic: str) -> Log:
        """Return the ids of a topic; never asks the broker, and never raises."""
        # An id that was known once is kept until the metadata name another one. A topic that is being deleted, or
        # may not be seen for a moment, comes without its id; the records at hand must not change their place.
        before = self._known.get(topic, NO_LOG)
        cluster = getattr(self._metadata, "cluster_id", None)
        ask = getattr(self._metadata, "topic_id", None)
        uuid, topic_id = None if ask is None else ask(topic), None
        if isinstance(uuid, UUID) and uuid.int:
            # Kafka's own spelling: base64url without padding, 22 characters.
            topic_id = base64.urlsafe_b64encode(uuid.bytes).rstrip(b"=").decode("ascii")
        known = cluster if isinstance(cluster, str) and cluster else None
        log = Log(known or before.cluster, topic_id or before.topic_id)
        if log != before:
            self._known[topic] = log
        return log


def judge(guard: Pipeline, record: Any, *, scope: str, log: Log = NO_LOG) -> Judgement:
    """Judge one ``ConsumerRecord``, and claim it in the replay store where it is accepted.

    Args:
        guard: the pipeline.
        record: as ``KafkaConsumer.poll`` returned it, without deserializers.
        scope: the consumer group.
        log: the ids of cluster and topic, ``Logs(client).of(record.topic)``. Without them the replay store cannot
            tell two clusters, or a topic from one that was deleted and made anew, apart.

    Raises:
        ConfigurationError: a plug-in is asynchronous, or the record is aiokafka's or confluent-kafka's.
    """
    return judged(guard, from_native(record, scope=scope, log=log))
