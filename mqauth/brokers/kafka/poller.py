"""What is asked of the ``KafkaConsumer`` itself: poll, pause, seek, commit; by the thread that has the turn."""

from __future__ import annotations

import logging
from typing import Any, Final

from kafka import OffsetAndMetadata

from mqauth.brokers.kafka import repair as kafka_repair
from mqauth.brokers.kafka.log import Logs
from mqauth.brokers.kafka.outbox import Transactions
from mqauth.brokers.kafka.poison import COMES_AGAIN, Parsed
from mqauth.brokers.kafka.replies import Replies
from mqauth.brokers.kafka.translate import from_native
from mqauth.delivery.book import Book
from mqauth.delivery.facts import Wanted
from mqauth.delivery.work import Work
from mqauth.judging.pipeline import Pipeline

IDLE: Final = 0.2
"""Seconds one ``poll()`` may wait, since kafka-python has no wakeup: how soon ``stop()`` is seen."""
COMMIT_TIMEOUT_MS: Final = 5000
_LOG: Final = logging.getLogger("mqauth.kafka")


class Poller:
    """Makes one client's calls.

    Args:
        client: the ``KafkaConsumer``.
        book: what is wished for, and what is told of what came of it.
        work: puts skipped ranges on record.
        guard: names skipped ranges.
        skip: skip what cannot be parsed instead of stopping.
        transactions: commit dead letters with their offsets, where those are to be one.
        replies: send answers.
    """

    def __init__(
        self,
        client: Any,
        book: Book,
        work: Work,
        guard: Pipeline,
        *,
        skip: bool,
        transactions: Transactions | None,
        replies: Replies | None,
    ) -> None:
        self._client = client
        self._book = book
        self._transactions = transactions
        self._replies = replies
        self._logs = Logs(client)
        self._scope = str(client.config["group_id"])
        self._records = Parsed(client, work, guard, self._logs, skip=skip)

    def poll(self, *, joins: bool) -> None:
        """Ask the client for what is wished, and note what it returns.

        Args:
            joins: it may take part in a rebalance.

        Raises:
            PoisonRecordError: a record cannot be parsed, and the policy is to stop.
            ProducerFatalError: the producer of answers, or of transactional letters, can send nothing more.
        """
        if self._replies is not None:
            self._replies.check()
        self._ask(self._book.wanted(self._client.assignment(), self._client.paused()))
        self._book.beat()
        records = self._records.poll(self._patience(), joins=joins)
        self._book.beat()
        for partition, batch in records.items():
            log = self._logs.of(partition.topic)
            self._book.receive(partition, [from_native(record, scope=self._scope, log=log) for record in batch])

    def commit(self, *, last: bool = False) -> None:
        """Commit what is settled, where it is time.

        Args:
            last: there is no later time.

        Raises:
            ProducerFatalError: another producer has taken over the transactional id.
            kafka.errors.KafkaError: the broker refuses for good, for lack of rights for example.
        """
        due = self._book.due(last=last)
        if self._transactions is not None and (due or last):
            due = self._transactions.commit(last=last)
        if not due:
            return
        began = self._book.committing()
        try:
            self._client.commit(
                {part.place: OffsetAndMetadata(offset) for part, offset in due.items()},
                timeout_ms=COMMIT_TIMEOUT_MS,
            )
        except COMES_AGAIN as error:
            self._book.refused()
            _LOG.warning("commit: %s; what it covers may come again", type(error).__name__)
        else:
            self._book.committed(due, began)

    def close(self) -> None:
        """Leave the client as it was given to us."""
        try:
            self._ask(self._book.hand_back(self._client.assignment(), self._client.paused()))
        finally:
            kafka_repair.hand_back(self._client)
            if self._transactions is not None:
                self._transactions.close()

    def rejoins(self) -> bool:
        """Tell whether the next ``poll`` takes part in a rebalance."""
        return kafka_repair.rejoins(self._client)

    def _patience(self) -> float:
        """Return the seconds a poll may wait, once the transaction in flight was looked after."""
        longest = self._book.patience(IDLE)
        return longest if self._transactions is None else self._transactions.tend(longest)

    def _ask(self, wanted: Wanted) -> None:
        """Pause, resume and seek as wished."""
        self._client.pause(*wanted.pause)
        for partition, offset in wanted.seek.items():
            self._client.seek(partition, offset)
        self._client.resume(*wanted.resume)
