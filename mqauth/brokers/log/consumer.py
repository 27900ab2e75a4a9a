"""A consumer of a log on threads, for every such client: takes turns at it, waits for a rebalance, winds up."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Final, Protocol

from mqauth.brokers.log.turns import Background, Turns, stopping_on_signals
from mqauth.delivery.book import Book
from mqauth.delivery.facts import Health
from mqauth.delivery.work import Work
from mqauth.errors import ConfigurationError
from mqauth.judging.pipeline import Pipeline

_LOG: Final = logging.getLogger("mqauth.delivery")


class LogClient(Protocol):
    """What is asked of a client, by one thread at a time."""

    def rejoins(self) -> bool:
        """Tell whether the next ``poll`` takes part in a rebalance."""
        ...

    def poll(self, *, joins: bool) -> None:
        """Ask for what the book wishes, and tell it what came.

        Args:
            joins: it may take part in a rebalance; else one that becomes due meanwhile waits for the next poll.
        """
        ...

    def commit(self, *, last: bool = False) -> None:
        """Commit what the book says is due; ``last`` where there is no later time."""
        ...

    def close(self) -> None:
        """Leave the client as it was given to us."""
        ...


class LogConsumer(Background):
    """Consumes until it is stopped.

    Args:
        client: the client.
        guard: the pipeline.
        book: its partitions.
        work: carries deliveries to their end.
        threads: how many run handlers; with 0 the caller of ``run`` does.
        grace: seconds what runs may take after ``stop``.
        patience: seconds a rebalance waits for what runs.

    Raises:
        ConfigurationError: ``threads`` or ``grace`` is below 0.
    """

    def __init__(
        self, client: LogClient, guard: Pipeline, book: Book, work: Work, *, threads: int, grace: float,
        patience: float,
    ) -> None:  # fmt: skip
        if threads < 0 or grace < 0:
            raise ConfigurationError("workers and grace are at least 0")
        self._calls = client
        self._guard = guard
        self._book = book
        self._work = work
        self._grace = grace
        self._patience = patience
        self._turns = Turns(threads, self._turn, book.choose, work.visit)
        self._started = self._running = False

    def run(self, signals: bool = False) -> None:
        """Consume until ``stop`` is called, then finish what runs, commit, and seek back to what is unsettled.

        Args:
            signals: stop on SIGTERM and SIGINT; only in the main thread.

        Raises:
            ConfigurationError: it ran before, or a plug-in is asynchronous.
            PoisonRecordError: a record cannot be parsed and the policy is to stop.
            ProducerFatalError: the producer of answers, or of transactional dead letters, can send nothing more.
            Exception: the client's own, where the broker refuses it for good, for lack of rights for example.
        """
        if self._started:
            raise ConfigurationError("a consumer runs once: make another")
        self._started = True
        unsubscribe = self._guard.on_change(self._book.keys_changed)
        with stopping_on_signals(self.stop) if signals else nullcontext():
            self._running = True
            try:
                self._turns.run()
            finally:
                unsubscribe()
                self._wind_up()
                self._running = False

    def stop(self) -> None:
        """Let ``run`` end gracefully; may be called from any thread, a handler, or a signal handler."""
        self._book.stop()
        self._turns.stop()

    def health(self) -> Health:
        """Return whether it runs, and which partitions stall since when and why; from any thread."""
        return self._book.health(self._running)

    def _turn(self) -> None:
        """Commit, and poll; where a rebalance is due, once what runs has ended and is committed."""
        self._calls.commit()
        self._work.renew()
        try:
            due = self._calls.rejoins()
            if due:
                self._book.hold_back(True)
                self._turns.rest(self._guard.clock, self._patience)
                self._calls.commit()
            self._calls.poll(joins=due or self._book.running == 0)
        finally:
            self._book.hold_back(False)

    def _wind_up(self) -> None:
        """Let running handlers finish, commit, give claims back, and stand at the first unsettled records."""
        self.stop()
        if not self._turns.join(self._guard.clock, self._grace):
            _LOG.warning("handlers outlasted the grace time; their records come again")
        with self._turns.turn:
            try:
                self._calls.commit(last=True)
                self._work.give_back()
            finally:
                self._calls.close()
