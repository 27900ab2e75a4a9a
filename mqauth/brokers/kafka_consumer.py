"""Kafka, the consumer's side: owns the poll loop, keeps each partition in order, commits what is settled.

The polling thread never runs a handler, so that a long one costs no heartbeat and no rebalance; a partition
that is being worked on is paused. Offsets are committed explicitly and only up to the first unsettled record.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from mqauth.ahead import Ahead
from mqauth.brokers import kafka_settings
from mqauth.brokers.kafka_assignment import listen
from mqauth.brokers.kafka_leases import Leases
from mqauth.brokers.kafka_log import Logs
from mqauth.brokers.kafka_offsets import received_at
from mqauth.brokers.kafka_outbox import Transactions
from mqauth.brokers.kafka_partition import Assigned, Done, Stall, Workers
from mqauth.brokers.kafka_poller import Poller
from mqauth.brokers.kafka_producer import Producer
from mqauth.brokers.kafka_settings import Backoff
from mqauth.brokers.kafka_transaction import TransactionalDeadLetters
from mqauth.brokers.kafka_translate import from_native
from mqauth.deadletter import DeadLetterSink
from mqauth.errors import Cause, ConfigurationError
from mqauth.flow import run
from mqauth.pipeline import Delivery, Handler, Outcome, Pipeline, Step
from mqauth.verified import Verified, decoded, equip

if TYPE_CHECKING:
    from kafka import KafkaConsumer

IDLE: Final = 0.2
"""Seconds one ``poll()`` may wait, since kafka-python has no wakeup: how soon ``stop()`` is seen."""
BUSY: Final = 0.05
"""Seconds between polls while handlers run, unless one ends sooner."""
_LOG: Final = logging.getLogger("mqauth.kafka")


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a consumer is.

    Args:
        consuming: the poll loop runs.
        in_flight: partitions being worked on.
        stalls: partitions that wait for the world, the longest waiting first.
    """

    consuming: bool
    in_flight: int
    stalls: tuple[Stall, ...]

    @property
    def deferred(self) -> int:
        """How many partitions wait for the world."""
        return len(self.stalls)

    @property
    def stalled_since(self) -> float | None:
        """UTC seconds since when the first of them waits, ``None`` where none does."""
        return self.stalls[0].since if self.stalls else None

    @property
    def cause(self) -> Cause | None:
        """Why the longest waiting one waits."""
        return self.stalls[0].cause if self.stalls else None

    @property
    def detail(self) -> str | None:
        """One line for people."""
        return self.stalls[0].detail if self.stalls else None


class Consumer:
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
        grace: seconds a running handler may take to finish after ``stop``.
        on_poison: ``"stop"`` with an error at a record kafka-python cannot parse, or ``"skip"`` its batch and
            write an audit record of the range.
        workers: threads that run handlers; each partition stays in order. With 0 handlers run on the polling
            thread and each must be done well within ``max_poll_interval_ms``.
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
        self._replies = replies
        self._grace = grace
        self._threads = workers
        self._backoff = backoff
        self._clock = guard.clock
        self._scope = str(self._client.config["group_id"])
        self._logs = Logs(client)
        self._assignment = listen(client)
        self._transactions: Transactions | None = None
        if isinstance(dead_letters, TransactionalDeadLetters):
            kafka_settings.check_isolation(client)
            self._transactions = Transactions(client, dead_letters, self._clock, backoff)
        self._poller = Poller(
            client,
            self._assignment,
            guard,
            skip=on_poison == "skip",
            commit_interval=commit_interval,
            transactions=self._transactions,
        )
        self._leases = Leases(guard)
        self._workers: Workers | None = None
        self._running: dict[Any, Assigned] = {}
        self._stop = threading.Event()
        self._keys_changed = threading.Event()
        self._started = False
        self._background: threading.Thread | None = None
        self._error: BaseException | None = None

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
        unsubscribe = self._guard.on_change(self._keys_changed.set)
        with _stopping_on_signals(self.stop) if signals else nullcontext():
            self._workers = Workers(self._threads, self._process, self._stop, lambda: Ahead(self._guard))
            try:
                while not self._stop.is_set():
                    self._turn(self._workers)
            finally:
                unsubscribe()
                self._wind_up(self._workers)
                self._workers = None

    def stop(self) -> None:
        """Let ``run`` end gracefully; may be called from any thread, a handler, or a signal handler."""
        self._stop.set()

    def health(self) -> Health:
        """Return whether it runs, and which partitions stall since when and why; from any thread."""
        found = (assigned.stall or assigned.unsent for assigned in self._assignment.all())
        stalls = [stall for stall in found if stall is not None]
        return Health(
            consuming=self._workers is not None,
            in_flight=len(self._running),
            stalls=tuple(sorted(stalls, key=lambda stall: stall.since)),
        )

    @property
    def failed(self) -> bool:
        """Whether a background run ended with an error, which leaving the ``with`` block raises."""
        return self._error is not None

    def __enter__(self) -> Self:
        """Run in a background thread."""
        self._background = threading.Thread(target=self._run_in_background, name="mqauth-kafka", daemon=True)
        self._background.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop gracefully; raises what ended ``run``, unless the block raised already."""
        self.stop()
        if self._background is not None:
            self._background.join()
        if self._error is not None and kind is None:
            raise self._error

    def _run_in_background(self) -> None:
        """Run, and keep what it raised for ``__exit__``."""
        try:
            self.run()
        except BaseException as error:
            _LOG.error("the consumer stopped: %s", type(error).__name__)
            self._error = error

    def _turn(self, workers: Workers) -> None:
        """Go once around the loop."""
        if self._keys_changed.is_set():
            self._keys_changed.clear()
            for assigned in self._assignment.all():
                assigned.due = 0.0
        ended = self._collect(workers.done(BUSY if self._running else 0))
        self._poller.tend(0 if self._running else BUSY)
        self._leases.look(self._running.values())
        self._advance_all(workers)
        self._poller.pause(assigned.partition for assigned in self._assignment.all() if assigned.busy)
        records = self._poller.poll(0 if self._running or self._poller.owes else IDLE)
        now = self._clock.now()
        for partition, batch in records.items():
            self._receive(partition, batch, now)
        self._advance_all(workers)
        ended = self._collect(workers.done(0)) or ended
        self._poller.commit(ended=ended or not self._running)

    def _receive(self, partition: Any, records: list[Any], now: float) -> None:
        """Queue the records of one partition; all came now, unless they were put back before."""
        assigned = self._assignment.get(partition)
        log = self._logs.of(partition.topic)
        in_order = assigned.prefix.receive_all([record.offset for record in records])
        for record in records:
            offset = record.offset
            if not in_order and not assigned.prefix.receive(offset):
                assigned = self._assignment.renew(partition, offset)
                assigned.prefix.receive(offset)
            received = received_at(assigned.receipts, offset, now) if assigned.receipts else now
            message = from_native(record, scope=self._scope, log=log)
            assigned.waiting.append(Delivery(message=message, received=received))

    def _advance_all(self, workers: Workers) -> None:
        """Start on every partition that may."""
        for assigned in self._assignment.all():
            self._advance(workers, assigned)

    def _advance(self, workers: Workers, assigned: Assigned) -> None:
        """Start on a partition that has something to do and may: one at a time, and after its back-off."""
        if assigned.partition in self._running or assigned.suspended or not assigned.alive:
            return
        if assigned.stall is not None and self._clock.monotonic() < assigned.due:
            return
        if assigned.waiting:
            self._running[assigned.partition] = assigned
            workers.submit(assigned)
        else:
            assigned.stall = None

    def _collect(self, finished: list[Done]) -> bool:
        """Take note of what the workers left behind; tell whether there was anything."""
        for done in finished:
            del self._running[done.assigned.partition]
            if done.deferred is not None:
                self._poller.put_off(done.assigned, done.deferred, self._backoff)
            elif done.error is None:
                done.assigned.recovered()
        for done in finished:
            if done.error is not None:
                raise done.error
        return bool(finished)

    def _process(self, assigned: Assigned, delivery: Delivery) -> Outcome:
        """Carry one delivery to its end; on a worker thread."""
        letters = self._dead_letters if self._transactions is None else self._transactions.sink(assigned)
        return self._guard.run(delivery, self._handle, letters)

    def _handle(self, verified: Verified) -> Any:
        """Call the handler with a decoded message it can answer."""
        if self._decode is not None or self._replies is not None:
            answer = None if self._replies is None else self._answer
            verified = equip(verified, responder=answer, value=decoded(verified, self._decode))
        return self._handler(verified)

    def _answer(self, verified: Verified, body: bytes) -> Any:
        """Send a signed answer to the topic in reply-to, and return the client's future."""
        properties = verified.properties
        if self._replies is None or "reply-to" not in properties:
            raise ConfigurationError("the message has no reply-to")
        names = ("correlation-id",) if "correlation-id" in properties else ()
        headers = [(name, properties[name].encode("utf-8")) for name in names]
        return self._replies.send(properties["reply-to"], value=body, headers=headers)

    def _wind_up(self, workers: Workers) -> None:
        """Let running handlers finish, commit, give claims back, and stand at the first unsettled records."""
        workers.stop()
        deadline = self._clock.monotonic() + self._grace
        try:
            while self._running and (left := deadline - self._clock.monotonic()) > 0:
                self._collect(workers.done(left))
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Commit, give claims back, and leave what still runs to come again."""
        if self._running:
            _LOG.warning("%d handlers outlasted the grace time; their records come again", len(self._running))
        try:
            self._poller.commit(ended=True, last=True)
            for assigned in self._assignment.all():
                self._release(assigned)
        finally:
            self._poller.hand_back()
            if self._transactions is not None:
                self._transactions.close()

    def _release(self, assigned: Assigned) -> None:
        """Give back the claim of a deferred record whose handler asked for another time."""
        idle = assigned.partition not in self._running
        if idle and assigned.waiting and assigned.waiting[0].step is not Step.JUDGE:
            run(self._guard.release(assigned.waiting[0]))


@contextmanager
def _stopping_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` on SIGTERM and SIGINT, and put the old handlers back at the end."""
    if threading.current_thread() is not threading.main_thread():
        raise ConfigurationError("signals=True works in the main thread alone")
    kept = {number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
