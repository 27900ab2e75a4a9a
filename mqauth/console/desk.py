"""The desk: one letter box, the newest index of it, and one job at a time on a thread of its own.

Memory is bounded: letters are in the index on disk, of groups the largest 200 are kept, of jobs the newest. A
broker that is lost is told on every page, and reading goes on when it is back.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from mqauth import review
from mqauth.audit.log import read_records
from mqauth.audit.record import AuditSink
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.console import job as jobs
from mqauth.console.job import Job, Plan
from mqauth.console.reader import WAITS, Lost, Reader
from mqauth.console.shelf import Overview, Shelf
from mqauth.errors import ConfigurationError, MqauthError, Reason
from mqauth.flow import Flow
from mqauth.judging.pipeline import Pipeline
from mqauth.letters.authorities import Releaser
from mqauth.review import (
    ALL,
    Account,
    Filter,
    Index,
    Ledger,
    LetterBox,
    Pace,
    Reading,
    Reviewer,
    Row,
    Terms,
)
from mqauth.review.recall import Originals

_LOG: Final = logging.getLogger("mqauth.console")


class BusyError(MqauthError):
    """Another job is running."""

    code = "busy"


class Desk:
    """Where letters are looked at and acted on.

    Args:
        box: the letters.
        run: runs a flow to its end; called from the desk's thread, for a verdict also from others.
        guard: the consumer's pipeline, which judges; without it nothing is judged or redriven.
        releaser: returns what signs releases for a reviewer, of this name; without it nothing is redriven.
        audit: where acts are recorded; without it the desk is for looking only.
        files: audit files of consumers and reviewers, for the account.
        originals: where the originals of mere references are read again, if anywhere.
        waits: seconds between attempts to reach a broker that was lost; the last one goes on.
    """

    def __init__(
        self,
        box: LetterBox,
        run: Callable[[Flow[Any]], Any],
        *,
        guard: Pipeline | None = None,
        releaser: Callable[[str], Releaser] | None = None,
        audit: AuditSink | None = None,
        files: Sequence[Path] = (),
        originals: Originals | None = None,
        clock: Clock = SYSTEM_CLOCK,
        waits: Sequence[float] = WAITS,
    ) -> None:
        self.name = box.name
        self.guard, self.files = guard, tuple(files)
        self.can_redrive = guard is not None and releaser is not None and audit is not None
        self.can_discard = audit is not None
        self.job: Job | None = None
        self.ledger: Ledger | None = None
        self._box, self._run, self._releaser, self._audit, self._clock = box, run, releaser, audit, clock
        self._originals = originals
        self._shelf = Shelf(clock)
        self._reader = Reader(box, run, self._shelf, clock=clock, waits=waits)
        self._lock = threading.RLock()
        self._worker = ThreadPoolExecutor(1, "mqauth-console")
        self._future: Future[None] | None = None

    def close(self) -> None:
        """Stop what runs, before its next letter, and forget the index."""
        self._reader.close()
        if self.job is not None:
            self.job.cancelled.set()
        self._worker.shutdown()
        self._shelf.show(None)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the job has ended."""
        if self._future is not None:
            self._future.result(seconds)

    def read(self, by: str) -> Job:
        """Start to read all letters anew.

        Raises:
            BusyError: another job is running.
        """
        return self._start(Job(kind=jobs.READING, by=by), self._reader.read)

    def judge(self, wanted: Filter, by: str) -> Job:
        """Start to judge letters by today's verifier.

        Raises:
            BusyError: another job is running.
            ConfigurationError: the console has no verifier.
        """
        if self.guard is None:
            raise ConfigurationError("the console was started without --config: nothing can be judged")
        return self._start(Job(kind=jobs.JUDGING, by=by), lambda job: self._judge(job, wanted))

    def rehearse(self, plan: Plan) -> Job:
        """Freeze a selection and start to find out what the act would do.

        Raises:
            BusyError: another job is running.
            ConfigurationError: the console cannot act, or there is no reason.
        """
        self._check(plan)
        job = Job(kind=jobs.REHEARSING, by=plan.reviewer, plan=plan)
        return self._start(job, self._rehearse)

    def act(self, id: str, by: str) -> Job:
        """Start the act that was rehearsed, on the selection frozen then.

        Args:
            id: of the rehearsal, which must be the newest job.
            by: the reviewer who planned it.

        Raises:
            BusyError: another job is running, or has run since.
        """
        with self._lock:
            found = self.job
            if found is None or found.id != id or not found.confirmable or found.by != by or found.plan is None:
                raise BusyError("this plan is no longer the newest: make it again")
            job = Job(kind=found.plan.act, by=by, plan=found.plan, selection=found.selection)
            job.total = len(found.selection or ())
            return self._start(job, self._act)

    def account(self, by: str) -> Job:
        """Start to hold the audit files against the letters.

        Raises:
            BusyError: another job is running.
        """
        return self._start(Job(kind=jobs.ACCOUNTING, by=by), self._account)

    def cancel(self, id: str) -> None:
        """Stop a job before its next letter."""
        if self.job is not None and self.job.id == id:
            self.job.cancelled.set()

    @property
    def lost(self) -> Lost | None:
        """Since when and why the broker is out of reach, if it is."""
        return self._reader.lost

    def overview(self) -> Overview | None:
        """Return what the first page shows, of letters read so far; ``None`` before any were."""
        return self._shelf.overview()

    def count(self, wanted: Filter = ALL) -> int:
        """Return how many letters are meant."""
        return self._shelf.ask(lambda index: index.count(wanted), 0)

    def page(self, wanted: Filter, *, after: int, limit: int) -> list[Row]:
        """Return a page of letters."""
        return self._shelf.ask(lambda index: index.page(wanted, after=after, limit=limit), [])

    def letter(self, mark: str) -> tuple[Row, Reading] | None:
        """Return one letter, by its mark."""

        def find(index: Index) -> tuple[Row, Reading] | None:
            rows = index.page(Filter(mark=mark), limit=1)
            return (rows[0], index.reading(rows[0].number)) if rows else None

        return self._shelf.ask(find, None)

    def verdict(self, reading: Reading) -> str | None:
        """Return today's verdict on a letter; ``None`` without a verifier."""
        if self.guard is None:
            return None
        return str(self._run(review.Judge(self.guard, self._originals).today(reading)))

    def _start(self, job: Job, work: Callable[[Job], None]) -> Job:
        """Give the desk's thread a job."""
        with self._lock:
            if self.job is not None and self.job.running:
                raise BusyError("another job is running")
            self.job = job
            self._future = self._worker.submit(self._work, job, work)
        return job

    def _work(self, job: Job, work: Callable[[Job], None]) -> None:
        """Do a job; whatever fails is a line on its page."""
        try:
            work(job)
        except MqauthError as error:
            job.error = str(error)
        except Exception as error:  # the law of the edge: the console stays up, the log says what
            _LOG.exception("console job %s failed", job.kind)
            job.error = type(error).__name__
        finally:
            job.running = False

    def _judge(self, job: Job, wanted: Filter) -> None:
        """Judge letters; the verdicts stand in the index."""
        index = self._shelf.index
        if self.guard is None or index is None:
            return
        job.total = index.count(wanted)
        job.counts = self._run(
            review.judge(index, self.guard, wanted, originals=self._originals, progress=_seen(job),
                         cancelled=job.cancelled)
        )  # fmt: skip

    def _rehearse(self, job: Job) -> None:
        """Freeze the selection and count what would become of it."""
        index, plan = self._shelf.index, job.plan
        if plan is None or index is None:
            return
        job.selection = index.freeze(plan.wanted)
        job.total = len(job.selection)
        if plan.act == jobs.DISCARD:
            job.counts = Counter(accepted=job.total)
        elif self.guard is not None:
            job.counts = self._run(
                review.rehearse(index, plan.wanted, guard=self.guard, terms=self._terms(plan),
                                originals=self._originals, progress=_seen(job), cancelled=job.cancelled)
            )  # fmt: skip

    def _act(self, job: Job) -> None:
        """Redrive or discard, then read what is left."""
        plan, selection = job.plan, job.selection
        if plan is None or selection is None or self._audit is None:
            return
        reviewer = Reviewer(name=plan.reviewer, audit=self._audit, clock=self._clock)
        pace = Pace(rate=plan.rate, cancelled=job.cancelled, progress=_acted(job))
        wish: Flow[Account]
        if plan.act == jobs.DISCARD:
            wish = review.discard(self._box, selection, reviewer=reviewer, reason=plan.reason, pace=pace)
        elif self.guard is not None:
            terms = self._terms(plan)
            wish = review.redrive(
                self._box, selection, guard=self.guard, terms=terms, reviewer=reviewer, pace=pace,
                originals=self._originals,
            )  # fmt: skip
        else:
            return
        self._shelf.stale = True  # even where it fails halfway
        job.account = self._run(wish).as_dict()
        self._reader.read_what_is_left(job)

    def _account(self, job: Job) -> None:
        """Hold the audit files against letters read just now."""
        self._reader.read(job)
        index = self._shelf.index
        if index is not None and index.complete:
            self.ledger = review.account(read_records(self.files), index.ids())

    def _check(self, plan: Plan) -> None:
        """Refuse a plan that could not be carried out."""
        if not plan.reason.strip():
            raise ConfigurationError("a reason is required")
        if not (self.can_discard if plan.act == jobs.DISCARD else self.can_redrive):
            raise ConfigurationError(f"the console was not set up to {plan.act}: see mqauth console --help")

    def _terms(self, plan: Plan) -> Terms:
        """Return the terms of the releases."""
        if self._releaser is None:
            raise ConfigurationError("the console has no key for releases")
        waive = frozenset(Reason(name) for name in plan.waive)
        return Terms(releaser=self._releaser(plan.reviewer), reason=plan.reason, waive=waive)


def _seen(job: Job) -> Callable[[int], None]:
    """Return what keeps count of letters read."""

    def progress(count: int) -> None:
        job.seen = count

    return progress


def _acted(job: Job) -> Callable[[Account], None]:
    """Return what keeps count of letters acted on."""

    def progress(account: Account) -> None:
        job.seen = account.selected - account.left

    return progress
