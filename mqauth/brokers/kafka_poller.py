"""What is asked of the ``KafkaConsumer`` itself: poll, pause, seek, commit; on the polling thread alone."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final

from kafka import OffsetAndMetadata
from kafka.errors import CommitFailedError, RebalanceInProgressError, RetriableError

from mqauth.brokers import kafka_poison, kafka_repair
from mqauth.brokers.kafka_assignment import Assignment
from mqauth.brokers.kafka_log import Logs
from mqauth.brokers.kafka_offsets import receipts
from mqauth.brokers.kafka_outbox import Due, Transactions
from mqauth.brokers.kafka_partition import Assigned, Stall, offset_of
from mqauth.brokers.kafka_poison import Poison, PoisonRecordError
from mqauth.brokers.kafka_settings import Backoff
from mqauth.errors import Cause
from mqauth.flow import ColourError, call, run
from mqauth.pipeline import Outcome, Pipeline, Verdict

COMMIT_TIMEOUT_MS: Final = 5000
COMMIT_RETRY: Final = 1.0
"""Seconds before a commit that failed is made again; during a rebalance none can succeed."""
_COMES_AGAIN: Final = (CommitFailedError, RebalanceInProgressError)
_LOG: Final = logging.getLogger("mqauth.kafka")


class Poller:
    """Polls one client and commits for it.

    Args:
        client: the ``KafkaConsumer``.
        assignment: its partitions.
        guard: its clock, and its audit sink for skipped ranges.
        skip: skip what cannot be parsed instead of stopping.
        commit_interval: longest time between commits, seconds.
        transactions: commit dead letters with their offsets, where those are to be one.
    """

    def __init__(
        self,
        client: Any,
        assignment: Assignment,
        guard: Pipeline,
        *,
        skip: bool,
        commit_interval: float,
        transactions: Transactions | None = None,
    ) -> None:
        self._client = client
        self._assignment = assignment
        self._guard = guard
        self._skip = skip
        self._interval = commit_interval
        self._transactions = transactions
        self._clock = guard.clock
        self._committed_at = self._clock.monotonic()
        self._held_until = self._committed_at
        self._paused: set[Any] = set()
        self._kept: BaseException | None = None
        self._backoff = Backoff()

    def poll(self, seconds: float) -> dict[Any, list[Any]]:
        """Return new records by partition; a record that cannot be parsed is dealt with.

        Raises:
            PoisonRecordError: one cannot, and the policy is to stop.
        """
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

    def tend(self, seconds: float) -> None:
        """Look after the transaction in flight, and wait at most so long for it.

        Raises:
            ProducerFatalError: another producer has taken over its transactional id.
        """
        if self._transactions is not None:
            self._transactions.wait(seconds)
            self._transactions.advance()

    def pause(self, busy: Iterable[Any]) -> None:
        """Have exactly these partitions paused, of those assigned; what others paused stays so."""
        wanted = set(busy) & set(self._client.assignment())
        paused = set(self._client.paused())
        self._client.pause(*(wanted - paused))
        self._client.resume(*((paused & self._paused) - wanted))
        self._paused = (wanted - paused) | (wanted & self._paused)

    def put_off(self, assigned: Assigned, outcome: Outcome, backoff: Backoff) -> None:
        """Let a partition wait for the world with its first record kept; those behind it are read again later."""
        head, *tail = assigned.waiting
        offset = offset_of(head)
        if tail:
            assigned.receipts = receipts((offset_of(delivery), delivery.received) for delivery in tail)
            for _ in tail:
                assigned.waiting.pop()
            assigned.prefix.forget_after(offset)
            self._seek(assigned, offset_of(tail[0]))
        self._stall(assigned, offset, outcome, backoff)

    @property
    def due(self) -> Due:
        """The offsets to commit, by partition."""
        return {
            assigned.partition: (assigned, offset)
            for assigned in self._assignment.all()
            if assigned.alive and not assigned.suspended and (offset := assigned.prefix.due) is not None
        }

    @property
    def owes(self) -> bool:
        """Whether something can be committed now, or is being."""
        if self._transactions is not None and self._transactions.in_flight:
            return True
        rested = self._transactions is None or self._transactions.rested
        return rested and self._clock.monotonic() >= self._held_until and bool(self.due)

    def commit(self, *, ended: bool, last: bool = False) -> None:
        """Commit the settled prefixes: after each batch, and at intervals while one is long.

        Args:
            ended: a batch has ended.
            last: there is no later time.

        Raises:
            kafka.errors.KafkaError: the broker refuses for good, for lack of rights for example.
        """
        now = self._clock.monotonic()
        if not last and (now < self._held_until or (not ended and now - self._committed_at < self._interval)):
            return
        due = self.due if self._transactions is None else self._transactions.commit(lambda: self.due, last=last)
        if not due:
            return
        self._committed_at = now
        try:
            self._client.commit(
                {partition: OffsetAndMetadata(offset) for partition, (_, offset) in due.items()},
                timeout_ms=COMMIT_TIMEOUT_MS,
            )
        except (*_COMES_AGAIN, RetriableError) as error:
            self._held_until = now + COMMIT_RETRY
            _LOG.warning("commit: %s; what it covers may come again", type(error).__name__)
        else:
            for assigned, offset in due.values():
                assigned.prefix.committed(offset)

    def hand_back(self) -> None:
        """Leave the client as it was given to us: nothing paused, each partition at its first unsettled record."""
        try:
            for assigned in self._assignment.all():
                offset = assigned.first_open
                if offset is not None:
                    self._seek(assigned, offset)
            self.pause(())
        finally:
            kafka_repair.hand_back(self._client)

    def _seek(self, assigned: Assigned, offset: int) -> None:
        """Read a partition from an offset, where it is still ours."""
        if assigned.alive and assigned.partition in self._client.assignment():
            self._client.seek(assigned.partition, offset)

    def _stall(self, assigned: Assigned, offset: int, outcome: Outcome, backoff: Backoff) -> None:
        """Note why a partition waits and until when."""
        assigned.since = assigned.since or self._clock.now()
        place = assigned.partition
        assigned.attempt += 1
        assigned.due = self._clock.monotonic() + backoff.wait(assigned.attempt)
        stall = Stall(
            topic=place.topic, partition=place.partition, offset=offset, cause=outcome.cause,
            detail=outcome.detail, since=assigned.since,
        )  # fmt: skip
        if assigned.stall is None or assigned.stall.cause is not stall.cause:
            _LOG.warning("%s-%d stalls at %d: %s", place.topic, place.partition, offset, outcome.cause)
        assigned.stall = stall

    def _step_over(self, error: BaseException) -> None:
        """Deal with an exception of ``poll()``: a poison record, or what is none of ours."""
        poison = kafka_poison.find(error)
        if poison is None or poison.partition is None:
            raise error
        kafka_repair.discard(self._client, poison.partition)
        if not self._skip:
            place = f"{poison.partition.topic}-{poison.partition.partition}"
            raise PoisonRecordError(
                f"{place}: the batch from offset {poison.first} to {poison.beyond - 1} cannot be parsed"
                f" ({poison.error})"
            ) from error
        self._skip_batch(poison)

    def _skip_batch(self, poison: Poison) -> None:
        """Put a skipped range on record, then seek past it; without the record it waits."""
        assigned = self._assignment.get(poison.partition)
        scope = self._guard.scope or self._client.config["group_id"]
        record = kafka_poison.audit_record(
            poison, self._guard, scope, Logs(self._client).of(poison.partition.topic)
        )
        try:
            run(call(self._guard.audit.write, record))  # type: ignore[union-attr]
        except ColourError:
            raise
        except Exception as error:
            outcome = Outcome(verdict=Verdict.DEFERRED, cause=Cause.AUDIT_UNAVAILABLE, detail=type(error).__name__)
            self._stall(assigned, poison.first, outcome, self._backoff)
            return
        _LOG.error("%s-%d: offsets %d to %d cannot be parsed, skipped", poison.partition.topic,
                   poison.partition.partition, poison.first, poison.beyond - 1)  # fmt: skip
        last = poison.beyond - 1
        assigned.recovered()
        assigned.prefix.receive(last)
        assigned.prefix.settle(last)
        self._seek(assigned, poison.beyond)
