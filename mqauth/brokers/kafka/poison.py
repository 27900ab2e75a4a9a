"""Polls of kafka-python that meet records which cannot be parsed.

``poll()`` raises once for such a record, and its next call spins for ever on the dead iterator left behind.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Final

import kafka.codec as codecs
from kafka.errors import CommitFailedError, RebalanceInProgressError, RetriableError

from mqauth.brokers.kafka import repair as kafka_repair
from mqauth.brokers.kafka.translate import Logs
from mqauth.brokers.log.poison import PoisonPolicy, find_poison
from mqauth.flow import run
from mqauth.logs import emit

COMES_AGAIN: Final = (CommitFailedError, RebalanceInProgressError, RetriableError)
"""Errors of a poll or a commit that is to be made again."""

_PACKAGES: Final = {"snappy": "python-snappy", "lz4": "lz4", "zstd": "zstandard"}


def lacking(codec: str) -> str | None:
    """Return the package that kafka-python needs for a codec and does not find, ``None`` where it has it."""
    return None if getattr(codecs, f"has_{codec}")() else _PACKAGES.get(codec)


class RecordReader:
    """Polls a client, and deals with records that cannot be parsed.

    Args:
        client: the ``KafkaConsumer``.
        policy: skips them, or ends the consumer.
        logs: tells the ids of topics.
    """

    def __init__(self, client: Any, policy: PoisonPolicy, logs: Logs) -> None:
        self._client = client
        self._policy = policy
        self._logs = logs
        self._kept: BaseException | None = None

    def poll(self, seconds: float, *, joins: bool) -> dict[Any, list[Any]]:
        """Return new records by partition.

        Args:
            seconds: how long to wait at most.
            joins: whether the poll may take part in a rebalance.

        Raises:
            PoisonRecordError: a record cannot be parsed, and the policy is to stop.
        """
        if self._kept is not None:
            error, self._kept = self._kept, None
            self._step_over(error)
        try:
            with nullcontext() if joins else kafka_repair.not_joining(self._client):
                kafka_repair.before_poll(self._client)
                records: dict[Any, list[Any]] = self._client.poll(timeout_ms=int(seconds * 1000))
        except COMES_AGAIN as error:
            emit("client.poll_failed", "poll failed with %s and is tried again", type(error).__name__)
            return {}
        except Exception as error:
            self._step_over(error)
            return {}
        self._kept = kafka_repair.postponed(self._client)
        return records

    def _step_over(self, error: BaseException) -> None:
        """Skip the batch that made ``poll()`` raise, or raise where there is none or the policy is to stop."""
        poison = find_poison(error)
        if poison is None or poison.partition is None:
            raise error
        kafka_repair.discard(self._client, poison.partition)
        position = kafka_repair.position(self._client, poison.partition)
        # Sent back to an earlier record meanwhile: what stands before is handled first, and then this comes again.
        if position is not None and position < poison.first:
            return
        run(self._policy.applying(poison, error, self._logs.of(poison.partition.topic)))
