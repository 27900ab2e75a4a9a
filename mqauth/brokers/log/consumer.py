"""A consumer of a log on threads, for every synchronous client.

Worker threads take turns at the client: whoever holds the poll lock polls, and then works without it. A poll and
the work on its records are mostly done by one thread, so that no thread has to be woken or to wait for the
interpreter's lock. Only where work takes longer does another thread poll meanwhile, so that a long handler costs
no heartbeat and no rebalance (decision 11).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Self

from mqauth.brokers.event_loop import BackgroundRun, FirstError, look, stopping_on_signals
from mqauth.brokers.log.poller import LEAVE, LogEngine
from mqauth.brokers.process import HomeProcess
from mqauth.clock import Clock
from mqauth.delivery.log_work import check_plugins
from mqauth.errors import require
from mqauth.flow import run
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.judging.selftest import starting
from mqauth.judging.verified import listed
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.logs import emit
from mqauth.threads import DaemonThread

WATCH: Final = 1.0
"""Most seconds after which another thread polls while handlers run; a poll costs as much as ten messages."""
BUSY: Final = 0.05
"""Seconds for which a thread without work waits for the others to finish theirs."""


class WorkerThreads:
    """Runs handlers on threads, and the client on one of them at a time.

    No call of the client is made on the thread of ``run``, which therefore ends although one never returns.

    Args:
        threads: how many run handlers; with 0 the caller of ``run`` does, and nobody polls meanwhile.
        poll: polls the client; called by one thread at a time.
        choose: returns something to work on, ``None`` where there is nothing.
        visit: works on it, without the poll lock.
        check: raises where the client does not answer any more; called on the thread of ``run``.
        watch: seconds after which somebody polls beside them.

    Attributes:
        poll_lock: held by the thread that polls.
        client: the thread on which the caller of ``run`` has calls of the client made.
        first: what a poll or a visit raised first.
    """

    def __init__(
        self,
        threads: int,
        poll: Callable[[], None],
        choose: Callable[[], Any],
        visit: Callable[[Any], None],
        check: Callable[[], None] = lambda: None,
        *,
        watch: float = WATCH,
    ) -> None:
        self._watch = watch
        self._poll = poll
        self._choose = choose
        self._visit = visit
        self._check = check
        self.poll_lock = threading.Lock()
        self.client = DaemonThread("mqauth-kafka-client")
        self._left = threading.Condition()
        self._visiting = self._polls = 0
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopped = False
        self.first = FirstError()
        self._threads = [
            threading.Thread(
                target=self._serve, name=f"mqauth-kafka-{number}", daemon=True
            )
            for number in range(threads)
        ]

    def run(self) -> None:
        """Go on until ``stop`` is called.

        Raises:
            BaseException: what a poll or a visit raised.
        """
        for thread in self._threads:
            thread.start()
        if not self._threads:
            self._serve()

        def poll() -> None:
            try:
                self._polled()
            finally:
                self.poll_lock.release()

        # It polls in place of the workers while none of them has polled for a while.
        seen = -1
        while self._threads and not self._stopped:
            try:
                self._woken.get(timeout=self._watch)
            except queue.Empty:
                self._check()
                if self._polls == seen and self.poll_lock.acquire(blocking=False):
                    self.aside(poll)
                seen = self._polls
        self.first.check()

    def stop(self) -> None:
        """Begin nothing any more; may be called from any thread, and from a signal handler."""
        self._stopped = True
        self._woken.put(None)

    def wait_until_idle(self, clock: Clock, seconds: float) -> bool:
        """Wait until nobody works, at most so many seconds, also while all is stopped; return whether that is so.

        Args:
            clock: tells the time.
            seconds: at most.
        """
        deadline = clock.monotonic() + seconds
        with self._left:
            while self._visiting and clock.monotonic() < deadline:
                self._left.wait(BUSY)
            return not self._visiting

    def aside(self, work: Callable[[], None], seconds: float | None = None) -> bool:
        """Have calls of the client made, and wait for them: for so long, or else until all is stopped.

        Returns:
            Whether they have returned; otherwise they are left as they are.

        Raises:
            BaseException: what they raised.
        """
        made, waits = self.client.submit(work), True
        while waits:
            with suppress(TimeoutError):
                made.exception(WATCH if seconds is None else seconds)
            waits = seconds is None and not self._stopped and not made.done()
            if waits:
                self._check()
        if made.done():
            made.result()
        return made.done()

    def _serve(self) -> None:
        try:
            while not self._stopped:
                # Something to work on, polled for where there is nothing yet.
                with self.poll_lock:
                    chosen = self._chosen()
                    if chosen is None and not self._stopped:
                        if self._threads:
                            self._polled()
                        else:
                            self.aside(self._polled)
                        chosen = self._chosen()
                if chosen is not None:
                    try:
                        self._visit(chosen)
                    finally:
                        with self._left:
                            self._visiting -= 1
                            self._left.notify_all()
                elif self._visiting:
                    with self._left:
                        self._left.wait(BUSY)
        except BaseException as error:
            self.first.keep(error)
            self.stop()

    def _chosen(self) -> Any:
        # At once, so that whoever waits for the work to end knows of it.
        with self._left:
            chosen = None if self._stopped else self._choose()
            self._visiting += chosen is not None
            return chosen

    def _polled(self) -> None:
        self._polls += 1
        self._poll()


class LogConsumer(BackgroundRun, LogEngine):
    """Consumes until it is stopped, by ``run`` or in the background of a ``with`` block.

    Args:
        guard: the pipeline, with plug-ins that are not asynchronous.
        handler: takes a ``Verified``; runs on a worker thread.
        dead_letters: where rejected messages go.
        settings: as ``LogEngine`` has them.

    Raises:
        ConfigurationError: a setting is out of its limits, or a plug-in is asynchronous.
    """

    def __init__(
        self,
        guard: Pipeline,
        handler: Handler,
        dead_letters: DeadLetterSink,
        *,
        workers: int = 1,
        **settings: Any,
    ) -> None:
        others = {
            f"unverified {kind}": each
            for kind, each in listed(settings.get("unverified")).items()
        }
        check_plugins(
            guard,
            handler=handler,
            dead_letters=dead_letters.publish,
            decode=settings.get("decode"),
            **others,
        )
        super().__init__(
            guard, handler, dead_letters, workers=workers, on_loop=False, **settings
        )
        # It takes up to two looks until somebody polls, and a lease is renewed after a third of it.
        watch = min(WATCH, guard.lease / 6)
        self._workers = WorkerThreads(
            workers,
            self._poll_once,
            self._assignment.choose,
            self._work.visit,
            lambda: self.calls.check(),  # noqa: PLW0108 - attached later
            watch=watch,
        )
        self._started = False
        self._home = HomeProcess("consumer")

    def __enter__(self) -> Self:
        """Run in a background thread, once the self-test has passed."""
        self._home.check()
        run(starting(self._guard))
        # From now on, for whoever asks for its health before the thread has begun.
        self._running = not self._started
        return super().__enter__()

    def run(self, signals: bool = False) -> None:
        """Consume until ``stop`` is called, then finish what runs, commit, and seek back to what is not settled.

        Args:
            signals: whether to stop at SIGTERM and SIGINT; only in the main thread. A second SIGINT
                (Ctrl-C) ends the process at once.

        Raises:
            ConfigurationError: it ran before, a plug-in is asynchronous, or dead letters go to a topic consumed.
            PoisonRecordError: a record cannot be parsed and the policy is to stop.
            ProducerFatalError: the producer of answers, or of transactional dead letters, can send nothing more.
            CommitUnansweredError: the client does not return from a commit.
            Exception: the client's own, where the broker refuses it for good, for lack of rights for example.
        """
        self._home.check()
        require(not self._started, "a consumer runs once: make another one")
        run(starting(self._guard))
        self._started = True
        unsubscribe = self._guard.on_change(self._assignment.keys_changed)
        with stopping_on_signals(self.stop, enabled=signals):
            self._running = True
            self._guard.journal.started(
                "topics", self.calls.scope, self._dead_letters.name, self._guard.rollout
            )
            with self._workers.first:
                self._workers.aside(
                    lambda: run(look(self._dead_letters, self._guard.audit))
                )
                self._workers.run()
            unsubscribe()
            with self._workers.first:
                self._wind_up()
            self._running = False
            self._workers.first.check()

    def stop(self) -> None:
        """Let ``run`` end gracefully; may be called from any thread, a handler, or a signal handler."""
        self._assignment.stop()
        self._workers.stop()

    def settle(self) -> None:
        """Before a rebalance: begin nothing until this poll has ended, let what runs end, and commit it."""
        self._assignment.hold_back(True)
        self._workers.wait_until_idle(self._guard.clock, self._patience)
        self.calls.commit()

    def _poll_once(self) -> None:
        """Commit and poll; before a rebalance, settle what runs."""
        self.calls.commit()
        run(self._work.renewing())
        run(self._guard.tick())
        try:
            due = self.calls.rejoins()
            if due:
                self.settle()
            # One that becomes due during the poll waits for handlers, and for the commit of what they have done.
            self.calls.poll(
                joins=due
                or not (self._assignment.running or self._assignment.settled_offsets())
            )
        finally:
            self._assignment.hold_back(False)

    def _wind_up(self) -> None:
        """Let running handlers finish, commit, release claims, and leave the client at the first open records."""

        def leave() -> None:
            with self._workers.poll_lock:
                with self._workers.first:
                    # Partitions that were assigned a moment ago: their next owner goes on from here.
                    if self._workers.first.error is None:
                        run(self.calls.beginning())
                with self._workers.first:
                    self.calls.commit(last=True)
                    run(self._work.giving_back())
                    run(self._guard.tick(last=True))
                with self._workers.first:
                    self.calls.close()

        self.stop()
        if not self._workers.wait_until_idle(self._guard.clock, self._grace):
            emit(
                "consumer.grace_over",
                "handlers took longer than the grace time; their records come again",
            )
        if not self._workers.aside(leave, LEAVE):
            emit(
                "client.no_answer",
                "the broker does not answer a consumer that stops: it is left as it is",
            )
            self.calls.abandon()
        self._workers.client.shutdown()
        self._guard.journal.stopped(self.calls.scope, self._assignment.counts)
