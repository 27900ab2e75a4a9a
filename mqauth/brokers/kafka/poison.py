"""Records that kafka-python cannot parse: found in the exception, audited, and skipped.

Such a record has a header name that is not UTF-8, a wrong checksum, or a codec that is not installed. ``poll()``
raises once for it, and its next call spins for ever on the dead iterator left behind. The exception names no
partition, so the partition is read from the locals of kafka-python's ``_unpack_records`` in the traceback.
"""

from __future__ import annotations

import traceback
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

from kafka.errors import CommitFailedError, RebalanceInProgressError, RetriableError

from mqauth.audit import record as audit
from mqauth.audit.record import AuditRecord
from mqauth.brokers.kafka import repair as kafka_repair
from mqauth.brokers.kafka.translate import Logs
from mqauth.brokers.log.errors import PoisonRecordError
from mqauth.brokers.log.records import NO_LOG, Log
from mqauth.clock import SYSTEM_RANDOMNESS, uuid7
from mqauth.delivery.log_work import LogWork
from mqauth.errors import Reason
from mqauth.judging.pipeline import Pipeline
from mqauth.logs import emit
from mqauth.wire import destination
from mqauth.wire.message import Message, Origin

COMES_AGAIN: Final = (CommitFailedError, RebalanceInProgressError, RetriableError)
"""Errors of a poll or a commit that is to be made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Poison:
    """A batch of records that cannot be parsed to its end.

    Args:
        partition: the ``TopicPartition``.
        first: offset of the first record that was not delivered.
        beyond: the offset after the batch.
        error: name of the exception's type.
    """

    partition: Any
    first: int
    beyond: int
    error: str

    def __str__(self) -> str:
        place = f"{self.partition.topic}-{self.partition.partition}"
        return f"{place}: the batch from offset {self.first} to {self.beyond - 1} cannot be parsed ({self.error})"


class RecordReader:
    """Polls a client, and deals with records that cannot be parsed.

    Args:
        client: the ``KafkaConsumer``.
        work: audits the ranges that are skipped.
        guard: the pipeline, of which the audit record names policy and instance.
        logs: tells the ids of topics.
        skip: whether to skip such records instead of stopping.
    """

    def __init__(self, client: Any, work: LogWork, guard: Pipeline, logs: Logs, *, skip: bool) -> None:
        self._client = client
        self._work = work
        self._guard = guard
        self._logs = logs
        self._skip = skip
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
        if not self._skip:
            raise PoisonRecordError(str(poison)) from error
        scope = self._guard.scope or str(self._client.config["group_id"])
        record = audit_record(poison, self._guard, scope, self._logs.of(poison.partition.topic))
        if self._work.skip(poison.partition, poison.first, poison.beyond, record):
            emit("record.skipped", "%s, skipped", poison)


def find_poison(error: BaseException) -> Poison | None:
    """Return the batch that made ``poll()`` raise, ``None`` where the exception has another origin."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_unpack_records":
            records, batch = frame.f_locals.get("self"), frame.f_locals.get("batch")
            first = int(getattr(records, "next_fetch_offset", 0))
            beyond = int(getattr(batch, "next_offset", 0))
            return Poison(
                partition=getattr(records, "topic_partition", None),
                first=first,
                beyond=max(beyond, first + 1),
                error=type(error).__name__,
            )
    return None


def audit_record(poison: Poison, guard: Pipeline, scope: str, log: Log = NO_LOG) -> AuditRecord:
    """Return the audit record of a skipped range; nothing can be known of its tokens and bodies."""
    topic, partition = poison.partition.topic, poison.partition.partition
    last = poison.beyond - 1
    origin = Origin(
        topic=topic, partition=partition, offset=poison.first, cluster=log.cluster, topic_id=log.topic_id
    )
    message = Message(destination=destination.kafka(topic), body=None, origin=origin)
    return AuditRecord(
        id=uuid7(guard.clock, SYSTEM_RANDOMNESS),
        time=guard.clock.now(),
        verdict="rejected",
        reason=Reason.MESSAGE_MALFORMED.value,
        detail=f"unparseable ({poison.error}): offsets {poison.first} to {last} skipped",
        scope=scope,
        broker=audit.broker_fields(message) | {"last_offset": last},
        token=audit.token_fields(None, None, None, None, verified=False),
        body_sha256=None,
        body_size=None,
        key_set=None,
        policy=guard.policy.version,
        dead_letter=None,
        instance=guard.instance,
    )
