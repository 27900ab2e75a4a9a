"""The calls of a ``KafkaConsumer``: poll, pause, seek, commit, and what its rebalances tell the assignment."""

from __future__ import annotations

import logging
from typing import Any, Final

from kafka import ConsumerRebalanceListener, OffsetAndMetadata

from mqauth.brokers.kafka import repair as kafka_repair
from mqauth.brokers.kafka.outbox import Transactions
from mqauth.brokers.kafka.poison import COMES_AGAIN, RecordReader
from mqauth.brokers.kafka.replies import Replies
from mqauth.brokers.kafka.translate import Logs, from_native
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.log_work import LogWork
from mqauth.delivery.partition import ClientCalls
from mqauth.errors import ConfigurationError
from mqauth.judging.pipeline import Pipeline

IDLE: Final = 0.2
"""Most seconds of one ``poll()``: kafka-python has no wakeup, so this is how soon ``stop()`` is seen."""
COMMIT_TIMEOUT_MS: Final = 5000
_LOG: Final = logging.getLogger("mqauth.kafka")


class Poller:
    """The calls of one client, made by the thread that holds the poll lock (``LogClient``).

    Args:
        client: the ``KafkaConsumer``.
        assignment: says which calls to make, and gets the records.
        work: audits the ranges that are skipped.
        guard: the pipeline.
        skip: whether to skip records that cannot be parsed instead of stopping.
        transactions: commit dead letters with their offsets, where the consumer has transactional ones.
        replies: send answers.
    """

    def __init__(
        self,
        client: Any,
        assignment: Assignment,
        work: LogWork,
        guard: Pipeline,
        *,
        skip: bool,
        transactions: Transactions | None,
        replies: Replies | None,
    ) -> None:
        self._client = client
        self._assignment = assignment
        self._transactions = transactions
        self._replies = replies
        self._logs = Logs(client)
        self._scope = str(client.config["group_id"])
        self._records = RecordReader(client, work, guard, self._logs, skip=skip)

    def poll(self, *, joins: bool) -> None:
        """Make the calls that the assignment asks for, poll, and add the records to the assignment.

        Args:
            joins: whether it may take part in a rebalance.

        Raises:
            PoisonRecordError: a record cannot be parsed, and the policy is to stop.
            ProducerFatalError: the producer of answers, or of transactional letters, can send nothing more.
        """
        if self._replies is not None:
            self._replies.check()
        self._ask(self._assignment.client_calls(self._client.assignment(), self._client.paused()))
        self._assignment.heartbeat()
        records = self._records.poll(self._patience(), joins=joins)
        self._assignment.heartbeat()
        for partition, batch in records.items():
            log = self._logs.of(partition.topic)
            found = [from_native(record, scope=self._scope, log=log) for record in batch]
            self._assignment.receive(partition, found)

    def commit(self, *, last: bool = False) -> None:
        """Commit the offsets that are due.

        Args:
            last: whether this is the last commit.

        Raises:
            ProducerFatalError: another producer has taken over the transactional id.
            kafka.errors.KafkaError: the broker refuses for good, for lack of rights for example.
        """
        due = self._assignment.due_commits(last=last)
        if self._transactions is not None and (due or last):
            due = self._transactions.commit(last=last)
        if not due:
            return
        began = self._assignment.commit_began()
        try:
            self._client.commit(
                {partition.topic_partition: OffsetAndMetadata(offset) for partition, offset in due.items()},
                timeout_ms=COMMIT_TIMEOUT_MS,
            )
        except COMES_AGAIN as error:
            self._assignment.commit_failed()
            _LOG.warning("commit failed with %s; its records may come again", type(error).__name__)
        else:
            self._assignment.committed(due, began)

    def close(self) -> None:
        """Leave the client as it was given to us."""
        try:
            self._ask(self._assignment.final_calls(self._client.assignment(), self._client.paused()))
        finally:
            kafka_repair.hand_back(self._client)
            if self._transactions is not None:
                self._transactions.close()

    def rejoins(self) -> bool:
        """Return whether the next ``poll`` takes part in a rebalance."""
        return kafka_repair.rejoins(self._client)

    def _patience(self) -> float:
        longest = self._assignment.poll_timeout(IDLE)
        return longest if self._transactions is None else self._transactions.tend(longest)

    def _ask(self, wanted: ClientCalls) -> None:
        # Paused first and resumed last: a partition must not be fetched from its old position in between.
        self._client.pause(*wanted.pause)
        for partition, offset in wanted.seek.items():
            self._client.seek(partition, offset)
        self._client.resume(*wanted.resume)


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
        self._assignment.revoked(revoked, kafka_repair.held(self._client))
        kafka_repair.tell(self.theirs, "on_partitions_revoked", revoked)

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Go on with what came back; drop what did not."""
        self._assignment.assigned(kafka_repair.held(self._client))
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
        if not client.assignment():
            raise ConfigurationError("subscribe the KafkaConsumer to a topic first")
        return
    state: Any = getattr(client, "_subscription", None)
    theirs = getattr(state, "rebalance_listener", None)
    if theirs is not None and not isinstance(theirs, ConsumerRebalanceListener):
        raise ConfigurationError("an asynchronous rebalance listener cannot be kept: give a synchronous one")
    listener = Listener(client, assignment, theirs.theirs if isinstance(theirs, Listener) else theirs)
    # subscribe() would log that nothing changed.
    if hasattr(state, "rebalance_listener"):
        state.rebalance_listener = listener
    else:
        client.subscribe(topics=sorted(topics), listener=listener)
