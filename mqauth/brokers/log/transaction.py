"""Dead letters and offsets in one Kafka transaction (KIP-98, KIP-447), for every client.

A client may wait in a transaction for long, and some are of no use after a failed one. So each transaction runs on
a thread of its own, and a producer that failed is thrown away. Letters wait with their ``Partition``, and are
dropped with it: its next owner reads their records again. One transaction is in flight at a time, and no plain
commit beside it.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mqauth.brokers.log.confirmed import can_exist
from mqauth.brokers.log.records import (
    ProducerFatalError,
    carries,
    dead_letter_headers,
    record_size,
)
from mqauth.clock import Backoff, Clock
from mqauth.delivery.assignment import Assignment, Due
from mqauth.delivery.health import Stall
from mqauth.delivery.partition import Partition
from mqauth.delivery.start import Committed
from mqauth.errors import Cause, ConfigurationError, Errors, require
from mqauth.flow import Flow, call
from mqauth.letters.dead_letter import Carries, DeadLetter, undelivered
from mqauth.logs import emit
from mqauth.wire.message import Message

BUSY: Final = 0.05
"""Seconds to wait for a transaction in flight between polls."""


class TransactionalLetters(ABC):
    """Dead letters that are written if and only if the offsets of their records are committed.

    Args:
        make_client: makes a connected producer with a transactional id; called at once, and after each failed
            transaction.
        topic: the dead-letter topic.
        timeout: seconds to wait for the broker to take the letters; longer ones are shown as stalled.

    Attributes:
        client: the producer, ``None`` after one was thrown away.
        longest: seconds after which the broker ends an open transaction itself.
        carries: returns whether the client can send a header again unchanged.
        too_large: errors of a record that is over a size of the client or the broker.

    Raises:
        ConfigurationError: the client is not as said, or a setting is out of its limits.
    """

    longest: float
    too_large: Errors
    carries: Carries = staticmethod(carries)

    def __init__(
        self, make_client: Callable[[], Any], topic: str, timeout: float
    ) -> None:
        require(
            callable(make_client),
            "make_client must be a function that makes a producer, since a failed one is replaced",
        )
        require(
            timeout > 0 and topic,
            "a topic must be named, and timeout must be above 0 seconds",
        )
        self.name = topic
        self.timeout = timeout
        self._make = make_client
        # The smallest size that the broker has refused since the last commit.
        self._limit = math.inf
        self._ready = False
        self.client: Any = self.checked(make_client())

    # Calls of the client, which a leaf makes

    @abstractmethod
    def checked(self, client: Any) -> Any:
        """Return a new client; refuse one that has not the settings that it must have."""

    def made(self, work: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        """Make a call of the client: on its event loop, where it has one."""
        return work(*args, **named)

    def start(self) -> None:
        """Start the client; a transaction that its predecessor left open is ended first."""
        self.client.init_transactions()

    def send(self, record: Mapping[str, Any]) -> Any:
        """Give a record to the client; return what holds its outcome."""
        return self.made(self.client.send, self.name, **record)

    def confirmed(self, sent: Any) -> None:
        """Return once the broker has a record; raise why not, after ``timeout`` at most."""
        sent.get(timeout=self.timeout)

    @abstractmethod
    def send_offsets(self, offsets: Mapping[Any, Committed], group: Any) -> None:
        """Add offsets by partition; by ``group``, a membership, the broker refuses a former member (KIP-447)."""

    @abstractmethod
    def fenced(self, error: BaseException) -> bool:
        """Return whether another producer has taken over the id, or the broker has ended a long transaction."""

    def closed(self) -> Any:
        """Return once all clients are closed; on an event loop a coroutine."""
        return None

    @abstractmethod
    def close_client(self, client: Any) -> None:
        """Close a client within seconds, whatever its state."""

    # What is the same for all

    def publish(self, _letter: DeadLetter, /) -> None:
        """Refuse a letter without its offset, by ``ConfigurationError``: only our consumers commit both."""
        raise ConfigurationError(
            "transactional dead letters are for mqauth's Consumer: it commits the offsets"
        )

    def prepare(self) -> None:
        """Have a producer that can begin."""
        if self.client is None:
            self.client = self.checked(self._make())
        if not self._ready:
            self.start()
            self._ready = True

    def write(
        self, letters: Sequence[DeadLetter], offsets: Mapping[Any, Committed], group: Any
    ) -> None:
        """Begin a transaction with letters, each confirmed by the broker, and offsets; it is not committed yet."""
        # Nothing may be in flight when it is committed: a record that fails then makes kafka-python drop the
        # transaction and report success.
        self.made(self.client.begin_transaction)
        refused: dict[int, Exception] = {}
        # All are sent before the first is waited for.
        for form, outcome in [self._send(letter) for letter in letters]:
            try:
                self.confirmed(outcome)
            except self.too_large as error:
                refused[_size(form)] = error
            except Exception as error:
                # After a letter that is too large the broker misses a sequence number, and refuses what follows.
                if not refused or self.fenced(error):
                    raise
                break
        if refused:
            # Clients fail the letters beside the one that is too large with the same error.
            self._limit = min(self._limit, max(refused))
            raise refused[max(refused)]
        self.send_offsets(offsets, group)

    def commit(self) -> None:
        """Commit; where this raises, whether it was committed is not known."""
        self.made(self.client.commit_transaction)
        self._limit = math.inf

    def discard(self) -> None:
        """Throw the client away; the next one ends a transaction that it left open."""
        client, self.client, self._ready = self.client, None, False
        if client is not None:
            self.close_client(client)

    def _send(self, letter: DeadLetter) -> tuple[Message, Any]:
        """Send the best form that is smaller than what was refused."""
        for form in letter.forms(
            self.carries, lambda form: can_exist(form) and _size(form) < self._limit
        ):
            try:
                return form, self.send(
                    {
                        "value": form.body,
                        "key": form.key,
                        "headers": dead_letter_headers(form.headers),
                    }
                )
            except self.too_large:
                self._limit = min(self._limit, _size(form))
        # The broker's limit may be raised meanwhile, so the next attempt begins with the whole letter.
        self._limit = math.inf
        raise undelivered("no form of the letter fits the broker")


def _size(form: Message) -> int:
    return record_size(form.body, form.key, dead_letter_headers(form.headers))


class TransactionAttempt:
    """One transaction on a thread of its own; without offsets it only starts a producer.

    Attributes:
        over: set at its end.
        committed: true, false, or ``None`` where that is not known.
        fenced: whether another producer has its transactional id.
        error: what ended it.
        began: monotonic seconds of its start.
    """

    def __init__(
        self,
        sink: TransactionalLetters,
        clock: Clock,
        letters: Sequence[DeadLetter] = (),
        offsets: Mapping[Any, Committed] | None = None,
        group: Any = None,
    ) -> None:
        self.began = clock.monotonic()
        self.over = threading.Event()
        self.committed: bool | None = False
        self.fenced = False
        self.error: BaseException | None = None

        def make() -> None:
            try:
                sink.prepare()
                if offsets:
                    sink.write(letters, offsets, group)
                    self.committed = None
                    sink.commit()
                self.committed = True
            except BaseException as error:
                self.error = error
                # The broker fences a producer whose transaction took too long as well; that one is made again.
                self.fenced = (
                    sink.fenced(error) and clock.monotonic() - self.began < sink.longest
                )
                sink.discard()
            finally:
                self.over.set()

        threading.Thread(
            target=make, name="mqauth-kafka-transaction", daemon=True
        ).start()


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
        clock, backoff: how long to wait after a failure.
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
        self._began = self._held_until = clock.monotonic()
        self._started = self._dead = False

    def in_flight(self) -> bool:
        """Return whether a transaction is in flight, or it is not known whether the last one was committed."""
        return self._attempt is not None or bool(self._doubtful)

    def committing(self, *, last: bool = False) -> Flow[Due]:
        """Begin to commit letters with all offsets that are due; return what is left for a plain commit.

        The ``last`` commit is waited for, at most the timeout.

        Raises:
            ProducerFatalError: another producer has taken over the transactional id.
        """
        if last:
            yield from self._finishing()
        if self.in_flight():
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
        if group is None or self._dead or not (self._rested() or last):
            return {
                partition: offset
                for partition, offset in due.items()
                if not partition.letters
            }
        self._due = due
        offsets = {
            each.topic_partition: Committed(offset, each.metadata)
            for each, offset in due.items()
        }
        self._attempt = TransactionAttempt(
            self._letters, self._clock, letters, offsets, group
        )
        if last:
            yield from self._finishing()
        return {}

    def advancing(self) -> Flow[None]:
        """Act on the end of the transaction in flight, show one that takes too long, or start a producer."""
        attempt = self._attempt
        if attempt is None:
            if (
                not self._dead
                and (self._doubtful or not self._started)
                and self._rested()
            ):
                self._attempt = TransactionAttempt(self._letters, self._clock)
            return
        if not attempt.over.is_set():
            if self._clock.monotonic() - attempt.began >= self._letters.timeout:
                self._stall(self._due or self._doubtful, "a transaction is still open")
            return
        # At its end: note the commit, doubt it, try again, or give up for good.
        self._attempt, due, self._due = None, self._due, {}
        if attempt.fenced:
            self._dead = True
            raise ProducerFatalError(
                "another producer has the transactional id: use one for each consumer"
            )
        if attempt.committed:
            self._started = True
            if self._doubtful:
                yield from self._settling_doubt()
            else:
                self._committed(due, attempt.began)
            return
        if attempt.committed is None:
            self._doubtful, self._began = due, attempt.began
        # A letter that is too large goes in a smaller form at once.
        if not isinstance(attempt.error, self._letters.too_large):
            self._failures += 1
            self._held_until = self._clock.monotonic() + self._backoff.wait(
                self._failures
            )
        why = type(attempt.error).__name__
        emit(
            "client.transaction_failed",
            "a transaction failed with %s and is made again",
            why,
        )
        self._stall(due or self._doubtful, why)

    def tending(self, longest: float) -> Flow[float]:
        """Look after the transaction in flight; return the seconds that a poll may wait, at most ``longest``."""
        yield from self._waiting(min(longest, BUSY))
        yield from self.advancing()
        return 0.0 if self.in_flight() else longest

    def close(self) -> None:
        """Close the producer; one whose transaction is still open is left to the broker's time limit."""
        if self._attempt is None:
            self._letters.discard()

    def closed(self) -> Any:
        """Return once all producers are closed; on an event loop a coroutine."""
        return self._letters.closed()

    def _rested(self) -> bool:
        return self._clock.monotonic() >= self._held_until

    def _waiting(self, seconds: float) -> Flow[None]:
        if self._attempt is not None:
            yield from call(self._group.wait, self._attempt.over, seconds)

    def _finishing(self) -> Flow[None]:
        yield from self._waiting(self._letters.timeout)
        yield from self.advancing()

    def _settling_doubt(self) -> Flow[None]:
        """Ask the broker whether a transaction was committed: the next producer has ended it either way."""
        doubtful, self._doubtful = self._doubtful, {}
        try:
            places = [
                partition.topic_partition for partition in doubtful if partition.alive
            ]
            commits: Mapping[Any, Committed] = (
                (yield from call(self._group.here, self._group.committed, places))
                if places
                else {}
            )
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
        self._failures = 0

    def _stall(self, due: Due, detail: str) -> None:
        """Show in health the partitions whose letters wait."""
        for partition in due:
            if partition.letters:
                place = partition.topic_partition
                partition.unsent = Stall(
                    topic=place.topic,
                    partition=place.partition,
                    offset=partition.letters[0][0],
                    cause=Cause.DEAD_LETTER_UNAVAILABLE,
                    detail=detail,
                    since=self._clock.now()
                    if partition.unsent is None
                    else partition.unsent.since,
                )
