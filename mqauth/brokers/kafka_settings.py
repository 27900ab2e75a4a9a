"""What a Kafka consumer may be built from; every refusal names what to set."""

from __future__ import annotations

import logging
import math
from typing import Any, Final

from mqauth.brokers.kafka_client import settings_of
from mqauth.errors import ConfigurationError
from mqauth.flow import refuse_async
from mqauth.pipeline import Pipeline

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


def check_isolation(client: Any) -> None:
    """Refuse a client that would read a committed offset while a transaction over it is still open (KIP-447).

    Raises:
        ConfigurationError: it does not read committed only.
    """
    if client.config["isolation_level"] != "read_committed":
        raise ConfigurationError(
            'transactional dead letters need isolation_level="read_committed" in the consumer'
        )


def check_colours(guard: Pipeline, **plugins: object) -> None:
    """Refuse asynchronous plug-ins, and a pipeline that cannot settle rejections.

    Raises:
        ConfigurationError: one is asynchronous, or there is no audit sink.
    """
    if guard.audit is None:
        raise ConfigurationError("a consumer's pipeline needs audit=")
    refuse_async(
        store_claim=guard.replay.claim,
        store_confirm=guard.replay.confirm,
        store_release=guard.replay.release,
        audit=guard.audit.write,
        policy=guard.policy.decide,
        **{f"keys of {name}": issuer.keys.refresh for name, issuer in guard.verifier.issuers.items()},
        **plugins,
    )


def check_numbers(grace: float, workers: int, commit_interval: float, on_poison: str) -> None:
    """Refuse settings out of their limits.

    Raises:
        ConfigurationError: one is.
    """
    if on_poison not in ("stop", "skip"):
        raise ConfigurationError('on_poison is "stop" or "skip"')
    if grace < 0 or workers < 0 or commit_interval <= 0:
        raise ConfigurationError("grace and workers are at least 0, commit_interval is above 0 seconds")


def session_of(client: Any) -> float:
    """Return the seconds of silence after which the group's partitions go to others; by hand they never do."""
    if client.subscription() is None:
        return math.inf
    return float(client.config.get("session_timeout_ms", math.inf)) / 1000


def rebalance_patience(client: Any, grace: float) -> float:
    """Return the seconds for which a rebalance may wait for handlers: not so long that the group misses us."""
    return min(grace, float(client.config.get("max_poll_interval_ms", math.inf)) / 2000)
