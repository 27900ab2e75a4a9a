"""The desk: one letter box, the newest index of it, and one job at a time on a thread of its own.

Memory is bounded: letters are in the index on disk, of groups the largest 200 are kept, of jobs the newest.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from mqauth import review
from mqauth.audit import AuditSink
from mqauth.auditlog import read_records
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.console import job as jobs
from mqauth.console.job import Job, Plan
from mqauth.console.pictures import Timeline, timeline
from mqauth.errors import ConfigurationError, MqauthError, Reason
from mqauth.flow import Flow
from mqauth.pipeline import Pipeline
from mqauth.release import Releaser
from mqauth.review import (
    ALL,
    Account,
    Filter,
    Group,
    Index,
    Ledger,
    LetterBox,
    Pace,
    Reading,
    Reviewer,
    Row,
    Terms,
)

MAX_GROUPS: Final = 200
_LOG: Final = logging.getLogger("mqauth.console")
T = TypeVar("T")


class BusyError(MqauthError):
    """Another job is running."""

    code = "busy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What the first page shows of an index.

    Args:
        as_of: UTC seconds.
        total: open letters.
        kinds: number of groups.
        groups: the largest of them.
        picture: rejections over time.
    """

    as_of: float
    total: int
    kinds: int
    groups: Sequence[Group]
    picture: Timeline


class Desk:
    """Where letters are looked at and acted on.

    Args:
        box: the letters.
        run: runs a flow to its end; called from the desk's thread, for a verdict also from others.
        guard: the consumer's pipeline, which judges; without it nothing is judged or redriven.
        releaser: returns what signs releases for a reviewer, of this name; without it nothing is redriven.
        audit: where acts are recorded; without it the desk is for looking only.
        files: audit files of consumers and reviewers, for the account.
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
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name = box.name
        self.guard, self.files = guard, tuple(files)
        self.can_redrive = guard is not None and releaser is not None and audit is not None
        self.can_discard = audit is not None
        self.job: Job | None = None
        self.overview: Overview | None = None
        self.ledger: Ledger | None = None
        self._box, self._run, self._releaser, self._audit, self._clock = box, run, releaser, audit, clock
        self._index: Index | None = None
        self._lock = threading.RLock()
        self._worker = ThreadPoolExecutor(1, "mqauth-console")
        self._future: Future[None] | None = None

    def close(self) -> None:
        """Stop what runs, before its next letter, and forget the index."""
        if self.job is not None:
            self.job.cancelled.set()
        self._worker.shutdown()
        with self._lock:
            if self._index is not None:
                self._index.close()
            self._index = None

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the job has ended."""
        if self._future is not None:
            self._future.result(seconds)

    def read(self, by: str) -> Job:
        """Start to read all letters anew.

        Raises:
            BusyError: another job is running.
        """
        return self._start(Job(kind=jobs.READING, by=by), self._survey)

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

    def count(self, wanted: Filter = ALL) -> int:
        """Return how many letters are meant."""
        return self._ask(lambda index: index.count(wanted), 0)

    def page(self, wanted: Filter, *, after: int, limit: int) -> list[Row]:
        """Return a page of letters."""
        return self._ask(lambda index: index.page(wanted, after=after, limit=limit), [])

    def letter(self, mark: str) -> tuple[Row, Reading] | None:
        """Return one letter, by its mark."""

        def find(index: Index) -> tuple[Row, Reading] | None:
            rows = index.page(Filter(mark=mark), limit=1)
            return (rows[0], index.reading(rows[0].number)) if rows else None

        return self._ask(find, None)

    def verdict(self, reading: Reading) -> str | None:
        """Return today's verdict on a letter; ``None`` without a verifier."""
        if self.guard is None:
            return None
        return str(self._run(review.Judge(self.guard).today(reading)))

    def _ask(self, question: Callable[[Index], T], otherwise: T) -> T:
        """Ask the index, if there is one."""
        with self._lock:
            return otherwise if self._index is None else question(self._index)

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

    def _survey(self, job: Job) -> None:
        """Read all letters into a new index and put it in the place of the old one."""
        fresh: Index = self._run(review.survey(self._box, clock=self._clock, progress=_seen(job)))
        overview = _overview(fresh)
        with self._lock:
            old, self._index, self.overview = self._index, fresh, overview
            if old is not None:
                old.close()

    def _judge(self, job: Job, wanted: Filter) -> None:
        """Judge letters; the verdicts stand in the index."""
        if self.guard is not None and self._index is not None:
            job.counts = self._run(review.judge(self._index, self.guard, wanted))

    def _rehearse(self, job: Job) -> None:
        """Freeze the selection and count what would become of it."""
        if job.plan is None or self._index is None:
            return
        job.selection = self._ask(lambda index: index.freeze(job.plan.wanted if job.plan else ALL), None)
        if job.plan.act == jobs.DISCARD:
            job.counts = Counter(accepted=len(job.selection or ()))
        elif self.guard is not None:
            terms = self._terms(job.plan)
            job.counts = self._run(review.rehearse(self._index, job.plan.wanted, guard=self.guard, terms=terms))

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
                self._box, selection, guard=self.guard, terms=terms, reviewer=reviewer, pace=pace
            )
        else:
            return
        job.account = self._run(wish).as_dict()
        self._survey(Job(kind=jobs.READING, by=job.by))

    def _account(self, job: Job) -> None:
        """Hold the audit files against letters read just now."""
        self._survey(job)
        if self._index is not None:
            self.ledger = review.account(read_records(self.files), self._index.ids())

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


def _overview(index: Index) -> Overview:
    """Return what the first page shows."""
    groups = index.groups()
    return Overview(
        as_of=index.as_of, total=sum(group.count for group in groups), kinds=len(groups),
        groups=groups[:MAX_GROUPS], picture=timeline(index, groups),
    )  # fmt: skip
