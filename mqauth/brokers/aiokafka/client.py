"""Checks of the aiokafka objects that users give us, and what aiokafka 0.14 tells by private attributes alone.

This is the only module that touches them.

It also has records as ``Message``, the ids of their log, and a verdict for your own loop.
"""

from __future__ import annotations

import asyncio
import math
import traceback
from typing import Any

import aiokafka
import aiokafka.codec as codecs
from aiokafka.consumer.fetcher import OffsetResetStrategy
from aiokafka.protocol.metadata import MetadataRequest

from mqauth.brokers.closing import GIVE_UP_WITHIN
from mqauth.brokers.dead_letters import LOOK
from mqauth.brokers.judge import AsyncJudgement, ajudged
from mqauth.brokers.log.records import NO_LOG, Log, record_message
from mqauth.errors import ConfigurationError, require
from mqauth.judging.pipeline import Pipeline
from mqauth.wire.message import Message


def check_consumer(client: Any) -> None:
    """Refuse an ``AIOKafkaConsumer`` whose settings lose, change or condemn messages.

    Raises:
        ConfigurationError: it is of another library, commits by itself, deserializes before verification, or has
            no group or no subscription.
    """
    _check_kind(client, aiokafka.AIOKafkaConsumer)
    require(
        not client._enable_auto_commit,
        "set enable_auto_commit=False: offsets are committed when records are settled",
    )
    for name in ("key_deserializer", "value_deserializer"):
        require(
            getattr(client, f"_{name}") is None,
            f"leave {name} out: raw bytes are verified; decode= runs afterwards",
        )
    require(client._group_id, "set group_id: without it nothing can be committed")
    require(
        client._subscription.subscription and client._coordinator is not None,
        "subscribe the AIOKafkaConsumer to a topic and start it first",
    )


def check_isolation(client: Any) -> None:
    """Refuse an ``AIOKafkaConsumer`` that reads records of transactions that are still open.

    Raises:
        ConfigurationError: it does.
    """
    require(
        client._isolation_level == "read_committed",
        'transactional dead letters need isolation_level="read_committed" in the consumer',
    )


def check_producer(client: Any) -> None:
    """Refuse an ``AIOKafkaProducer`` with serializers, which would change what was signed.

    Raises:
        ConfigurationError: it has a serializer, or is of another library.
    """
    _check_kind(client, aiokafka.AIOKafkaProducer)
    for name in ("key_serializer", "value_serializer"):
        require(
            getattr(client, f"_{name}") is None,
            f"leave {name} out of the AIOKafkaProducer: it would run after signing",
        )


def waits_for_all(client: Any) -> bool:
    """Return whether all replicas in sync acknowledge a producer's records; aiokafka's default is one."""
    return bool(client._sender._acks == -1)


def is_idempotent(client: Any) -> bool:
    """Return whether a producer's own retries write no second copy."""
    return client._txn_manager is not None


def transactional_id(client: Any) -> str | None:
    """Return the transactional id of a producer, ``None`` where it has none."""
    return getattr(client._txn_manager, "transactional_id", None)


def buffer_of(client: Any) -> tuple[int, float]:
    """Return the bytes of a producer's buffer for a partition, and how many seconds its first record waits."""
    # aiokafka 0.13 sends the first record at once, and lingers after that.
    return client._message_accumulator._batch_size, getattr(
        client._message_accumulator, "_linger_time", 0.0
    )


def fatal_error(client: Any) -> BaseException | None:
    """Return the error with which a producer has failed for good: its sending task has ended."""
    return client._message_accumulator._exception  # type: ignore[no-any-return]


def unacknowledged(client: Any) -> int:
    """Return how many records of a producer have no outcome yet."""
    accumulator = client._message_accumulator
    queued = [batch for batches in accumulator._batches.values() for batch in batches]
    return sum(batch.record_count for batch in (*queued, *accumulator._pending_batches))


async def give_up(client: Any, error: Exception) -> None:
    """Give every record of a producer without an outcome the error, and end its sending and its connections."""
    client._message_accumulator.fail_all(error)
    sending = client._sender.sender_task
    sending.cancel()
    # What was sent awaits its answer: the end of the connection ends that. It would then put its records back,
    # which have an outcome by now, and fails.
    await client.client.close()
    await asyncio.wait([sending], timeout=GIVE_UP_WITHIN)


def group_of(client: Any) -> str:
    """Return the consumer group."""
    return str(client._group_id)


def session_of(client: Any) -> float:
    """Return the seconds of silence after which the group gives our partitions to others.

    Partitions that are assigned by hand are never given away.
    """
    return float(client._session_timeout_ms) / 1000 if is_member(client) else math.inf


def rebalance_patience(client: Any) -> float:
    """Return the seconds for which a rebalance may wait for handlers: half of what the group waits for us."""
    return float(client._rebalance_timeout_ms) / 2000


def is_member(client: Any) -> bool:
    """Return whether the group assigns its partitions, and not the user by hand."""
    return bool(client._subscription.partitions_auto_assigned())


def generation_of(client: Any) -> int:
    """Return the number of the group's last rebalance, negative while the consumer is no member."""
    return int(client._coordinator.generation)


def member_of(client: Any) -> str:
    """Return the id that the consumer has in its group."""
    return str(client._coordinator.member_id)


async def committed(client: Any, places: list[Any]) -> dict[Any, Any]:
    """Return what the group has committed of partitions, each as an ``OffsetAndMetadata``, by one request.

    The client's own ``committed`` asks for one partition, and does not tell its metadata.

    Raises:
        aiokafka.errors.KafkaError: the broker refuses.
    """
    return await client._coordinator.fetch_committed_offsets(places)  # type: ignore[no-any-return]


def position(client: Any, place: Any) -> int | None:
    """Return the offset that is read next, ``None`` where there is none yet."""
    state = client._subscription
    if place not in state.assigned_partitions():
        return None
    return state._assigned_state(place)._position  # type: ignore[no-any-return]


def reset_of(client: Any) -> str:
    """Return where the client begins without an offset: ``latest``, ``earliest`` or ``none``."""
    reset = str(client._auto_offset_reset)
    return reset if reset in ("latest", "earliest") else "none"


def no_reset(client: Any) -> Any:
    """Have the client move no position by itself, but raise; return what ``restore_reset`` needs.

    It would go to the end, past all that is left, where its offset is out of range. One that was started earlier
    may be about to: it asks for the group's offset again.
    """
    theirs, client._fetcher._default_reset_strategy = (
        client._fetcher._default_reset_strategy,
        OffsetResetStrategy.NONE,
    )
    state = client._subscription
    for place in state.assigned_partitions():
        state._assigned_state(place)._reset_strategy = None
    return theirs


def restore_reset(client: Any, theirs: Any) -> None:
    """Let the client move positions again."""
    client._fetcher._default_reset_strategy = theirs


def listen(client: Any, listener: Any) -> Any:
    """Have a listener called at rebalances; return the one that was called before.

    ``subscribe`` with a listener would leave the group and join it again.
    """
    state = client._subscription
    theirs, state._listener = state._listener, listener
    return theirs


def read_before(error: BaseException, partition: Any) -> dict[Any, list[Any]]:
    """Return the records that ``getmany`` had read when it raised, by partition.

    It does not return them, and has moved the positions of all partitions but the last one behind them.

    Args:
        error: what it raised.
        partition: the last one, whose records cannot be parsed.
    """
    records: dict[Any, list[Any]] = {}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "fetched_records":
            records |= frame.f_locals.get("drained", {})
        elif frame.f_code.co_name == "getall" and frame.f_locals.get("ret_list"):
            records[partition] = frame.f_locals["ret_list"]
    return records


def lacking(codec: str) -> str | None:
    """Return the package that aiokafka needs for a codec and does not find, ``None`` where it has it."""
    return None if getattr(codecs, f"has_{codec}")() else "cramjam"


async def has_topic(client: Any, topic: str) -> bool:
    """Return whether the broker has a topic; all are asked for, so that none is made.

    Raises:
        aiokafka.errors.KafkaError, TimeoutError: it does not answer.
    """
    async with asyncio.timeout(LOOK):
        return topic in (await client.client.fetch_all_metadata()).topics()


def _check_kind(client: Any, kind: type) -> None:
    name = f"{type(client).__module__.partition('.')[0]}.{type(client).__name__}"
    require(
        isinstance(client, kind), f"an aiokafka.{kind.__name__} is needed, not {name}"
    )


def from_native(record: Any, *, scope: str, log: Log = NO_LOG) -> Message:
    """Return the message of an ``aiokafka.ConsumerRecord``; nothing that the record holds makes this raise.

    Args:
        record: as ``AIOKafkaConsumer.getmany`` or ``getone`` returned it, without deserializers.
        scope: the consumer group.
        log: the id of its cluster (``Logs.of``).

    Raises:
        ConfigurationError: the record is of another client.
    """
    if not isinstance(record, aiokafka.ConsumerRecord):
        name = f"{type(record).__module__}.{type(record).__name__}"
        raise ConfigurationError(f"an aiokafka.ConsumerRecord is needed, not {name}")
    return record_message(record, scope, log)


class Logs:
    """Returns the id of a client's cluster, for which the broker is asked once.

    aiokafka does not tell the id of a topic (KIP-516), so a topic that was deleted and made anew is taken for the
    same one.

    Args:
        client: a started ``AIOKafkaConsumer``.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self.known: Log | None = None
        """What was answered."""

    async def of(self, _topic: str = "") -> Log:
        """Return the ids of a topic: the cluster's alone.

        Raises:
            aiokafka.errors.KafkaError: the broker has not told its cluster's id yet.
        """
        if self.known is None:
            # aiokafka gets it with its metadata, and does not keep it.
            node = self._client._client.get_random_node()
            response = await self._client._client.send(node, MetadataRequest([]))
            self.known = Log(getattr(response, "cluster_id", None))
        return self.known


async def judge(
    guard: Pipeline, record: Any, *, scope: str, log: Log = NO_LOG
) -> AsyncJudgement:
    """Judge one ``aiokafka.ConsumerRecord``; an accepted one is claimed.

    Args:
        guard: the pipeline.
        record: as ``AIOKafkaConsumer.getmany`` or ``getone`` returned it, without deserializers.
        scope: the consumer group.
        log: the id of its cluster, ``await Logs(client).of(record.topic)``. Without it two clusters behind one
            replay store are one place.

    Raises:
        ConfigurationError: the record is of another client.
    """
    return await ajudged(guard, from_native(record, scope=scope, log=log))
