"""The Kafka consumer of aiokafka: an ``AIOKafkaConsumer`` with the delivery engine.

``Poller`` makes the calls of the client: get records, pause, seek, commit. aiokafka awaits its listener in its
coordinator's task, and goes on with the rebalance when it has returned. So a revocation waits there for running
handlers and commits, before the partitions go to another member. What the listener raises aiokafka logs and drops.

``Offsets`` has the calls that say and move where its group stands (``OffsetCalls``).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any, Final, Literal, Unpack

from aiokafka import (
    AIOKafkaConsumer,
    ConsumerRebalanceListener,
    ConsumerRecord,
    TopicPartition,
)
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)

from mqauth.brokers.aiokafka import client as aiokafka_client
from mqauth.brokers.aiokafka.confirmed import TransactionalDeadLetters
from mqauth.brokers.aiokafka.membership import Membership, require_stable
from mqauth.brokers.aiokafka.producer import Producer
from mqauth.brokers.dead_letters import responder_of
from mqauth.brokers.log.event_loop import AsyncLogConsumer
from mqauth.brokers.log.offsets import OffsetCalls, find_poison, step_over
from mqauth.brokers.log.poller import LogPoller
from mqauth.brokers.log.records import NO_LOG, partition_messages
from mqauth.brokers.options import LogOptions
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.start import Committed
from mqauth.errors import Errors, require
from mqauth.flow import Flow, arun
from mqauth.judging.pipeline import Handler, Pipeline, V
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.logs import emit
from mqauth.wire.message import Message

SLACK: Final = 0.1
"""Seconds that a poll may take longer than asked for: only a rebalance lasts longer."""
SHORTEST: Final = 0.005
"""Least seconds of a poll that finds nothing: the event loop must come to its other tasks."""
_NOWHERE: Final = TopicPartition("", -1)
"""Stands for no partition: a call of ``getmany`` that names none means all of them."""
COMMIT_TIMEOUT: Final = 5.0
"""Most seconds of one call: aiokafka itself tries for ever."""


class Consumer(AsyncLogConsumer):
    """Judges the records of a subscribed ``AIOKafkaConsumer`` and gives the accepted ones to a handler.

    A handler that waits for long costs no heartbeat and no rebalance. Offsets are committed explicitly, and only
    up to the first record that is not settled.

    Args:
        client: with ``group_id``, ``enable_auto_commit=False`` and no deserializers, subscribed and started; the
            consumer alone uses it until ``run`` has returned. It is not stopped.
        guard: the pipeline, with an audit sink.
        handler: takes a ``Verified``; may be asynchronous. A synchronous one blocks the event loop.
        dead_letters: where rejected messages go: ``DeadLetters``, or ``TransactionalDeadLetters`` for letters that
            are committed in one transaction with their offsets.
        replies: sends what ``Verified.reply`` is given to the topic in ``reply-to``. Where its client fails for
            good, ``run`` ends with ``ProducerFatalError``.
        on_poison: ``"stop"`` with an error at a record that aiokafka cannot parse, or ``"skip"`` its batch and
            write an audit record of the range.
        options: as ``mqauth.brokers.options.LogOptions`` has them.

    Raises:
        ConfigurationError: the client or a setting is not as said.
    """

    def __init__(
        self,
        client: AIOKafkaConsumer,
        guard: Pipeline,
        handler: Handler[V],
        *,
        dead_letters: DeadLetterSink,
        replies: Producer | None = None,
        on_poison: Literal["stop", "skip"] = "stop",
        **options: Unpack[LogOptions[V]],
    ) -> None:
        aiokafka_client.check_consumer(client)
        require(
            on_poison in ("stop", "skip"),
            f'on_poison must be "stop" or "skip", not {on_poison!r}',
        )
        answer = responder_of(replies)
        super().__init__(
            guard,
            handler,
            dead_letters,
            answer=answer,
            patience=aiokafka_client.rebalance_patience(client),
            session=aiokafka_client.session_of(client),
            **options,
        )
        policy = partial(
            step_over,
            work=self._work,
            guard=guard,
            scope=aiokafka_client.group_of(client),
            skip=on_poison == "skip",
            lacking=aiokafka_client.lacking,
        )
        poller = Poller(client, self._assignment, policy, replies=answer)
        self.attach(poller)
        if isinstance(dead_letters, TransactionalDeadLetters):
            aiokafka_client.check_isolation(client)
            poller.require_stable()
        poller.listen(self.settle, self.fail)


class Offsets(OffsetCalls):
    """Those calls, for a leaf that has the client as ``_client``."""

    _client: Any
    failed: Errors = (KafkaError, TimeoutError)

    async def send_commit(self, offsets: Mapping[Any, Committed], /) -> str | None:
        """Commit offsets by partition; return the name of an error that passes."""
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT):
                await self._client.commit(dict(offsets))
        except self.failed as error:
            if not self.passes(error):
                raise
            return type(error).__name__
        return None

    async def committed(self, places: Collection[Any], /) -> dict[Any, Committed]:
        """Return the group's commits by partition."""
        async with asyncio.timeout(COMMIT_TIMEOUT):
            commits = await aiokafka_client.committed(self._client, list(places))
        return {
            place: Committed(commit.offset, commit.metadata)
            for place, commit in commits.items()
        }

    def places(self, topic: str, /) -> set[Any]:
        """Return all partitions of a topic that the client knows of."""
        return {
            TopicPartition(topic, number)
            for number in self._client.partitions_for_topic(topic) or ()
        }

    def position(self, place: Any, /) -> int | None:
        """Return the offset that is read next, ``None`` where there is none yet."""
        return aiokafka_client.position(self._client, place)

    async def bounds(self, places: Collection[Any], end: bool, /) -> dict[Any, int]:
        """Return the first offset of each partition, or the one behind the last record that may be read."""
        ask = self._client.end_offsets if end else self._client.beginning_offsets
        async with asyncio.timeout(COMMIT_TIMEOUT):
            return dict(await ask(list(places)))

    def passes(self, error: BaseException, /) -> bool:
        """Return whether the same call may succeed later."""
        if isinstance(error, (CommitFailedError, IllegalStateError, TimeoutError)):
            return True
        return isinstance(error, KafkaError) and bool(error.retriable)


class Poller(Offsets, LogPoller):
    """The calls of one client, made by the poll task, and its rebalance listener.

    An eager rebalance, the only kind that aiokafka has, revokes all partitions and assigns most of them again, at
    their committed offsets.

    Args:
        client: the ``AIOKafkaConsumer``.
        assignment: says which calls to make, and gets the records.
        poison: skips records that cannot be parsed, or ends the consumer (``poison.step_over``).
        settings: as ``LogPoller`` has them.
    """

    waits_beside_handlers = True

    def __init__(
        self,
        client: Any,
        assignment: Assignment,
        poison: Callable[..., Flow[None]],
        **settings: Any,
    ) -> None:
        super().__init__(client, assignment, **settings)
        self.scope = aiokafka_client.group_of(client)
        self.reset = aiokafka_client.reset_of(client)
        self._logs = aiokafka_client.Logs(client)
        self._poison = poison
        self._closed = False
        self._waiting: asyncio.Timeout | None = None

    def listen(
        self, settle: Callable[[], Awaitable[None]], fail: Callable[[BaseException], None]
    ) -> None:
        """Be told of rebalances; the client's own listener is still called.

        Args:
            settle: waits for running handlers, and commits (``AsyncLogConsumer.settle``).
            fail: ends the consumer by an error.
        """
        self._settle, self._fail = settle, fail
        self._theirs = aiokafka_client.no_reset(self._client)
        self._listener = Listener(self)
        self._listener.theirs = aiokafka_client.listen(self._client, self._listener)

    async def fetch(
        self, seconds: float, joins: bool
    ) -> dict[TopicPartition, list[Message]]:
        """Return the new messages by partition.

        Args:
            seconds: how long to wait for the first of them at most; ``wake`` ends it.
            joins: not used: aiokafka rebalances in a task of its own, and its listener waits for handlers.

        Raises:
            PoisonRecordError: a record cannot be parsed, and the policy is to stop.
            Exception: the client's own, where the broker refuses for good.
        """
        batches = await self._records(max(seconds, SHORTEST))
        if self.rebalancing:
            # These are of an assignment that we were not told of yet: they are read again.
            for place, records in batches.items():
                self._client.seek(place, records[0].offset)
            return {}
        log, scope = self._logs.known or NO_LOG, self.scope
        return {
            place: partition_messages(batch, place, scope, log)
            for place, batch in batches.items()
        }

    def require_stable(self) -> None:
        """Have offsets waited for of which a transaction is open, those of the assignment at hand too."""
        require_stable(self._client)
        self.unsure = set(self._client.assignment())

    def membership(self) -> Membership | None:
        """Return the membership to commit by, ``None`` during a rebalance."""
        generation = aiokafka_client.generation_of(self._client)
        if aiokafka_client.is_member(self._client) and generation < 0:
            return None
        return Membership(self.scope, generation, aiokafka_client.member_of(self._client))

    async def wait(self, over: threading.Event, seconds: float, /) -> None:
        """Wait for the end of a transaction, at most so many seconds."""
        await asyncio.to_thread(over.wait, seconds)

    def wake(self) -> None:
        """End a poll that waits."""
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(asyncio.get_running_loop().time())

    def close(self) -> None:
        """Leave the client as it was given to us."""
        self._closed = True
        try:
            super().close()
        finally:
            aiokafka_client.listen(self._client, self._listener.theirs)
            aiokafka_client.restore_reset(self._client, self._theirs)

    async def revoked(self, places: set[TopicPartition]) -> None:
        """Wait for running handlers and commit; then suspend the partitions until it is known which come back."""
        if self._closed:
            return
        self.rebalancing, generation = True, aiokafka_client.generation_of(self._client)
        if generation >= 0:
            try:
                await self._settle()
            # The client is stopped under its consumer; the next poll tells of it.
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                self._fail(error)
        self._assignment.revoked(places, places, generation)

    async def assigned(self, places: set[TopicPartition]) -> None:
        """Go on with partitions that came back, at their positions, and drop those that did not."""
        self._assignment.assigned(
            places, aiokafka_client.generation_of(self._client), at_commits=True
        )
        self.rebalancing = False
        self.steer()
        # Partitions that came are begun by the next poll.
        self.wake()

    async def _records(
        self, seconds: float
    ) -> dict[TopicPartition, list[ConsumerRecord[Any, Any]]]:
        """Return records of the partitions that are not paused.

        Raises:
            PoisonRecordError: a record cannot be parsed, and the policy is to stop.
            Exception: an error that does not pass.
        """
        # aiokafka drops what it has fetched of a paused partition when it is asked for that partition's records.
        wanted = self._client.assignment() - self._client.paused()
        try:
            async with asyncio.timeout(seconds + SLACK) as self._waiting:
                # The cluster's id is part of a record's place in the replay store. A record that was judged
                # without it would be a replay of itself when it comes again.
                await self._logs.of()
                places = wanted or (_NOWHERE,)
                return await self._client.getmany(*places, timeout_ms=int(seconds * 1000))  # type: ignore[no-any-return]
        except TimeoutError:
            return {}
        except Exception as error:
            # What was read before it is returned; where there is nothing, the error is acted on.
            poison = find_poison(error, "_tp", "next_batch")
            if poison is not None:
                batches = aiokafka_client.read_before(error, poison.partition)
                if not batches:
                    await arun(self._poison(poison, error, self._logs.known or NO_LOG))
                elif poison.partition in batches:
                    # The batch comes again, at the head of its partition.
                    self._client.seek(
                        poison.partition, batches[poison.partition][-1].offset + 1
                    )
                return batches
            if (
                isinstance(error, (OffsetOutOfRangeError, NoOffsetForPartitionError))
                and self.reset != "none"
            ):
                # A dictionary of offsets, or one partition.
                self.outside |= (
                    {error.args[0]}
                    if isinstance(error.args[0], TopicPartition)
                    else set(error.args[0])
                )
                return {}
            if not isinstance(error, KafkaError) or not error.retriable:
                raise
            emit(
                "client.poll_failed",
                "poll failed with %s and is tried again",
                type(error).__name__,
            )
            return {}
        finally:
            self._waiting = None


class Listener(ConsumerRebalanceListener):
    """Tells the poller of rebalances, and then the listener that the client had before.

    Args:
        poller: the poller.
    """

    theirs: Any = None

    def __init__(self, poller: Poller) -> None:
        self._poller = poller

    async def on_partitions_revoked(self, revoked: Any) -> None:
        """Tell of partitions that go, or may come back."""
        await self._poller.revoked(set(revoked))
        await self._tell("on_partitions_revoked", revoked)

    async def on_partitions_assigned(self, assigned: Any) -> None:
        """Tell of partitions that came."""
        await self._poller.assigned(set(assigned))
        await self._tell("on_partitions_assigned", assigned)

    async def _tell(self, method: str, partitions: Any) -> None:
        if self.theirs is not None:
            result = getattr(self.theirs, method)(partitions)
            if asyncio.iscoroutine(result):
                await result
