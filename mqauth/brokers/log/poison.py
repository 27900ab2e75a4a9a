"""Records that a client cannot parse: found in the exception, audited, and skipped, for kafka-python and aiokafka.

Such a record has a header name that is not UTF-8, a wrong checksum, or an unknown codec. The exception names no
partition, so the partition is read from the locals of the client's ``_unpack_records`` in the traceback. A known
codec that is not installed here is no fault of the record.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from mqauth.audit import record as audit
from mqauth.audit.record import AuditRecord
from mqauth.brokers.log.records import NO_LOG, Log, PoisonRecordError
from mqauth.clock import SYSTEM_RANDOMNESS, uuid7
from mqauth.delivery.log_work import LogWork
from mqauth.errors import ConfigurationError, Reason
from mqauth.flow import Flow
from mqauth.judging.pipeline import Pipeline
from mqauth.logs import emit
from mqauth.wire import destination
from mqauth.wire.message import Message, Origin

CODECS: Final = {1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}
"""Codecs of batches by their number (Kafka protocol, record batch, attributes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Poison:
    """A batch of records that cannot be parsed to its end.

    Args:
        partition: the ``TopicPartition``.
        first: offset of the first record that was not delivered.
        beyond: the offset after the batch.
        error: name of the exception's type.
        codec: that the batch is compressed with, ``None`` where it is not, or the codec is unknown.
    """

    partition: Any
    first: int
    beyond: int
    error: str
    codec: str | None = None

    def __str__(self) -> str:
        place = f"{self.partition.topic}-{self.partition.partition}"
        return f"{place}: the batch from offset {self.first} to {self.beyond - 1} cannot be parsed ({self.error})"


def step_over(
    poison: Poison,
    error: BaseException,
    log: Log,
    *,
    work: LogWork,
    guard: Pipeline,
    scope: str,
    skip: bool,
    lacking: Callable[[str], str | None],
) -> Flow[None]:
    """Skip a batch that cannot be parsed, once that was audited; or end the consumer.

    Args:
        poison: the batch.
        error: what the client raised.
        log: the ids of its topic.
        work: audits the ranges that are skipped.
        guard: the pipeline, of which the audit record names policy and instance.
        scope: the consumer group.
        skip: whether to skip such records instead of stopping.
        lacking: returns the package that the client needs for a codec and does not find, or ``None``.

    Raises:
        PoisonRecordError: the policy is to stop.
        ConfigurationError: the client lacks the package of its codec: nothing is wrong with the records.
    """
    if poison.codec is not None and (package := lacking(poison.codec)) is not None:
        raise ConfigurationError(
            f"{poison.partition.topic}-{poison.partition.partition}: records from offset {poison.first} are "
            f"compressed with {poison.codec}, and its package is missing here: pip install {package}"
        ) from error
    if not skip:
        raise PoisonRecordError(str(poison)) from error
    record = audit_record(poison, guard, guard.scope or scope, log)
    if (yield from work.skipping(poison.partition, poison.first, poison.beyond, record)):
        emit("record.skipped", "%s, skipped", poison)


def find_poison(error: BaseException, partition: str = "topic_partition", batch: str = "batch") -> Poison | None:
    """Return the batch that made a client raise, ``None`` where the exception has another origin.

    Args:
        error: what the client raised.
        partition: the name that the client's records have for their partition; by default kafka-python's.
        batch: the name that ``_unpack_records`` has for the batch; by default kafka-python's.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_unpack_records":
            records = frame.f_locals.get("self")
            first = int(getattr(records, "next_fetch_offset", 0))
            unread = frame.f_locals.get(batch)
            beyond = int(getattr(unread, "next_offset", 0))
            return Poison(
                partition=getattr(records, partition, None),
                first=first,
                beyond=max(beyond, first + 1),
                error=type(error).__name__,
                codec=CODECS.get(getattr(unread, "compression_type", 0)),
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
