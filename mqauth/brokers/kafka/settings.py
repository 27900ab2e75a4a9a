"""What a Kafka consumer may be built from; every refusal names what to set."""

from __future__ import annotations

import logging
import math
from typing import Any, Final

from mqauth.brokers.kafka.client import settings_of
from mqauth.errors import ConfigurationError

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
