"""Dead letters and offsets in one Kafka transaction: the side of the polling thread, for every client.

Letters wait with their ``Partition``, and are dropped with it: its next owner reads their records again. One
transaction is in flight at a time, and no plain commit beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mqauth.brokers.log.records import ProducerFatalError
from mqauth.brokers.log.transaction import TransactionalLetters, TransactionAttempt, TransactionContent
from mqauth.clock import Backoff, Clock
from mqauth.delivery.assignment import Assignment, Due
from mqauth.delivery.health import Stall
from mqauth.delivery.partition import Partition
from mqauth.delivery.start import Committed
from mqauth.errors import Cause
from mqauth.flow import Flow, call
from mqauth.letters.dead_letter import DeadLetter
from mqauth.logs import emit

BUSY: Final = 0.05
"""Seconds to wait for a transaction in flight between polls."""


@dataclass(frozen=True, slots=True)
class Outbox:
    """The dead-letter sink of one partition: keeps letters until they are committed with its offset."""

    name: str
    partition: Partition

    def publish(self, letter: DeadLetter, /) -> None:
        """Keep a letter."""
        self.partition.letters.append((letter.message.origin.offset or 0, letter))


class Transactions:
    """Commits letters with offsets, one transaction after the other.

    Args:
        group: the calls of the consumer's client (``LogPoller``).
        letters: where they go.
        assignment: the partitions that they come from.
        clock: tells the time.
        backoff: how long to wait after a failure.
    """

    def __init__(
        self,
        group: Any,
        letters: TransactionalLetters,
        assignment: Assignment,
        clock: Clock,
        backoff: Backoff,
    ) -> None:
        self._group = group
        self._letters = letters
        self._assignment = assignment
        self._clock = clock
        self._backoff = backoff
        self._attempt: TransactionAttempt | None = None
        self._due: Due = {}
        self._doubtful: Due = {}
        self._failures = 0
        self._since: float | None = None
        self._began = self._held_until = clock.monotonic()
        self._started = self._dead = False

    @property
    def in_flight(self) -> bool:
        """Whether a transaction is in flight, or it is not known whether the last one was committed."""
        return self._attempt is not None or bool(self._doubtful)

    @property
    def rested(self) -> bool:
        """Whether the wait after a failure is over."""
        return self._clock.monotonic() >= self._held_until

    def sink(self, partition: Partition) -> Outbox:
        """Return where the letters of a partition go."""
        return Outbox(self._letters.name, partition)

    def committing(self, *, last: bool = False) -> Flow[Due]:
        """Begin to commit letters with all offsets that are due; return what is left for a plain commit.

        Args:
            last: whether this is the last commit; then wait for it, at most the timeout.

        Raises:
            ProducerFatalError: another producer has taken over the transactional id.
        """
        if last:
            yield from self._finishing()
        if self.in_flight:
            return {}
        # The membership is read first. Where a partition is lost between the two reads, the broker refuses the
        # transaction of a former member.
        group, due = self._group.membership(), self._assignment.settled_offsets()
        letters = [
            letter
            for partition, offset in due.items()
            # A copy: a worker may add a letter meanwhile.
            for place, letter in tuple(partition.letters)
            if place < offset
        ]
        if not letters:
            return due
        if group is None or self._dead or not (self.rested or last):
            return {partition: offset for partition, offset in due.items() if not partition.letters}
        self._due = due
        offsets = {each.topic_partition: Committed(offset, each.metadata) for each, offset in due.items()}
        self._start(TransactionContent(letters=letters, offsets=offsets, group=group))
        if last:
            yield from self._finishing()
        return {}

    def advancing(self) -> Flow[None]:
        """Act on the end of the transaction in flight, show one that takes too long, or start a producer.

        Raises:
            ProducerFatalError: another producer has taken over the transactional id.
        """
        attempt = self._attempt
        if attempt is not None and not attempt.over.is_set():
            if self._clock.monotonic() - attempt.began >= self._letters.timeout:
                self._stall(self._due or self._doubtful, "a transaction is still open")
        elif attempt is not None:
            self._attempt = None
            yield from self._ended(attempt)
        elif not self._dead and (self._doubtful or not self._started) and self.rested:
            self._start(TransactionContent())

    def tending(self, longest: float) -> Flow[float]:
        """Look after the transaction in flight; return the seconds that a poll may wait, at most ``longest``.

        Raises:
            ProducerFatalError: another producer has taken over the transactional id.
        """
        yield from self._waiting(min(longest, BUSY))
        yield from self.advancing()
        return 0.0 if self.in_flight else longest

    def close(self) -> None:
        """Close the producer; one whose transaction is still open is left to the broker's time limit."""
        if self._attempt is None:
            self._letters.discard()

    def closed(self) -> Any:
        """Return once all producers are closed; on an event loop a coroutine."""
        return self._letters.closed()

    def _waiting(self, seconds: float) -> Flow[None]:
        if self._attempt is not None:
            yield from call(self._group.wait, self._attempt.over, seconds)

    def _finishing(self) -> Flow[None]:
        yield from self._waiting(self._letters.timeout)
        yield from self.advancing()

    def _start(self, content: TransactionContent) -> None:
        self._attempt = TransactionAttempt(self._letters, content, self._clock)

    def _ended(self, attempt: TransactionAttempt) -> Flow[None]:
        """Act on the end of an attempt: note the commit, doubt it, try again, or give up for good."""
        due, self._due = self._due, {}
        if attempt.fenced:
            self._dead = True
            raise ProducerFatalError("another producer has the transactional id: use one for each consumer")
        if attempt.committed:
            self._started = True
            if self._doubtful:
                return (yield from self._settling_doubt())
            return self._committed(due, attempt.began)
        if attempt.committed is None:
            self._doubtful, self._began = due, attempt.began
        # A letter that is too large goes in a smaller form at once.
        if not isinstance(attempt.error, self._letters.too_large):
            self._failures += 1
            self._held_until = self._clock.monotonic() + self._backoff.wait(self._failures)
        emit(
            "client.transaction_failed",
            "a transaction failed with %s and is made again",
            type(attempt.error).__name__,
        )
        self._stall(due or self._doubtful, type(attempt.error).__name__)

    def _settling_doubt(self) -> Flow[None]:
        """Ask the broker whether a transaction was committed: the next producer has ended it either way."""
        doubtful, self._doubtful = self._doubtful, {}
        try:
            places = [partition.topic_partition for partition in doubtful if partition.alive]
            commits: Mapping[Any, Committed] = (yield from call(self._group.committed, places)) if places else {}
            for partition, offset in doubtful.items():
                commit = commits.get(partition.topic_partition)
                if partition.alive and commit is not None and commit.offset >= offset:
                    self._committed({partition: offset}, self._began)
        except self._group.failed as error:
            emit(
                "client.offsets_unknown",
                "reading committed offsets failed with %s and is tried again",
                type(error).__name__,
            )
            self._doubtful = doubtful
            self._held_until = self._clock.monotonic() + self._backoff.wait(1)

    def _committed(self, due: Due, began: float) -> None:
        self._assignment.committed(due, began)
        self._failures, self._since = 0, None

    def _stall(self, due: Due, detail: str) -> None:
        """Show in health the partitions whose letters wait."""
        self._since = self._since or self._clock.now()
        for partition in due:
            if partition.letters:
                place = partition.topic_partition
                partition.unsent = Stall(
                    topic=place.topic,
                    partition=place.partition,
                    offset=partition.letters[0][0],
                    cause=Cause.DEAD_LETTER_UNAVAILABLE,
                    detail=detail,
                    since=self._since,
                )
