"""The Kafka consumer: a ``KafkaConsumer`` with the delivery engine.

``Poller`` makes the calls of the client, and ``Listener`` tells the assignment of its rebalances.

``poll()`` raises once for a record that cannot be parsed, and its next call spins for ever on the dead iterator
left behind.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack

from kafka import (
    ConsumerRebalanceListener,
    KafkaConsumer,
    OffsetAndMetadata,
    TopicPartition,
)
from kafka.errors import (
    CommitFailedError,
    KafkaError,
    RebalanceInProgressError,
    RetriableError,
)

from mqauth.brokers.dead_letters import responder_of
from mqauth.brokers.kafka import client as kafka_client
from mqauth.brokers.kafka import repair as kafka_repair
from mqauth.brokers.kafka.client import lacking
from mqauth.brokers.kafka.confirmed import TransactionalDeadLetters
from mqauth.brokers.log.consumer import LogConsumer
from mqauth.brokers.log.offsets import find_poison, step_over
from mqauth.brokers.log.poller import LogPoller
from mqauth.brokers.log.records import partition_messages
from mqauth.brokers.options import LogOptions
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.log_work import LogWork
from mqauth.delivery.start import Committed
from mqauth.errors import require
from mqauth.flow import run
from mqauth.judging.pipeline import Handler, Pipeline, V
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.logs import emit
from mqauth.wire.message import Message

if TYPE_CHECKING:
    from mqauth.brokers.kafka.producer import Producer


class Consumer(LogConsumer):
    """Judges the records of a subscribed ``KafkaConsumer`` and gives the accepted ones to a handler.

    A long handler costs no heartbeat and no rebalance, since another thread polls meanwhile. Offsets are committed
    explicitly, and only up to the first record that is not settled.

    Args:
        client: with ``group_id``, ``enable_auto_commit=False`` and no deserializers, subscribed; the consumer
            alone uses it until ``run`` has returned. It is not closed.
        guard: the pipeline, with an audit sink.
        handler: takes a ``Verified``; runs on a worker thread.
        dead_letters: where rejected messages go: ``DeadLetters``, or ``TransactionalDeadLetters`` for letters that
            are committed in one transaction with their offsets.
        replies: sends what ``Verified.reply`` is given to the topic in ``reply-to``. Where its client fails for
            good, since the broker refused an answer for example, ``run`` ends with ``ProducerFatalError``.
        on_poison: ``"stop"`` with an error at a record that kafka-python cannot parse, or ``"skip"`` its batch and
            write an audit record of the range.
        options: as ``mqauth.brokers.options.LogOptions`` has them.

    Raises:
        ConfigurationError: the client or a setting is not as said, or a plug-in is asynchronous.
    """

    def __init__(
        self,
        client: KafkaConsumer,
        guard: Pipeline,
        handler: Handler[V],
        *,
        dead_letters: DeadLetterSink,
        replies: Producer | None = None,
        on_poison: Literal["stop", "skip"] = "stop",
        **options: Unpack[LogOptions[V]],
    ) -> None:
        kafka_client.check_client(client)
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
            patience=kafka_client.rebalance_patience(client),
            session=kafka_client.session_of(client),
            **options,
        )
        if isinstance(dead_letters, TransactionalDeadLetters):
            kafka_client.check_isolation(client)
        self.attach(
            Poller(
                client,
                self._assignment,
                self._work,
                guard,
                skip=on_poison == "skip",
                replies=answer,
            )
        )
        listen(client, self._assignment)


COMMIT_TIMEOUT_MS: Final = 5000


class Poller(LogPoller):
    """The calls of one client, made by the thread that holds the poll lock.

    Args:
        client: the ``KafkaConsumer``.
        assignment: says which calls to make, and gets the records.
        work: audits the ranges that are skipped.
        guard: the pipeline.
        skip: whether to skip records that cannot be parsed instead of stopping.
        settings: as ``LogPoller`` has them.
    """

    failed = KafkaError

    def __init__(
        self,
        client: Any,
        assignment: Assignment,
        work: LogWork,
        guard: Pipeline,
        *,
        skip: bool,
        **settings: Any,
    ) -> None:
        super().__init__(client, assignment, **settings)
        self._logs = kafka_client.Logs(client)
        self.scope = str(client.config["group_id"])
        self.reset = str(client.config["auto_offset_reset"])
        kafka_repair.reset_to_earliest(client, self.outside.add)
        self._poison = partial(
            step_over,
            work=work,
            guard=guard,
            scope=self.scope,
            skip=skip,
            lacking=lacking,
        )
        self._kept: BaseException | None = None

    def fetch(self, seconds: float, joins: bool) -> dict[Any, list[Message]]:
        """Poll, and return the new messages by partition.

        Raises:
            PoisonRecordError: a record cannot be parsed, and the policy is to stop.
        """
        if self._kept is not None:
            error, self._kept = self._kept, None
            self._step_over(error)
        try:
            with nullcontext() if joins else kafka_repair.not_joining(self._client):
                kafka_repair.before_poll(self._client)
                records: dict[Any, list[Any]] = self._client.poll(
                    timeout_ms=int(seconds * 1000)
                )
        except COMES_AGAIN as error:
            emit(
                "client.poll_failed",
                "poll failed with %s and is tried again",
                type(error).__name__,
            )
            return {}
        except Exception as error:
            self._step_over(error)
            return {}
        self._kept = kafka_repair.postponed(self._client)
        logs, scope = self._logs, self.scope
        return {
            place: partition_messages(batch, place, scope, logs.of(place.topic))
            for place, batch in records.items()
        }

    def _step_over(self, error: BaseException) -> None:
        """Skip the batch that made ``poll()`` raise, or raise where there is none or the policy is to stop."""
        poison = find_poison(error)
        if poison is None or poison.partition is None:
            raise error
        kafka_repair.discard(self._client, poison.partition)
        position = kafka_repair.position(self._client, poison.partition)
        # Sent back to an earlier record meanwhile: what stands before is handled first, and then this comes again.
        if position is None or position >= poison.first:
            run(self._poison(poison, error, self._logs.of(poison.partition.topic)))

    def send_commit(self, offsets: Mapping[Any, Committed], /) -> str | None:
        """Commit offsets by partition; return the name of an error that passes."""
        natives = {
            place: OffsetAndMetadata(*commit, -1) for place, commit in offsets.items()
        }
        try:
            self._client.commit(natives, timeout_ms=COMMIT_TIMEOUT_MS)
        except COMES_AGAIN as error:
            return type(error).__name__
        return None

    def committed(self, places: Collection[Any], /) -> dict[Any, Committed]:
        """Return the group's commits by partition."""
        commits = kafka_repair.committed(self._client, list(places), COMMIT_TIMEOUT_MS)
        return {
            place: Committed(commit.offset, commit.metadata)
            for place, commit in commits.items()
        }

    def places(self, topic: str, /) -> set[Any]:
        """Return all partitions of a topic that the client knows of."""
        return {
            TopicPartition(topic, number)
            for number in self._client.partitions_for_topic(topic)
        }

    def position(self, place: Any, /) -> int | None:
        """Return the offset that is read next, ``None`` where there is none yet."""
        return kafka_repair.position(self._client, place)

    def bounds(self, places: Collection[Any], end: bool, /) -> dict[Any, int]:
        """Return the first offset of each partition, or the one behind the last record that may be read."""
        ask = self._client.end_offsets if end else self._client.beginning_offsets
        return ask(list(places), timeout_ms=COMMIT_TIMEOUT_MS)  # type: ignore[no-any-return]

    def passes(self, error: BaseException, /) -> bool:
        """Return whether the same call may succeed later."""
        return isinstance(error, COMES_AGAIN)

    def close(self) -> None:
        """Leave the client as it was given to us."""
        try:
            super().close()
        finally:
            kafka_repair.hand_back(self._client)

    def membership(self) -> Any:
        """Return the membership to commit by, ``None`` during a rebalance."""
        metadata = self._client.group_metadata()
        subscribed = self._client.subscription() is not None
        return None if subscribed and metadata.generation_id < 0 else metadata

    def rejoins(self) -> bool:
        """Return whether the next ``poll`` takes part in a rebalance."""
        return kafka_repair.rejoins(self._client)


class Listener(ConsumerRebalanceListener):
    """Tells the assignment of rebalances; runs on kafka-python's I/O thread, so it never raises and never commits.

    Args:
        client: the ``KafkaConsumer``.
        assignment: the partitions.
        theirs: the listener that the client had before; it is still called, and its errors are logged.
    """

    def __init__(self, client: Any, assignment: Assignment, theirs: Any = None) -> None:
        self._client = client
        self._assignment = assignment
        self.theirs = theirs

    def on_partitions_revoked(self, revoked: Any) -> None:
        """Drop what was taken away; suspend what may come back."""
        held, generation = (
            kafka_repair.held(self._client),
            kafka_repair.generation(self._client),
        )
        self._assignment.revoked(revoked, held, generation)
        kafka_repair.tell(self.theirs, "on_partitions_revoked", revoked)

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Go on with what came back; drop what did not, or what another member may have had in between."""
        held, generation = (
            kafka_repair.held(self._client),
            kafka_repair.generation(self._client),
        )
        kafka_repair.forget_positions(
            self._client, self._assignment.assigned(held, generation)
        )
        kafka_repair.tell(self.theirs, "on_partitions_assigned", assigned)

    def on_partitions_lost(self, lost: Any) -> None:
        """Drop what was lost; somebody else has it already."""
        self._assignment.lost(lost)
        kafka_repair.tell(self.theirs, "on_partitions_lost", lost)


def listen(client: Any, assignment: Assignment) -> None:
    """Register a ``Listener`` with a subscribed client; one with partitions assigned by hand needs none.

    Raises:
        ConfigurationError: nothing is subscribed, or the client has an asynchronous listener.
    """
    topics = client.subscription()
    if topics is None:
        require(client.assignment(), "subscribe the KafkaConsumer to a topic first")
        return
    state: Any = getattr(client, "_subscription", None)
    theirs = getattr(state, "rebalance_listener", None)
    require(
        theirs is None or isinstance(theirs, ConsumerRebalanceListener),
        "an asynchronous rebalance listener cannot be kept: give a synchronous one",
    )
    listener = Listener(
        client, assignment, theirs.theirs if isinstance(theirs, Listener) else theirs
    )
    # subscribe() would log that nothing changed.
    if hasattr(state, "rebalance_listener"):
        state.rebalance_listener = listener
    else:
        client.subscribe(topics=sorted(topics), listener=listener)


COMES_AGAIN: Final = (CommitFailedError, RebalanceInProgressError, RetriableError)
"""Errors of a poll or a commit that is to be made again."""
