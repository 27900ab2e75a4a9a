"""Tells kafka-python's objects from those of other Kafka clients, which look alike to their users.

What a Kafka consumer may be built from; every refusal names what to set.
"""

from __future__ import annotations

import logging
import math
from functools import lru_cache
from typing import Any, Final, Literal

from mqauth.errors import ConfigurationError

_TELLING: Final = {"KafkaConsumer": "group_id", "KafkaProducer": "max_block_ms"}
"""A setting that only clients of this kind have."""
_OTHERS: Final = {"aiokafka": "aiokafka", "confluent_kafka": "confluent_kafka", "cimpl": "confluent_kafka"}
"""Packages of other clients by the package their classes say they are of."""


def settings_of(client: Any, kind: Literal["KafkaConsumer", "KafkaProducer"]) -> dict[str, Any]:
    """Return the settings of a kafka-python client.

    Args:
        client: what a user gave us.
        kind: what it has to be.

    Raises:
        ConfigurationError: it is something else; the text names it.
    """
    settings: Any = getattr(client, "config", None)
    if not isinstance(settings, dict) or _TELLING[kind] not in settings:
        raise ConfigurationError(f"a {kind} of kafka-python is needed, not {_name(type(client))}")
    return settings


def producer_settings(client: Any) -> dict[str, Any]:
    """Return the settings of a ``KafkaProducer``; one whose serializers would change what was signed is refused.

    Raises:
        ConfigurationError: it has one, or the client is of another library.
    """
    settings = settings_of(client, "KafkaProducer")
    for name in ("key_serializer", "value_serializer"):
        if settings.get(name) is not None:
            raise ConfigurationError(f"leave {name} out of the KafkaProducer: it would run after signing")
    return settings


def refuse_foreign(record: Any) -> None:
    """Refuse a record of another client: what it says may mean something else.

    Raises:
        ConfigurationError: it is one; the text names it.
    """
    kind: Any = type(record)
    if (name := _foreign(kind)) is not None:
        raise ConfigurationError(f"a ConsumerRecord of kafka-python is needed, not {name}")


@lru_cache(maxsize=64)
def _foreign(kind: type) -> str | None:
    """Return the name of a class of another client, ``None`` for every other class."""
    return _name(kind) if _package(kind) in _OTHERS else None


def _name(kind: type) -> str:
    """Return the name of a class with its package, as users import it."""
    package = _package(kind)
    return f"{_OTHERS.get(package, package)}.{kind.__name__}"


def _package(kind: type) -> str:
    """Return the first part of the name of a class's module."""
    return kind.__module__.partition(".")[0]


_LOG: Final = logging.getLogger("mqauth.kafka")


def check_client(client: Any) -> None:
    """Refuse a ``KafkaConsumer`` whose settings lose, change or condemn messages.

    Raises:
        ConfigurationError: it is of another library, commits by itself, deserializes before verification, or has
            no group.
    """
    config = settings_of(client, "KafkaConsumer")
    if config["enable_auto_commit"]:
        raise ConfigurationError("set enable_auto_commit=False: offsets are committed when records are settled")
    for name in ("key_deserializer", "value_deserializer"):
        if config[name] is not None:
            raise ConfigurationError(f"leave {name} out: raw bytes are verified; decode= runs afterwards")
    if not config["group_id"]:
        raise ConfigurationError("set group_id: without it nothing can be committed")
    if config["auto_offset_reset"] == "latest":
        _LOG.warning("auto_offset_reset is latest: a new group misses what was sent before it joined")


def session_of(client: Any) -> float:
    """Return the seconds of silence after which the group's partitions go to others; by hand they never do."""
    if client.subscription() is None:
        return math.inf
    return float(client.config.get("session_timeout_ms", math.inf)) / 1000


def rebalance_patience(client: Any, grace: float) -> float:
    """Return the seconds for which a rebalance may wait for handlers: not so long that the group misses us."""
    return min(grace, float(client.config.get("max_poll_interval_ms", math.inf)) / 2000)
