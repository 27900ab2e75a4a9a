"""What a Kafka consumer may be built from; every refusal names what to set."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final

import tenacity

from mqauth.brokers.kafka_client import settings_of
from mqauth.errors import ConfigurationError
from mqauth.flow import refuse_async
from mqauth.pipeline import Pipeline

_LOG: Final = logging.getLogger("mqauth.kafka")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long a deferred partition waits: exponential with equal jitter, for ever.

    Args:
        first: longest first wait, seconds; later ones double.
        longest: no wait is longer, seconds.
    """

    first: float = 0.5
    longest: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.first <= self.longest:
            raise ConfigurationError("waits grow from first, above 0, to longest")

    def wait(self, attempt: int) -> float:
        """Return the seconds to wait before a retry; ``attempt`` counts from 1."""
        state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
        state.attempt_number = attempt
        half = {"multiplier": self.first / 2, "max": self.longest / 2}
        return float((tenacity.wait_exponential(**half) + tenacity.wait_random_exponential(**half))(state))


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
