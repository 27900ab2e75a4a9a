"""The backend of the console: a review session, the newest index of its letters, and one job in the background.

Memory is bounded: letters are in the index on disk, of the groups the largest 200 are kept, of the jobs the
newest. Where the broker is lost every page says so, and reading goes on when it is back.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec

from mqauth.audit.chain import Line
from mqauth.audit.query import Record
from mqauth.errors import Cause, MqauthError, T, Unavailable, require
from mqauth.logs import emit
from mqauth.review import DISCARD, REDRIVE, Filter, Index, Ledger, Plan, Reading, Session
from mqauth.review.glossary import LABELS
from mqauth.review.session import trail

WAITS: Final = (1.0, 2.0, 5.0)
"""Seconds between attempts to reach a broker that was lost; the last one is repeated."""
READ: Final = "read"
JUDGE: Final = "judge"
REHEARSE: Final = "rehearse"
ACCOUNT: Final = "account"
FOR_ALL: Final = frozenset((READ, ACCOUNT))
"""The kinds that viewers may start."""
TITLES: Final = {
    READ: "Reading dead letters",
    JUDGE: LABELS["check"],
    REHEARSE: LABELS["preview"],
    ACCOUNT: LABELS["balance"],
    REDRIVE: LABELS["redrive"],
    DISCARD: LABELS["discard"],
}
"""The kinds of jobs, as pages name them."""
P = ParamSpec("P")


class BusyError(MqauthError):
    """Another job is running."""


@dataclass(slots=True, kw_only=True)
class Job:
    """A long piece of work on the letters: how far it is, and how it ended.

    Args:
        kind: what is done, one of ``TITLES``.
        by: who started it.
        plan: of a rehearsal or an act.
        total: letters to be looked at, 0 while that is unknown.
        seen: letters looked at so far.
        counts: verdicts, of judging and rehearsing.
        selection: letters that a rehearsal froze for the act.
        account: of an act, as JSON values.
        error: what failed, one line.
        running: until it has ended.
    """

    kind: str
    by: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    plan: Plan | None = None
    total: int = 0
    seen: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    selection: Counter[str] | None = None
    account: dict[str, Any] | None = None
    error: str | None = None
    running: bool = True
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def cancellable(self) -> bool:
        """Whether it can still be stopped."""
        return self.running and not self.cancelled.is_set()

    @property
    def cut_short(self) -> bool:
        """Whether it was stopped before it had seen all letters."""
        return self.cancelled.is_set() and self.seen < self.total

    @property
    def confirmable(self) -> bool:
        """Whether it is a rehearsal that found something to do."""
        done = not self.running and self.error is None and not self.cancelled.is_set()
        return done and self.kind == REHEARSE and self.counts["accepted"] > 0

    def saw(self, count: int) -> None:
        """Note how many letters were looked at."""
        self.seen = count

    def as_dict(self) -> dict[str, Any]:
        """Return the progress as JSON values."""
        return {
            "id": self.id,
            "kind": self.kind,
            "running": self.running,
            "seen": self.seen,
            "total": self.total,
            "acted": self.account is not None,
            "cancelling": self.running and self.cancelled.is_set(),
        }


class Letters:
    """The letters that pages show, as of the current index. Any thread can ask it, and it is replaced as a whole.

    ``stale`` says that it does not hold any more, and is to be replaced by whatever is read next.

    Args:
        session: the review session.
        waits: seconds between attempts to reach a broker that was lost; the last one is repeated.
    """

    def __init__(self, session: Session, waits: Sequence[float]) -> None:
        self.stale = True
        self.index: Index | None = None
        self.lost: dict[str, Any] | None = None
        """The broker is out of reach, ``since`` so many UTC seconds, and ``why``."""
        self._session, self._waits = session, tuple(waits)
        self._lock = threading.RLock()
        self._closed = threading.Event()

    def close(self) -> None:
        """Cancel whatever is read from now on."""
        self._closed.set()

    def show(self, index: Index | None) -> None:
        """Put an index in the place of the one before, which is deleted."""
        with self._lock:
            old, self.index = self.index, index
            self.stale = False
        if old is not None and old is not index:
            old.close()

    def ask(
        self,
        question: Callable[Concatenate[Index, P], T],
        otherwise: T,
        *args: P.args,
        **options: P.kwargs,
    ) -> T:
        """Ask the index, if there is one; it is not replaced before it has answered.

        Args:
            question: a method of the index, or a function of it.
            otherwise: the answer where there is no index yet.
            args: of the question, after the index.
            options: of the question.
        """
        with self._lock:
            return (
                otherwise
                if self.index is None
                else question(self.index, *args, **options)
            )

    def read(self, job: Job) -> None:
        """Read all letters. While the broker is out of reach, try again until it is back or the job is cancelled.

        Raises:
            Unavailable: cancelled before the broker was reached.
        """
        if self._closed.is_set():
            job.cancelled.set()
        waits = chain(self._waits, repeat(self._waits[-1]))
        while True:
            # Into a new index, which is shown at once where the current one no longer holds.
            fresh = Index(self._session.clock.now())
            try:
                self._session.survey(
                    fresh,
                    progress=partial(self._progress, job, fresh),
                    cancelled=job.cancelled,
                )
                self.lost = None
                return
            except Unavailable as error:
                self.lost = self.lost or {
                    "since": self._session.clock.now(),
                    "why": str(error),
                }
            finally:
                if fresh.complete or self.index is fresh:
                    self.show(fresh)
                    self.stale = not fresh.complete
                else:
                    fresh.close()
            require(
                not job.cancelled.wait(next(waits)),
                "not reached before it was cancelled",
                partial(Unavailable, Cause.DEAD_LETTER_UNAVAILABLE),
            )

    def _progress(self, job: Job, fresh: Index, seen: int) -> None:
        job.seen, job.total, self.lost = seen, max(seen, fresh.expected), None
        if self.stale:
            self.show(fresh)


class Backend:
    """The letters, and one job on them at a time.

    One job at a time, because a letter box can be read in one pass at a time.

    Args:
        session: the review session; it says what can be done.
        files: audit files of consumers and reviewers, for the account.
        waits: seconds between attempts to reach a broker that was lost; the last one is repeated.

    Attributes: ``beside``, the backends of the console's other queues and topics.
    """

    def __init__(
        self,
        session: Session,
        *,
        files: Sequence[Path] = (),
        waits: Sequence[float] = WAITS,
    ) -> None:
        self.session, self.files = session, tuple(files)
        self.beside: Sequence[Backend] = ()
        self.job: Job | None = None
        # Kept beside the newest job: a viewer may read the letters again between a preview and its confirmation.
        self._rehearsal: Job | None = None
        self.ledger: Ledger | None = None
        self.letters = Letters(session, waits)
        self._lock = threading.RLock()
        # Each look reads all audit files, so that several at once would take the whole disk.
        self._looking = threading.Lock()
        self._worker = ThreadPoolExecutor(1, "mqauth-console")

    def close(self) -> None:
        """Stop the running job before its next letter, and delete the index."""
        self.letters.close()
        if self.job is not None:
            self.job.cancelled.set()
        self._worker.shutdown()
        self.letters.show(None)

    def read(self, by: str) -> Job:
        """Start to read all letters again.

        Raises:
            BusyError: another job is running.
        """
        return self._start(Job(kind=READ, by=by), self.letters.read)

    def judge(self, wanted: Filter, by: str) -> Job:
        """Start to judge letters by today's verifier.

        Raises:
            BusyError: another job is running.
            ConfigurationError: the session has no verifier.
        """

        def work(job: Job) -> None:
            index = self.letters.index
            if index is not None:
                job.total = index.count(wanted)
                job.counts = self.session.judge(
                    index, wanted, progress=job.saw, cancelled=job.cancelled
                )

        self.session.pipeline()
        return self._start(Job(kind=JUDGE, by=by), work)

    def rehearse(self, plan: Plan) -> Job:
        """Start to freeze a selection, and to find out what the act would do.

        Raises:
            BusyError: another job is running.
            ConfigurationError: the session cannot carry out the plan.
        """

        def work(job: Job) -> None:
            index = self.letters.index
            if index is not None:
                job.total = index.count(plan.wanted)
                job.selection, job.counts = self.session.rehearse(
                    index, plan, progress=job.saw, cancelled=job.cancelled
                )

        self.session.check(plan)
        with self._lock:
            self._rehearsal = self._start(
                Job(kind=REHEARSE, by=plan.reviewer, plan=plan), work
            )
            return self._rehearsal

    def act(self, id: str, by: str) -> Job:
        """Start the act that was rehearsed, on the selection that was frozen then.

        Args:
            id: of the rehearsal, which must be the newest one.
            by: the reviewer, who must be the one who planned it.

        Raises:
            BusyError: another job is running, or there was another rehearsal or an act since.
        """
        with self._lock:
            rehearsal = self._rehearsal
            if (
                rehearsal is None
                or rehearsal.id != id
                or not rehearsal.confirmable
                or rehearsal.by != by
            ):
                raise BusyError("This preview is no longer the newest: make it again.")
            plan, selection = (
                require(rehearsal.plan, "no plan"),
                require(rehearsal.selection, "no selection"),
            )

            def work(job: Job) -> None:
                # The index no longer holds, even where the act fails halfway.
                self.letters.stale = True
                job.account = self.session.act(
                    plan, selection, progress=job.saw, cancelled=job.cancelled
                ).as_dict()
                # Whoever cancelled the act did not cancel the reading after it.
                job.seen = job.total = 0
                job.cancelled = threading.Event()
                self.letters.read(job)

            job = Job(
                kind=plan.act,
                by=by,
                plan=plan,
                selection=selection,
                total=selection.total(),
            )
            self._start(job, work)
            self._rehearsal = None
            return job

    def account(self, by: str) -> Job:
        """Start to compare the audit files with the letters.

        Raises:
            BusyError: another job is running.
        """

        def work(job: Job) -> None:
            self.letters.read(job)
            index = self.letters.index
            if index is not None and index.complete:
                # The audit files may be those of all queues and topics, so a letter of theirs may lie in any.
                # As of when all of them were read, and their ids with whether they are intact.
                answers = [
                    each.letters.ask(
                        lambda other: (
                            (other.as_of, list(other.ids())) if other.complete else None
                        ),
                        None,
                    )
                    for each in self.beside
                ]
                read = [ids for ids in answers if ids is not None]
                require(
                    len(read) == len(answers),
                    "The other queues and topics are not all read yet.",
                    BusyError,
                )
                beside = chain.from_iterable(ids for _, ids in read)
                as_of = min([index.as_of, *(at for at, _ in read)])
                self.ledger = self.session.ledger(
                    index, self.files, beside=beside, as_of=as_of
                )

        return self._start(Job(kind=ACCOUNT, by=by), work)

    def cancel(self, id: str) -> None:
        """Stop a job before its next letter."""
        if self.job is not None and self.job.id == id:
            self.job.cancelled.set()

    def verdict(self, reading: Reading) -> str | None:
        """Return today's verdict on a letter; ``None`` without a verifier."""
        return None if self.session.guard is None else self.session.verdict(reading)

    def trail(self, letter: str) -> list[tuple[Record, Line, bool]]:
        """Return what the audit files say of a dead letter, by its id.

        Raises:
            BusyError: somebody else is looking for another one.
            ConfigurationError: a file cannot be read, or they are too large for that.
        """
        require(
            self._looking.acquire(blocking=False),
            "Somebody is reading the audit files: try again.",
            BusyError,
        )
        try:
            return trail(self.files, letter)
        finally:
            self._looking.release()

    def _start(self, job: Job, work: Callable[[Job], None]) -> Job:
        with self._lock:
            if self.job is not None and self.job.running:
                # Whoever may only look can start nothing that keeps a reviewer from working on what is shown.
                gives_way = (
                    self.job.kind in FOR_ALL
                    and job.kind not in FOR_ALL
                    and not self.letters.stale
                )
                require(gives_way, "Another job is running.", BusyError)
                self.job.cancelled.set()
            self.job = job
            self._worker.submit(self._work, job, work)
        return job

    def _work(self, job: Job, work: Callable[[Job], None]) -> None:
        try:
            work(job)
        except MqauthError as error:
            job.error = str(error)
        # A failed job is a line on its page. The console itself must stay up.
        except Exception as error:
            emit("console.job_failed", "console job %s failed", job.kind, error=error)
            job.error = type(error).__name__
        finally:
            job.running = False
