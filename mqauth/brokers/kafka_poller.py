"""What is asked of the ``KafkaConsumer`` itself: poll, pause, seek, commit; by the thread that has the turn."""

from __future__ import annotations

import logging
from typing import Any, Final

from kafka import OffsetAndMetadata
from kafka.errors import CommitFailedError, RebalanceInProgressError, RetriableError

from mqauth.brokers import kafka_poison, kafka_repair
from mqauth.brokers.kafka_log import Logs
from mqauth.brokers.kafka_outbox import Transactions
from mqauth.brokers.kafka_poison import Poison, PoisonRecordError
from mqauth.brokers.kafka_translate import from_native
from mqauth.delivery.book import Book
from mqauth.delivery.facts import Wanted
from mqauth.delivery.work import Work
from mqauth.pipeline import Pipeline

IDLE: Final = 0.2
"""Seconds one ``poll()`` may wait, since kafka-python has no wakeup: how soon ``stop()`` is seen."""
BUSY: Final = 0.05
"""Seconds for which a transaction in flight is waited for between polls."""
COMMIT_TIMEOUT_MS: Final = 5000
_COMES_AGAIN: Final = (CommitFailedError, RebalanceInProgressError)
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
    ) -> None:
        self._client = client
        self._book = book
        self._work = work
        self._guard = guard
        self._skip = skip
        self._transactions = transactions
        self._logs = Logs(client)
        self._scope = str(client.config["group_id"])
        self._kept: BaseException | None = None

    def poll(self) -> None:
        """Ask the client for what is wished, and note what it returns.

        Raises:
            PoisonRecordError: a record cannot be parsed, and the policy is to stop.
            ProducerFatalError: another producer has taken over the transactional id.
        """
        self._ask(self._book.wanted(self._client.assignment(), self._client.paused()))
        self._book.beat()
        records = self._polled(self._patience())
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
        except (*_COMES_AGAIN, RetriableError) as error:
            self._book.refused()
            _LOG.warning("commit: %s; what it covers may come again", type(error).__name__)
        else:
            self._book.committed(due, began)

    def hand_back(self) -> None:
        """Leave the client as it was given to us."""
        try:
            self._ask(self._book.hand_back(self._client.assignment(), self._client.paused()))
        finally:
            kafka_repair.hand_back(self._client)

    def _patience(self) -> float:
        """Return the seconds a poll may wait, once the transaction in flight was looked after."""
        longest = self._book.patience(IDLE)
        if self._transactions is None:
            return longest
        self._transactions.wait(min(longest, BUSY))
        self._transactions.advance()
        return 0.0 if self._transactions.in_flight else longest

    def _ask(self, wanted: Wanted) -> None:
        """Pause, resume and seek as wished."""
        self._client.pause(*wanted.pause)
        for partition, offset in wanted.seek.items():
            self._client.seek(partition, offset)
        self._client.resume(*wanted.resume)

    def _polled(self, seconds: float) -> dict[Any, list[Any]]:
        """Return new records by partition; a record that cannot be parsed is dealt with."""
        if self._kept is not None:
            error, self._kept = self._kept, None
            self._step_over(error)
        try:
            kafka_repair.before_poll(self._client)
            records: dict[Any, list[Any]] = self._client.poll(timeout_ms=int(seconds * 1000))
        except (*_COMES_AGAIN, RetriableError) as error:
            _LOG.warning("poll: %s, tried again", type(error).__name__)
            return {}
        except Exception as error:
            self._step_over(error)
            return {}
        self._kept = kafka_repair.postponed(self._client)
        return records

    def _step_over(self, error: BaseException) -> None:
        """Deal with an exception of ``poll()``: a poison record, or what is none of ours."""
        poison = kafka_poison.find(error)
        if poison is None or poison.partition is None:
            raise error
        kafka_repair.discard(self._client, poison.partition)
        if not self._skip:
            raise PoisonRecordError(str(poison)) from error
        self._skip_batch(poison)

    def _skip_batch(self, poison: Poison) -> None:
        """Have a range put on record and stepped over; without the record it waits."""
        log, scope = self._logs.of(poison.partition.topic), self._guard.scope or self._scope
        record = kafka_poison.audit_record(poison, self._guard, scope, log)
        if self._work.skip(poison.partition, poison.first, poison.beyond, record):
            _LOG.error("%s, skipped", poison)
