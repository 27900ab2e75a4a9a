"""One poll and one commit, in the order that the engine needs, for every client; the leaf makes the calls.

``LogEngine`` is what a consumer of a log has on threads and in an event loop alike: assignment, work and dead
letters.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any, Final

from mqauth.brokers.log.offsets import OffsetCalls, beginning, tell_out_of_range
from mqauth.brokers.log.records import CommitUnansweredError
from mqauth.brokers.log.transaction import Outbox, TransactionalLetters, Transactions
from mqauth.clock import Backoff
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.health import LogHealth, told_of
from mqauth.delivery.log_work import LogWork
from mqauth.delivery.partition import ClientCalls, Partition
from mqauth.delivery.start import Committed
from mqauth.errors import require
from mqauth.flow import Flow, call, run
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.judging.verified import Decode, Unverifieds
from mqauth.letters.dead_letter import DeadLetterSink, name_of
from mqauth.logs import emit
from mqauth.wire.message import Message

if TYPE_CHECKING:
    from mqauth.brokers.log.producer import TopicReplies

IDLE: Final = 0.2
"""Most seconds of one poll: these clients have no wakeup, so this is how soon ``stop()`` is seen."""
LEAVE: Final = 3.5
"""Seconds for which a consumer that stops waits for its broker, beside its grace: others that join a group at that
moment need up to three."""
UNANSWERED: Final = 90.0
"""Seconds after which a client will never return from a commit: its own limits are over by then."""


class LogPoller(OffsetCalls, ABC):
    """The calls of one client, made by whoever has the turn; a leaf says what each of them is.

    Args:
        client: the client.
        assignment: says which calls to make, and gets the records.
        replies: send answers.

    Attributes:
        transactions: commit dead letters with their offsets, where the consumer has transactional ones.
        outside: partitions whose next offset is out of range, as the client says.
    """

    waits_beside_handlers = False
    """Whether a poll may wait while handlers run, since ``wake`` ends it."""
    rebalancing = False
    """Whether the client may have other partitions than the assignment knows of."""

    def __init__(
        self, client: Any, assignment: Assignment, *, replies: TopicReplies | None = None
    ) -> None:
        self._client = client
        self._assignment = assignment
        self._replies = replies
        self.transactions: Transactions | None = None
        self.outside: set[Any] = set()

    # Calls of the client, which a leaf makes; ``fetch`` and those of ``OffsetCalls`` may be coroutines

    def held(self) -> tuple[Set[Any], Set[Any]]:
        """Return the partitions that the client holds now, and those of them that are paused there."""
        return self._client.assignment(), self._client.paused()

    @abstractmethod
    def fetch(self, seconds: float, joins: bool) -> Any:
        """Poll, and return the new messages by partition.

        Args:
            seconds: how long to wait for the first of them at most.
            joins: whether the poll may take part in a rebalance.
        """

    def pause(self, places: Set[Any]) -> None:
        """Fetch no more of these partitions."""
        self._client.pause(*places)

    def seek(self, place: Any, offset: int) -> None:
        """Read a partition from an offset next."""
        self._client.seek(place, offset)

    def resume(self, places: Set[Any]) -> None:
        """Fetch of these partitions again."""
        self._client.resume(*places)

    def membership(self) -> Any:
        """Return the membership to commit by, ``None`` during a rebalance, which has no generation.

        The broker does not check the membership of a transaction that names no generation.
        """
        raise NotImplementedError

    def wait(self, over: threading.Event, seconds: float, /) -> Any:
        """Wait for the end of a transaction, at most so many seconds; on an event loop a coroutine."""
        over.wait(seconds)

    def closed(self) -> Any:
        """Return once all that ``close`` began has ended; on an event loop a coroutine."""
        return None if self.transactions is None else self.transactions.closed()

    def wake(self) -> None:
        """End a poll that waits, on an event loop."""
        raise NotImplementedError

    # What is the same for all

    def rejoins(self) -> bool:
        """Return whether the next poll takes part in a rebalance; false where the client does not say so."""
        return False

    def poll(self, *, joins: bool) -> None:
        """Make the calls that the assignment asks for, poll, and add the records to the assignment.

        Args:
            joins: whether it may take part in a rebalance.

        Raises:
            PoisonRecordError: a record cannot be parsed, and the policy is to stop.
            OffsetsRefusedError: the broker does not let the group read or commit its offsets.
            ProducerFatalError: the producer of answers, or of transactional letters, can send nothing more.
            Exception: the client's own, where the broker refuses for good.
        """
        run(self.polling(joins))

    def polling(self, joins: bool = True) -> Flow[None]:
        """Return ``poll`` as a flow."""
        if self._replies is not None:
            self._replies.check()
        yield from self.beginning()
        self.steer()
        self._assignment.heartbeat()
        longest = self._assignment.poll_timeout(
            IDLE, beside_handlers=self.waits_beside_handlers
        )
        if self.transactions is not None:
            longest = yield from self.transactions.tending(longest)
        records: Mapping[Any, list[Message]] = yield from call(self.fetch, longest, joins)
        self._assignment.heartbeat()
        for place, messages in records.items():
            # Of a partition that is out of range they are read again.
            if place not in self.outside:
                self._assignment.receive(place, messages)
        # Where the next record of a partition is out of range it goes on at the earliest that is left.
        self.outside &= self.held()[0] if self.outside else set()
        # Others are begun first.
        if lost := {
            place
            for place in self.outside
            if self._assignment.partition(place) is not None
        }:
            require(
                self.reset != "none",
                "an offset is out of range, and auto_offset_reset is none",
            )
            try:
                first: Mapping[Any, int] = yield from call(
                    self.here, self.bounds, lost, False
                )
            except self.failed as error:
                if not self.passes(error):
                    raise
                return
            for place, offset in first.items():
                if (partition := self._assignment.partition(place)) is not None:
                    tell_out_of_range(self.scope, place, partition.expected, offset)
                    self._assignment.skipped(partition, offset)
            self.outside.difference_update(first)

    def beginning(self) -> Flow[None]:
        """Begin the partitions that were just assigned, once their start is committed."""
        assignment = self._assignment
        places = frozenset() if self.rebalancing else assignment.unbegun(self.held()[0])
        if places:
            epoch = assignment.epoch
            with assignment.asking():
                starts = yield from beginning(
                    self, places, assignment.early, lambda: assignment.epoch == epoch
                )
            # After a rebalance meanwhile they may be of others, or have been.
            if assignment.epoch == epoch:
                assignment.begin(starts, places)

    def commit(self, *, last: bool = False) -> None:
        """Commit the offsets that are due.

        Args:
            last: whether this is the last commit.

        Raises:
            ProducerFatalError: another producer has taken over the transactional id.
            Exception: the client's own, where the broker refuses for good, for lack of rights for example.
        """
        run(self.committing(last=last))

    def committing(self, *, last: bool = False) -> Flow[None]:
        """Return ``commit`` as a flow."""
        due = self._assignment.due_commits(last=last)
        if self.transactions is not None and (due or last):
            due = yield from self.transactions.committing(last=last)
        if not due:
            return
        began = self._assignment.commit_began()
        offsets = {
            partition.topic_partition: Committed(offset, partition.metadata)
            for partition, offset in due.items()
        }
        with self._assignment.asking():
            failure: str | None = yield from call(self.here, self.send_commit, offsets)
        if failure is None:
            self._assignment.committed(due, began)
        else:
            self._assignment.commit_failed()
            emit(
                "client.commit_failed",
                "commit failed with %s; its records may come again",
                failure,
            )

    def check(self) -> None:
        """Look from another thread whether the client still answers.

        Raises:
            CommitUnansweredError: it has not returned from a commit for too long.
        """
        require(
            self._assignment.unanswered <= UNANSWERED,
            f"the client of group {self.scope} has not returned from a commit for {UNANSWERED:.0f} s, and "
            "takes no other call: start the process again",
            CommitUnansweredError,
        )

    def steer(self) -> None:
        """Make the calls that the assignment asks for now, but in a rebalance."""
        # The client may have its new partitions before its listener is told. What is asked for then is meant for
        # the old ones: a pause of a partition that is about to be dropped would have no end.
        if not self.rebalancing:
            self.ask(self._assignment.client_calls(*self.held()))

    def ask(self, wanted: ClientCalls) -> None:
        """Make calls that the assignment asks for."""
        # Paused first and resumed last: a partition must not be fetched from its old position in between.
        if wanted.pause:
            self.pause(wanted.pause)
        for place, offset in wanted.seek.items():
            self.seek(place, offset)
        if wanted.resume:
            self.resume(wanted.resume)

    def abandon(self) -> None:
        """Ask nothing more of a client that does not answer, whatever it calls back."""
        self.transactions = None

    def close(self) -> None:
        """Leave the client as it was given to us."""
        try:
            self.ask(self._assignment.final_calls(*self.held()))
        finally:
            if self.transactions is not None:
                self.transactions.close()


class LogEngine:
    """The engine of one consumer, without who runs it.

    Args:
        guard: the pipeline.
        handler: takes a ``Verified``.
        dead_letters: where rejected messages go.
        answer: sends what ``Verified.reply`` is given.
        patience: most seconds that a rebalance may wait for running handlers, beside ``grace``.
        session: seconds of silence after which the broker may have given our partitions to others.
        on_loop: whether it runs in an event loop.
        decode, grace, workers, commit_interval, backoff, unverified: as ``LogOptions`` has them.

    Raises:
        ConfigurationError: a setting is out of its limits, or the pipeline has no audit.
    """

    calls: LogPoller

    def __init__(
        self,
        guard: Pipeline,
        handler: Handler,
        dead_letters: DeadLetterSink,
        *,
        answer: TopicReplies | None,
        session: float,
        patience: float = math.inf,
        on_loop: bool,
        decode: Decode | None = None,
        grace: float = 30,
        workers: int = 1,
        commit_interval: float = 5,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
        unverified: Unverifieds | None = None,
    ) -> None:
        require(guard.audit is not None, "a consumer's pipeline needs audit=")
        name_of(dead_letters)
        require(
            workers >= on_loop and grace >= 0,
            f"workers must be at least {on_loop:d}, and grace at least 0",
        )
        self._guard = guard
        self._assignment = Assignment(
            guard.clock,
            backoff=backoff,
            interval=commit_interval,
            width=workers,
            session=session,
        )
        self._dead_letters = dead_letters
        self._work = LogWork(
            guard,
            self._assignment,
            handler,
            self._sink,
            decode=decode,
            answer=answer,
            unverified=unverified,
            on_loop=on_loop,
        )
        self._grace = grace
        self._patience = min(grace, patience)
        self._running = False

    def attach(self, calls: LogPoller) -> None:
        """Take the client's calls; transactional dead letters are committed with their offsets from now on."""
        self.calls = calls
        if isinstance(self._dead_letters, TransactionalLetters):
            calls.transactions = Transactions(
                calls,
                self._dead_letters,
                self._assignment,
                self._guard.clock,
                self._assignment.backoff,
            )

    def health(self) -> LogHealth:
        """Return how the consumer is doing now; may be called from any thread."""
        return self._assignment.health(
            self._running, told_of(self._guard.rollout, self._guard.verifier)
        )

    def _sink(self, partition: Partition) -> Any:
        """Return where the letters of a partition go.

        Raises:
            ConfigurationError: to its own topic, where each would be rejected and make another one, without end.
        """
        require(
            partition.topic_partition.topic != self._dead_letters.name,
            "dead letters must go to another topic than the ones consumed",
        )
        if self.calls.transactions is None:
            return self._dead_letters
        return Outbox(self._dead_letters.name, partition)
