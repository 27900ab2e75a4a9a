"""A review session: what one reviewer works with on one letter box, and the rules of what they may do.

``mqauth dlq`` prints what a session returns, and the console renders it. Neither decides anything about letters.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, Protocol

from mqauth.audit.chain import Line, find
from mqauth.audit.file import parts, with_parts
from mqauth.audit.query import Record, member, parse_record, read_records
from mqauth.audit.record import AuditSink, iso_time
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import Reason, file_errors, require
from mqauth.flow import Flow, R, call
from mqauth.judging.pipeline import Pipeline
from mqauth.letters.authorities import Releaser
from mqauth.letters.release import WAIVABLE
from mqauth.review.acts import DISCARD, Account, Plan, act, rehearse
from mqauth.review.index import ALL, Filter, Index
from mqauth.review.letter import Reading
from mqauth.review.letterbox import Judge, LetterBox, Originals, fill, judge
from mqauth.wire.keys import Key, SigningKey

MakeReleaser = Callable[[str], Releaser]


class Run(Protocol):
    """Runs a flow to its end: ``mqauth.flow.run``, or a function that runs ``arun`` in an event loop."""

    def __call__(self, flow: Flow[R], /) -> R:
        """Return what the flow returns."""


class Session:
    """One reviewer's work on one letter box.

    Args:
        box: the letters.
        run: runs a flow to its end.
        guard: the consumer's pipeline; without it nothing can be judged or redriven.
        releaser: returns what signs releases for a reviewer, by their name; without it nothing can be redriven.
        audit: where acts are recorded; without it letters can only be looked at. It may also be set later.
        originals: where the originals of reference letters are read again, if the broker keeps them.
        clock: tells the time.
    """

    def __init__(
        self,
        box: LetterBox,
        run: Run,
        *,
        guard: Pipeline | None = None,
        releaser: MakeReleaser | None = None,
        audit: AuditSink | None = None,
        originals: Originals | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.box, self.run, self.guard, self.originals, self.clock = (
            box,
            run,
            guard,
            originals,
            clock,
        )
        self.audit = audit
        self._releaser = releaser

    @property
    def can_redrive(self) -> bool:
        """Whether there is a pipeline that judges, a key that signs releases, and an audit."""
        return (
            self.guard is not None
            and self._releaser is not None
            and self.audit is not None
        )

    @property
    def waivable(self) -> list[Reason]:
        """The reasons that the consumer lets releases waive."""
        release = None if self.guard is None else self.guard.verifier.release
        permitted = () if release is None else release.authorities.values()
        return [
            reason
            for reason in WAIVABLE
            if any(reason in each.waive for each in permitted)
        ]

    def pipeline(self) -> Pipeline:
        """Return the pipeline that judges.

        Raises:
            ConfigurationError: the session has none.
        """
        return require(self.guard, "started without --config: nothing can be judged")

    def depth(self) -> int:
        """Return how many letters are open by the broker's counts, without reading them.

        Raises:
            Unavailable: ``dead_letter_unavailable``, the broker cannot be asked.
        """
        return self.run(call(self.box.depth))

    def survey(
        self,
        index: Index,
        *,
        progress: Callable[[int], None] = lambda seen: None,
        cancelled: threading.Event | None = None,
    ) -> None:
        """Read all letters into an empty index, which others may read meanwhile, removing none.

        Args:
            index: keeps what was read where the broker fails.
            progress: called with the number of letters read so far.
            cancelled: set from any thread, it ends the reading after the letters at hand.

        Raises:
            Unavailable: ``dead_letter_unavailable``, the broker cannot be asked.
        """
        self.run(fill(index, self.box, progress=progress, cancelled=cancelled))

    def judge(
        self,
        index: Index,
        wanted: Filter = ALL,
        *,
        progress: Callable[[int], None] = lambda seen: None,
        cancelled: threading.Event | None = None,
    ) -> Counter[str]:
        """Judge letters by today's verifier, note the verdicts in the index, and return their counts.

        Raises:
            ConfigurationError: the session has no pipeline.
        """
        return self.run(
            judge(
                index,
                self.pipeline(),
                wanted,
                originals=self.originals,
                progress=progress,
                cancelled=cancelled,
            )
        )

    def verdict(self, reading: Reading) -> str:
        """Return today's verdict on one letter: ``accepted``, a reason, or a cause.

        Raises:
            ConfigurationError: the session has no pipeline.
        """
        return self.run(Judge(self.pipeline(), self.originals).today(reading))

    def check(self, plan: Plan) -> None:
        """Refuse a plan that this session cannot carry out.

        Raises:
            ConfigurationError: no audit, or for a redrive no pipeline or no key.
        """
        require(
            self.audit if plan.act == DISCARD else self.can_redrive,
            f"not set up to {plan.act}: it needs an audit file, and to redrive a key too",
        )

    def rehearse(
        self,
        index: Index,
        plan: Plan,
        *,
        progress: Callable[[int], None] = lambda seen: None,
        cancelled: threading.Event | None = None,
    ) -> tuple[Counter[str], Counter[str]]:
        """Freeze the letters of a plan, and count what would become of them: ``accepted``, or why not.

        Raises:
            ConfigurationError: for a redrive no pipeline or no key, or the key does not speak for the reviewer.
        """
        selection = index.freeze(plan.wanted)
        if plan.act == DISCARD:
            return selection, Counter(accepted=selection.total())
        return selection, self.run(
            rehearse(
                index,
                plan,
                guard=self.pipeline(),
                releaser=self._releaser_of(plan),
                originals=self.originals,
                progress=progress,
                cancelled=cancelled,
            )
        )

    def act(
        self,
        plan: Plan,
        selection: Counter[str],
        *,
        progress: Callable[[int], None] = lambda seen: None,
        cancelled: threading.Event | None = None,
    ) -> Account:
        """Carry out a plan on the letters that were frozen for it, and return what became of them.

        Args:
            plan: as it was rehearsed.
            selection: as the rehearsal froze it; letters that came later are not touched.
            progress: called with the number of letters looked at so far.
            cancelled: set from any thread, it stops the act before the next letter.

        Raises:
            ConfigurationError: as for ``rehearse``, or no audit.
        """
        audit = require(self.audit, f"not set up to {plan.act}: it needs an audit file")
        return self.run(
            act(
                self.box,
                selection,
                plan,
                audit=audit,
                guard=None if plan.act == DISCARD else self.pipeline(),
                releaser=None if plan.act == DISCARD else self._releaser_of(plan),
                originals=self.originals,
                clock=self.clock,
                progress=progress,
                cancelled=cancelled,
            )
        )

    def ledger(
        self,
        index: Index,
        files: Iterable[Path],
        *,
        beside: Iterable[tuple[str, bool]] = (),
        as_of: float | None = None,
    ) -> Ledger:
        """Compare audit files of consumers and reviewers, with their rotated parts, to the letters of an index.

        Args:
            index: the letters.
            files: oldest first.
            beside: ids in other queues and topics whose rejections the files name too, as of ``Index.ids``.
            as_of: UTC seconds at which the first of all these was read; by default, the index.
        """
        return account(
            read_records(with_parts(files)),
            chain(index.ids(), beside),
            as_of=index.as_of if as_of is None else as_of,
        )

    def _releaser_of(self, plan: Plan) -> Releaser:
        allowed = ", ".join(self.waivable) or "nothing"
        require(
            plan.waive <= {*self.waivable},
            f"waive: [[release.authorities]] lets a release waive {allowed}",
        )
        return require(self._releaser, "started without --key: nothing can be redriven")(
            plan.reviewer
        )


def reviewers_releaser(
    guard: Pipeline,
    read_key: Callable[[], Key | SigningKey],
    *,
    authority: str | None,
    lifetime: int,
) -> MakeReleaser:
    """Return a function that returns what signs releases for a reviewer, by their name.

    Args:
        guard: the consumer's pipeline, which has to trust the releases.
        read_key: returns the reviewers' key; called for each releaser, since a console outlives a rotation.
        authority: issuer of the releases; by default the only one that the pipeline trusts.
        lifetime: seconds for which a release is valid.

    Raises:
        ConfigurationError: the pipeline trusts no authority, or several and none was named.
    """
    trusted = (
        [] if guard.verifier.release is None else list(guard.verifier.release.authorities)
    )
    require(
        trusted,
        "--config: has no [[release.authorities]], so its consumer accepts no release",
    )
    require(
        authority or len(trusted) == 1,
        "--authority: required, since the configuration trusts several",
    )
    return lambda reviewer: Releaser(
        key=read_key(),
        issuer=authority or trusted[0],
        reviewer=reviewer,
        lifetime=lifetime,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Dead letters counted by their ids: by audit files and queue, each is open, redriven or discarded.

    Everything adds up where ``difference`` is 0.

    Args:
        rejected: ids that the audit says were dead-lettered.
        open: of these, in the queue.
        redriven, discarded: of these, no longer in the queue, by the last act on record.
        missing: of these, neither in the queue nor on record as acted on.
        unknown: in the queue without a record of their rejection.
        unproven: open or discarded ids named only by letters that are not intact: they may be forged.
        as_of: UTC seconds at which the queue was read; rejections after that do not count.
    """

    rejected: int
    open: int
    redriven: int
    discarded: int
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    unproven: tuple[str, ...]
    as_of: float | None = None

    @property
    def difference(self) -> int:
        """How many letters do not add up."""
        return len(self.missing) + len(self.unknown)

    def as_dict(self) -> dict[str, Any]:
        """Return the ledger as JSON values; of long lists the first 100 ids, with the full count."""
        lists = {
            "missing": self.missing,
            "unknown": self.unknown,
            "unproven": self.unproven,
        }
        return {
            "as_of": None if self.as_of is None else iso_time(self.as_of),
            "rejected": self.rejected,
            "open": self.open,
            "redriven": self.redriven,
            "discarded": self.discarded,
            "difference": self.difference,
            **{
                name: {"count": len(ids), "ids": list(ids[:100])}
                for name, ids in lists.items()
            },
        }


def account(
    records: Iterable[Mapping[str, Any]],
    waiting: Iterable[tuple[str, bool]],
    *,
    as_of: float | None = None,
) -> Ledger:
    """Compare audit records with the letters in the queue.

    Args:
        records: audit records of the consumers and the reviewers.
        waiting: ids in the queue, and whether one of their letters is intact (``Index.ids``).
        as_of: UTC seconds at which the queue was read. What was rejected after that cannot have been in it.
    """
    here, end = dict(waiting), None if as_of is None else iso_time(as_of)
    rejected, later = set[str](), set[str]()
    acts: dict[str, tuple[str, bool]] = {}
    for record in records:
        letter, verdict = record.get("dead_letter"), record.get("verdict")
        if isinstance(letter, str) and verdict == "rejected":
            (rejected if end is None or str(record.get("time")) <= end else later).add(
                letter
            )
        elif isinstance(letter, str) and verdict in ("redriven", "discarded"):
            acts[letter] = (verdict, member(record, "review").get("intact") is True)
    # Another machine's clock may run ahead: what is here, or was acted on, had been rejected by then all the same.
    rejected |= later & (here.keys() | acts.keys())
    # A letter still in the queue is open whatever the audit says: an act recorded before a crash may not have
    # removed it.
    resolved = {
        letter: act
        for letter, act in acts.items()
        if letter in rejected and letter not in here
    }
    unproven = [
        *(letter for letter, intact in here.items() if letter in rejected and not intact),
        *(letter for letter, (_, intact) in resolved.items() if not intact),
    ]
    return Ledger(
        rejected=len(rejected),
        open=sum(1 for letter in here if letter in rejected),
        redriven=sum(1 for act, _ in resolved.values() if act == "redriven"),
        discarded=sum(1 for act, _ in resolved.values() if act == "discarded"),
        missing=tuple(sorted(rejected - here.keys() - resolved.keys())),
        unknown=tuple(sorted(here.keys() - rejected)),
        unproven=tuple(sorted(unproven)),
        as_of=as_of,
    )


MOST: Final = 20
"""Records of a dead letter that are shown; the rejection and one act are the rule."""
LARGEST_FILES: Final = 1024**3
"""Bytes of audit files that are read for one dead letter."""


def trail(files: Iterable[Path], letter: str) -> list[tuple[Record, Line, bool]]:
    """Return the first records of a dead letter, by its id, from audit files and their rotated parts.

    Each has its line, and whether the records of the chain up to it follow one another. Signed heads are not
    compared.

    Raises:
        ConfigurationError: a file cannot be read, or they have more than 1 GiB: too much while somebody waits.
    """
    logs = [parts(path) for path in files]
    size = 0
    for part in chain.from_iterable(logs):
        with file_errors(part):
            size += part.stat().st_size
    require(
        size <= LARGEST_FILES,
        f"the audit files have {size:,} bytes: ask mqauth audit show {letter} FILES",
    )
    steps: list[tuple[Record, Line, bool]] = []
    name = letter.encode("utf-8", "backslashreplace")
    for line, raw, unbroken in chain.from_iterable(
        find(log, lambda raw: name in raw) for log in logs
    ):
        # A line that somebody damaged breaks the chain, and is no record.
        with suppress(ValueError):
            record = parse_record(raw)
            if record.get("dead_letter") == letter:
                steps.append((record, line, unbroken))
        if len(steps) == MOST:
            break
    return steps
