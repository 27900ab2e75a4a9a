"""What a consumer of a log has on threads and in an event loop alike: assignment, work and dead letters."""

from __future__ import annotations

import math
import threading
from typing import Any

from mqauth.brokers.log.outbox import Transactions
from mqauth.brokers.log.poller import LogPoller
from mqauth.brokers.log.producer import TopicReplies
from mqauth.brokers.log.transaction import TransactionalLetters
from mqauth.clock import Backoff
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.health import LogHealth, told_of
from mqauth.delivery.log_work import LogWork
from mqauth.delivery.partition import Partition
from mqauth.errors import require
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.judging.unverified import Unverifieds
from mqauth.judging.verified import Decode
from mqauth.letters.dead_letter import DeadLetterSink


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
        require(workers >= on_loop and grace >= 0, f"workers must be at least {on_loop:d}, and grace at least 0")
        self._guard = guard
        # In an event loop the lock is for health(), which other threads may call.
        self._assignment = Assignment(
            guard.clock,
            backoff=backoff,
            interval=commit_interval,
            width=workers,
            session=session,
            lock=threading.RLock(),
        )
        self._dead_letters = dead_letters
        self._backoff = backoff
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
                calls, self._dead_letters, self._assignment, self._guard.clock, self._backoff
            )

    def health(self) -> LogHealth:
        """Return how the consumer is doing now; may be called from any thread."""
        return self._assignment.health(self._running, told_of(self._guard.rollout, self._guard.verifier))

    def _sink(self, partition: Partition) -> Any:
        """Return where the letters of a partition go."""
        transactions = self.calls.transactions
        return self._dead_letters if transactions is None else transactions.sink(partition)
