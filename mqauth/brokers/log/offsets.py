"""Where the clients of a log begin to read, and what of it they step over, once for every client.

A partition that was just assigned begins by the rules of ``mqauth.delivery.start``. One whose group has an offset
of it with our metadata begins at once: that is one question for all that a rebalance brings. For the others the
group's commits of the whole topic are read, and what they lack is committed.

A record that a client cannot parse has a header name that is not UTF-8, a wrong checksum, or an unknown codec.
kafka-python and aiokafka raise an exception that names no partition, so the partition is read from the locals of
the client's ``_unpack_records`` in the traceback. A known codec
that is not installed here is no fault of the record.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Set
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol

from mqauth.audit.record import AuditRecord, broker_fields, token_fields
from mqauth.brokers.log.records import NO_LOG, Log, OffsetsRefusedError, PoisonRecordError
from mqauth.clock import SYSTEM_RANDOMNESS, uuid7
from mqauth.delivery.log_work import LogWork
from mqauth.delivery.start import (
    Committed,
    Start,
    TopicStart,
    partitions_at_first,
    topic_start,
)
from mqauth.errors import ConfigurationError, Errors, Reason, require
from mqauth.flow import Flow, call
from mqauth.judging.pipeline import Pipeline
from mqauth.logs import emit
from mqauth.wire import destination
from mqauth.wire.message import Message, Origin

NAMED: Final = 20
"""Most partitions that one line of the log names."""


class OffsetCalls(Protocol):
    """The calls of a client, made by ``here``; each may be a coroutine, but ``passes``.

    Attributes:
        scope: the consumer group.
        reset: where the client is to begin without an offset: ``latest``, ``earliest`` or ``none``.
        unsure: partitions whose position in the client may be an older one than the committed offset.
        failed: what the calls raise where the broker does not answer, or refuses.
    """

    scope: str = ""
    reset: str = "none"
    unsure: Set[Any] = frozenset()
    failed: Errors = ()

    def here(self, work: Callable[..., Any], /, *args: Any) -> Any:
        """Make one of these calls: on the client's own thread, where it has one."""
        return work(*args)

    def committed(self, places: Collection[Any], /) -> Any:
        """Return the group's commits by partition, of those that have one."""

    def places(self, topic: str, /) -> Any:
        """Return all partitions of a topic that the client knows of."""

    def position(self, place: Any, /) -> Any:
        """Return the offset that the client will read next; ``None`` where it has none yet, or does not tell."""

    def bounds(self, places: Collection[Any], end: bool, /) -> Any:
        """Return the first offset of each partition, or the one behind its last record that may be read."""

    def send_commit(self, offsets: Mapping[Any, Committed], /) -> Any:
        """Commit; return ``None``, or the name of an error after which the same commit may succeed."""

    def passes(self, error: BaseException, /) -> bool:
        """Return whether the same call may succeed later."""


def beginning(
    calls: OffsetCalls,
    places: Set[Any],
    early: MutableMapping[Any, int],
    unchanged: Callable[[], bool],
) -> Flow[dict[Any, Start]]:
    """Commit where partitions begin, and return it; those are missing that have to be tried again.

    Args:
        calls: of the client.
        places: partitions that were just assigned.
        early: the first offset of some of them, as far as it is known by now; what is found out is noted in it.
        unchanged: returns whether there was no rebalance meanwhile.

    Raises:
        OffsetsRefusedError: the broker refuses for good.
        ConfigurationError: a partition has no offset, and the client's ``auto_offset_reset`` is ``none``.
    """
    starts: dict[Any, Start] = {}
    try:
        own: Mapping[Any, Committed] = yield from call(
            calls.here, calls.committed, places
        )
        for place in places & own.keys():
            if partitions_at_first([own[place]]) is not None:
                starts[place] = yield from _as_committed(calls, place, own[place], early)
        if rest := places - starts.keys():
            starts |= yield from _committing(calls, rest, own, early, unchanged)
    except calls.failed as error:
        if not calls.passes(error):
            topics = ", ".join(sorted({place.topic for place in places}))
            raise OffsetsRefusedError(
                f"the broker does not let group {calls.scope} read and commit its offsets of {topics} "
                f"({type(error).__name__}): it needs the right READ on the group and on the topic"
            ) from error
        emit(
            "client.offsets_unknown",
            "where partitions begin is not known yet (%s)",
            type(error).__name__,
        )
    return starts


def _as_committed(
    calls: OffsetCalls, place: Any, commit: Committed, early: Mapping[Any, int]
) -> Flow[Start]:
    if place in early or place in calls.unsure:
        return Start(early.get(place, commit.offset), commit, seek=True)
    position: int | None = yield from call(calls.here, calls.position, place)
    if position is not None and position > commit.offset:
        # The user sought there; or the client went to the end before it was ours: its offset was out of range.
        first: int = (yield from call(calls.here, calls.bounds, {place}, False))[place]
        if first > commit.offset:
            tell_out_of_range(calls.scope, place, commit.offset, first)
            return Start(first, commit, seek=True)
    return Start(commit.offset if position is None else position, commit, seek=False)


def tell_out_of_range(scope: str, place: Any, offset: int | None, first: int) -> None:
    """Log that records of a group are gone, and where it goes on."""
    emit(
        "client.offset_out_of_range",
        "group %s: offset %s of %s-%d is out of range, its records are lost; it goes on at %d",
        scope,
        offset,
        place.topic,
        place.partition,
        first,
        scope=scope,
        partition=place.partition,
        offset=first,
    )


def _committing(
    calls: OffsetCalls,
    rest: Set[Any],
    own: Mapping[Any, Committed],
    early: MutableMapping[Any, int],
    unchanged: Callable[[], bool],
) -> Flow[dict[Any, Start]]:
    # What the group has committed of the topics as a whole says which partitions are new to it.
    missing = rest - own.keys()
    topics: dict[str, TopicStart] = {}
    for topic in {place.topic for place in rest}:
        known = yield from call(calls.here, calls.places, topic)
        partitions = known | {place for place in rest if place.topic == topic}
        others = partitions - rest - own.keys()
        commits = (yield from call(calls.here, calls.committed, others)) if others else {}
        topics[topic] = topic_start(partitions, {**own, **commits})
    added = {place for place in missing if place in topics[place.topic].added}
    unmarked = {place for place in missing if place in topics[place.topic].unmarked}

    # Where they begin: an added partition at its beginning, every other one where the client would.
    offsets = {place: own[place].offset for place in rest - missing}
    first: dict[Any, int] = (
        (yield from call(calls.here, calls.bounds, added | unmarked, False))
        if added | unmarked
        else {}
    )
    early.update({place: first[place] for place in added})
    for place in missing - early.keys():
        position: int | None = yield from call(calls.here, calls.position, place)
        if position is not None:
            offsets[place] = position
    unknown = missing - early.keys() - offsets.keys()
    require(
        calls.reset != "none" or not (unknown | added),
        f"group {calls.scope} has no offset of {_named(unknown | added)}, and auto_offset_reset is none: "
        "commit one, or choose latest or earliest",
    )
    if unknown:
        # Where it cannot be committed now, the end will be another one next time.
        early.update(
            (yield from call(calls.here, calls.bounds, unknown, calls.reset == "latest"))
        )
    offsets |= {place: early[place] for place in missing & early.keys()}

    # Committed before anything of them is handled.
    wanted = {
        place: Committed(offset, topics[place.topic].metadata)
        for place, offset in offsets.items()
    }
    failure: str | None = (
        (yield from call(calls.here, calls.send_commit, wanted))
        if unchanged()
        else "a rebalance"
    )
    if failure is not None:
        emit(
            "client.commit_failed",
            "where partitions begin could not be committed (%s): they wait",
            failure,
        )
        return {}

    # Which partitions begin without an offset of the group, and where.
    if added:
        emit(
            "client.partitions_added",
            "new to group %s, read from their beginning: %s",
            calls.scope,
            _named(added, offsets),
            scope=calls.scope,
        )
    skipping = {place for place in unmarked if offsets[place] > first[place]}
    if skipping:
        emit(
            "client.partitions_unmarked",
            "group %s has no offset of these partitions, and no commit of it says "
            "whether they are new: they begin at the end, and what is before is not read: %s",
            calls.scope,
            _named(skipping, offsets),
            scope=calls.scope,
        )
    latest = {place for place in missing - added - skipping if offsets[place] > 0}
    if latest and calls.reset == "latest":
        emit(
            "client.offsets_latest",
            "auto_offset_reset is latest, and group %s begins with these partitions at "
            "the end, without what was sent before: %s",
            calls.scope,
            _named(latest, offsets),
            scope=calls.scope,
        )
    starts = {}
    for place in rest:
        starts[place] = yield from _as_committed(calls, place, wanted[place], early)
    return starts


def _named(places: Iterable[Any], offsets: Mapping[Any, int] | None = None) -> str:
    ordered = sorted(places, key=lambda place: (place.topic, place.partition))
    at = {} if offsets is None else {place: f" at {offsets[place]}" for place in ordered}
    named = [
        f"{place.topic}-{place.partition}{at.get(place, '')}"
        for place in islice(ordered, NAMED)
    ]
    return ", ".join(
        [*named, *([f"and {len(ordered) - NAMED} more"] if len(ordered) > NAMED else [])]
    )


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


def find_poison(
    error: BaseException, partition: str = "topic_partition", batch: str = "batch"
) -> Poison | None:
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


def audit_record(
    poison: Poison, guard: Pipeline, scope: str, log: Log = NO_LOG
) -> AuditRecord:
    """Return the audit record of a skipped range; nothing can be known of its tokens and bodies."""
    topic, partition = poison.partition.topic, poison.partition.partition
    last = poison.beyond - 1
    origin = Origin(
        topic=topic,
        partition=partition,
        offset=poison.first,
        cluster=log.cluster,
        topic_id=log.topic_id,
    )
    message = Message(destination=destination.kafka(topic), body=None, origin=origin)
    return AuditRecord(
        id=uuid7(guard.clock, SYSTEM_RANDOMNESS),
        time=guard.clock.now(),
        verdict="rejected",
        reason=Reason.MESSAGE_MALFORMED.value,
        detail=f"unparseable ({poison.error}): offsets {poison.first} to {last} skipped",
        scope=scope,
        broker=broker_fields(message) | {"last_offset": last},
        token=token_fields(None, None, None, None, verified=False),
        body_sha256=None,
        body_size=None,
        key_set=None,
        policy=guard.policy.version,
        dead_letter=None,
        instance=guard.instance,
    )
