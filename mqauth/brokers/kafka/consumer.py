"""The Kafka consumer: a ``KafkaConsumer`` with the delivery engine; dead letters and audit records, confirmed.

``poll()`` raises once for a record that cannot be parsed, and its next call spins for ever on the dead iterator
left behind. kafka-python waits in a transaction without a time limit, and after a failed one it keeps offsets that
it would add to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack

from kafka import ConsumerRebalanceListener, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.errors import (
    CommitFailedError,
    KafkaError,
    MessageSizeTooLargeError,
    ProducerFencedError,
    RebalanceInProgressError,
    RetriableError,
)

from mqauth.brokers.dead_letters import responder_of
from mqauth.brokers.kafka import client as kafka_client
from mqauth.brokers.kafka import repair as kafka_repair
from mqauth.brokers.kafka.client import lacking
from mqauth.brokers.log.confirmed import MAX_BLOCK, ConfirmingClient, TopicAudit, TopicLetters
from mqauth.brokers.log.consumer import LogConsumer
from mqauth.brokers.log.offsets import find_poison, step_over
from mqauth.brokers.log.poller import LogPoller
from mqauth.brokers.log.records import partition_messages
from mqauth.brokers.log.transaction import TransactionalLetters
from mqauth.brokers.options import LogOptions
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.log_work import LogWork
from mqauth.delivery.start import Committed
from mqauth.errors import require
from mqauth.flow import run
from mqauth.judging.pipeline import Handler, Pipeline, V
from mqauth.letters.dead_letter import DeadLetterSink, Oversize
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
        require(on_poison in ("stop", "skip"), f'on_poison must be "stop" or "skip", not {on_poison!r}')
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
        self.attach(Poller(client, self._assignment, self._work, guard, skip=on_poison == "skip", replies=answer))
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
        self, client: Any, assignment: Assignment, work: LogWork, guard: Pipeline, *, skip: bool, **settings: Any
    ) -> None:
        super().__init__(client, assignment, **settings)
        self._logs = kafka_client.Logs(client)
        self.scope = str(client.config["group_id"])
        self.reset = str(client.config["auto_offset_reset"])
        kafka_repair.reset_to_earliest(client, self.outside.add)
        self._poison = partial(step_over, work=work, guard=guard, scope=self.scope, skip=skip, lacking=lacking)
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
                records: dict[Any, list[Any]] = self._client.poll(timeout_ms=int(seconds * 1000))
        except COMES_AGAIN as error:
            emit("client.poll_failed", "poll failed with %s and is tried again", type(error).__name__)
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
        natives = {place: OffsetAndMetadata(*commit, -1) for place, commit in offsets.items()}
        try:
            self._client.commit(natives, timeout_ms=COMMIT_TIMEOUT_MS)
        except COMES_AGAIN as error:
            return type(error).__name__
        return None

    def committed(self, places: Collection[Any], /) -> dict[Any, Committed]:
        """Return the group's commits by partition."""
        commits = kafka_repair.committed(self._client, list(places), COMMIT_TIMEOUT_MS)
        return {place: Committed(commit.offset, commit.metadata) for place, commit in commits.items()}

    def places(self, topic: str, /) -> set[Any]:
        """Return all partitions of a topic that the client knows of."""
        return {TopicPartition(topic, number) for number in self._client.partitions_for_topic(topic)}

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
        held, generation = kafka_repair.held(self._client), kafka_repair.generation(self._client)
        self._assignment.revoked(revoked, held, generation)
        kafka_repair.tell(self.theirs, "on_partitions_revoked", revoked)

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Go on with what came back; drop what did not, or what another member may have had in between."""
        held, generation = kafka_repair.held(self._client), kafka_repair.generation(self._client)
        kafka_repair.forget_positions(self._client, self._assignment.assigned(held, generation))
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
    listener = Listener(client, assignment, theirs.theirs if isinstance(theirs, Listener) else theirs)
    # subscribe() would log that nothing changed.
    if hasattr(state, "rebalance_listener"):
        state.rebalance_listener = listener
    else:
        client.subscribe(topics=sorted(topics), listener=listener)


COMES_AGAIN: Final = (CommitFailedError, RebalanceInProgressError, RetriableError)
"""Errors of a poll or a commit that is to be made again."""


def confirming(client: Any, timeout: float) -> ConfirmingClient:
    """Return the calls of a ``KafkaProducer`` for confirmed records, and lower its ``max_block_ms`` to 5 s.

    Raises:
        ConfigurationError: it does not wait for all replicas, is idempotent, or serializes.
    """
    config = kafka_client.producer_settings(client)
    # One record that the broker refuses makes an idempotent producer of kafka-python fail for good (decision 11).
    require(
        not config["enable_idempotence"] and config["acks"] in (-1, "all"),
        'confirms need a KafkaProducer of their own with acks="all" and enable_idempotence=False',
    )
    config["max_block_ms"] = min(config["max_block_ms"], int(min(timeout, MAX_BLOCK) * 1000))
    # In a list: kafka-python's future could be awaited, and a synchronous flow refuses what could.
    return ConfirmingClient(
        send=lambda topic, **record: [client.send(topic, **record)],
        wait=lambda sent, seconds: sent[0].get(timeout=seconds),
        over=lambda sent: sent[0].is_done,
        has=partial(kafka_client.has_topic, client),
        too_large=MessageSizeTooLargeError,
        failed=(KafkaError, ValueError, TypeError, OSError),
    )


class DeadLetters(TopicLetters):
    """Sends dead letters to one topic and waits for the broker's confirm.

    Args:
        client: a ``KafkaProducer(acks="all", enable_idempotence=False)`` for dead letters alone: one letter that
            the broker refuses makes an idempotent client fail for good. Its ``max_block_ms`` is lowered to 5 s at
            most. Give it ``allow_auto_create_topics=False`` unless the broker may create the topic.
        topic: the dead-letter topic; its ``max.message.bytes`` should be above the source's.
        timeout: seconds to wait for the confirm.
        oversize_letters: a message that fits in no other form is dead-lettered by ``"reference"``
            (coordinates, digest, sizes) or deferred, ``"stop"``.

    Raises:
        ConfigurationError: the client is set up otherwise, or a setting is unknown.
    """

    def __init__(
        self, client: KafkaProducer, topic: str, timeout: float = 30, *, oversize_letters: Oversize = "reference"
    ) -> None:
        super().__init__(client, confirming(client, timeout), topic, timeout, oversize_letters)


class AuditTopic(TopicAudit):
    """An audit sink that sends each record as JSON, keyed by instance, and waits for the broker's confirm.

    The records have no ``prev`` and ``hash``: only the audit file is chained. Those of one instance are on one
    partition, in order. A topic with ``cleanup.policy=compact`` would lose all but the last of them.

    Args:
        client: a ``KafkaProducer(acks="all", enable_idempotence=False, allow_auto_create_topics=False)``, as for
            ``DeadLetters``, whose client may be used. Its ``max_block_ms`` is lowered to 5 s at most.
        topic: the audit topic.
        timeout: seconds to wait for the confirm.

    Raises:
        ConfigurationError: the client is set up otherwise, or a setting is wrong.
    """

    def __init__(self, client: KafkaProducer, topic: str, *, timeout: float = 30) -> None:
        super().__init__(client, confirming(client, timeout), topic, timeout)


class TransactionalDeadLetters(TransactionalLetters):
    """Dead letters that are written if and only if the offsets of their records are committed.

    Give it to a ``kafka.Consumer`` whose client has ``isolation_level="read_committed"``, and read the dead
    letters with that too. Once audited, a letter waits in memory; with the next commit it is written, in order and
    in the first of its forms that fits, together with the offsets. A transaction that fails is made again with
    the same letters; meanwhile their partitions are paused, and nothing of them is committed.

    Args:
        make_client: makes a connected ``KafkaProducer(transactional_id=...)`` for these letters alone; called at
            once, and after each failed transaction. The id is one for each running consumer and the same after
            its restart: a second instance with it shuts the first one out. Its clients are closed in the end.
        topic: the dead-letter topic; its ``max.message.bytes`` should be above the source's.
        timeout: seconds to wait for the broker to take the letters; longer ones are shown as stalled.

    Raises:
        ConfigurationError: the client has no ``transactional_id``, or a setting is out of its limits.
    """

    too_large = MessageSizeTooLargeError

    def __init__(self, make_client: Callable[[], KafkaProducer], topic: str, timeout: float = 30) -> None:
        super().__init__(make_client, topic, timeout)
        self.longest = self.client.config["transaction_timeout_ms"] / 1000

    def checked(self, client: Any) -> Any:
        """Return a new client, with the settings that it must have.

        Raises:
            ConfigurationError: it has no ``transactional_id``, or a serializer.
        """
        config = kafka_client.producer_settings(client)
        require(
            config["transactional_id"], "transactional dead letters need a KafkaProducer(transactional_id=...)"
        )
        config["max_block_ms"] = min(config["max_block_ms"], int(min(self.timeout, MAX_BLOCK) * 1000))
        return client

    def exists(self) -> bool | None:
        """Return whether the broker has the topic, as far as it tells."""
        return kafka_client.has_topic(self.client, self.name)

    def send_offsets(self, offsets: Mapping[Any, Committed], group: Any) -> None:
        """Add offsets to the transaction, by partition."""
        natives = {place: OffsetAndMetadata(*commit, -1) for place, commit in offsets.items()}
        self.client.send_offsets_to_transaction(natives, group)

    def fenced(self, _error: BaseException) -> bool:
        """Return whether another producer has taken over the id, or the broker has ended a long transaction."""
        manager = getattr(self.client, "_transaction_manager", None)
        return isinstance(getattr(manager, "last_error", None), ProducerFencedError)

    def close_client(self, client: Any) -> None:
        """Close a client within seconds, whatever its state."""
        kafka_repair.close_producer(client)
