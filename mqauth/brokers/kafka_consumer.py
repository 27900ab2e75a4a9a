"""Kafka, the consumer's side: wires a ``KafkaConsumer`` to the delivery engine.

A long handler costs no heartbeat and no rebalance: another thread polls meanwhile. Offsets are committed
explicitly and only up to the first unsettled record.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, Literal

from mqauth.brokers import kafka_repair, kafka_settings
from mqauth.brokers.kafka_assignment import listen
from mqauth.brokers.kafka_outbox import Transactions
from mqauth.brokers.kafka_poller import Poller
from mqauth.brokers.kafka_producer import Producer
from mqauth.brokers.kafka_replies import responder
from mqauth.brokers.kafka_transaction import TransactionalDeadLetters
from mqauth.brokers.turns import Background, Turns, stopping_on_signals
from mqauth.deadletter import DeadLetterSink
from mqauth.delivery.backoff import Backoff
from mqauth.delivery.book import Book
from mqauth.delivery.facts import Health
from mqauth.delivery.work import Work
from mqauth.errors import ConfigurationError
from mqauth.pipeline import Handler, Pipeline
from mqauth.verified import Verified, decoded, equip

if TYPE_CHECKING:
    from kafka import KafkaConsumer

_LOG: Final = logging.getLogger("mqauth.kafka")


class Consumer(Background):
    """Judges the records of a subscribed ``KafkaConsumer`` and hands the accepted ones to a handler.

    Args:
        client: with ``group_id``, ``enable_auto_commit=False`` and no deserializers, subscribed; the consumer
            alone uses it until ``run`` has returned. It is not closed.
        guard: the pipeline, with an audit sink.
        handler: takes a ``Verified``; runs on a worker thread.
        dead_letters: where rejected messages go: ``DeadLetters``, or ``TransactionalDeadLetters`` for letters that
            are committed in one transaction with their offsets.
        decode: makes ``Verified.value`` of the body after verification; what it raises dead-letters the
            message as ``handler_failed``. Not called for a tombstone.
        replies: sends what ``Verified.reply`` is given to the topic in ``reply-to``.
        grace: seconds a running handler may take to finish after ``stop``, and before a rebalance; before one at
            most half of the client's ``max_poll_interval_ms``.
        on_poison: ``"stop"`` with an error at a record kafka-python cannot parse, or ``"skip"`` its batch and
            write an audit record of the range.
        workers: threads that run handlers; each partition stays in order. With 0 handlers run on the thread of
            ``run`` and each must be done well within ``max_poll_interval_ms``.
        commit_interval: longest time between commits while records are settled, seconds.
        backoff: how long a deferred partition waits.

    Raises:
        ConfigurationError: the client or a setting is not as said, or a plug-in is asynchronous.
    """

    def __init__(
        self,
        client: KafkaConsumer,
        guard: Pipeline,
        handler: Handler,
        *,
        dead_letters: DeadLetterSink,
        decode: Callable[[bytes], Any] | None = None,
        replies: Producer | None = None,
        grace: float = 30,
        on_poison: Literal["stop", "skip"] = "stop",
        workers: int = 1,
        commit_interval: float = 5,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
    ) -> None:
        kafka_settings.check_client(client)
        kafka_settings.check_colours(guard, handler=handler, dead_letters=dead_letters.publish, decode=decode)
        kafka_settings.check_numbers(grace, workers, commit_interval, on_poison)
        self._client: Any = client
        self._guard = guard
        self._handler = handler
        self._dead_letters = dead_letters
        self._decode = decode
        self._responder = None if replies is None else responder(replies)
        self._grace = grace
        self._patience = kafka_settings.rebalance_patience(client, grace)
        self._book = Book(
            guard.clock, backoff=backoff, interval=commit_interval, width=workers,
            session=kafka_settings.session_of(client), lock=threading.RLock(),
        )  # fmt: skip
        self._work = Work(guard, self._book, self._handle, self._letters)
        self._transactions: Transactions | None = None
        if isinstance(dead_letters, TransactionalDeadLetters):
            kafka_settings.check_isolation(client)
            self._transactions = Transactions(client, dead_letters, self._book, guard.clock, backoff)
        self._poller = Poller(
            client, self._book, self._work, guard, skip=on_poison == "skip", transactions=self._transactions
        )
        self._turns = Turns(workers, self._turn, self._book.choose, self._work.visit)
        self._keys_changed = threading.Event()
        self._started = self._running = False
        listen(client, self._book)

    def run(self, signals: bool = False) -> None:
        """Consume until ``stop`` is called, then finish what runs, commit, and seek back to what is unsettled.

        Args:
            signals: stop on SIGTERM and SIGINT; only in the main thread.

        Raises:
            ConfigurationError: it ran before, or a plug-in is asynchronous.
            PoisonRecordError: a record cannot be parsed and the policy is to stop.
            ProducerFatalError: another producer has taken over the id of transactional dead letters.
            kafka.errors.KafkaError: the broker refuses this client for good, for lack of rights for example.
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
        """Commit, and poll; where a rebalance is due, once what runs has ended."""
        due = kafka_repair.rejoins(self._client)
        try:
            if due:
                self._book.hold_back(True)
                self._turns.rest(self._guard.clock, self._patience)
            self._poller.commit()
            self._work.renew()
            self._poller.poll()
        finally:
            self._book.hold_back(False)

    def _letters(self, part: Any) -> DeadLetterSink:
        """Return where the rejected records of a partition go."""
        return self._dead_letters if self._transactions is None else self._transactions.sink(part)

    def _handle(self, verified: Verified) -> Any:
        """Call the handler with a decoded message it can answer."""
        if self._decode is not None or self._responder is not None:
            verified = equip(verified, responder=self._responder, value=decoded(verified, self._decode))
        return self._handler(verified)

    def _wind_up(self) -> None:
        """Let running handlers finish, commit, give claims back, and stand at the first unsettled records."""
        self.stop()
        if not self._turns.join(self._guard.clock, self._grace):
            _LOG.warning("handlers outlasted the grace time; their records come again")
        with self._turns.turn:
            try:
                self._poller.commit(last=True)
                self._work.give_back()
            finally:
                self._poller.hand_back()
                if self._transactions is not None:
                    self._transactions.close()
