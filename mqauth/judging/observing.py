"""Loud, and not for ever: what a process says of a rollout at its start, each minute, and when it is overdue.

A plug-in that failed or was slow below ``enforce`` is not asked again for a while (``Breaker``).
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any, Final

from mqauth.audit.record import (
    HOUR,
    MINUTE,
    AuditRecord,
    AuditSink,
    Group,
    Observed,
    record_of_process,
)
from mqauth.clock import Backoff, Clock, Pause, Randomness, uuid7
from mqauth.errors import Cause, Reason, Unavailable
from mqauth.flow import Flow, R, call
from mqauth.judging.delivery import Delivery, verdict_record
from mqauth.judging.policy import Policy
from mqauth.judging.rollout import Rollout, as_facts, is_lenient
from mqauth.judging.verifier import Candidate, Verifier
from mqauth.logs import emit
from mqauth.wire.destination import is_kafka
from mqauth.wire.message import Message

PATIENCE: Final = 0.25
"""Seconds that a plug-in may take before it is left alone for a while."""
PAUSE: Final = 30.0
"""Seconds for which it is not asked again."""


class Breaker:
    """Keeps a plug-in that failed or was slow from being asked again for a while.

    Args:
        cause: of the error that is raised in its place.
        clock: measures it.
    """

    def __init__(self, cause: Cause, clock: Clock) -> None:
        self._cause = cause
        self._monotonic = clock.monotonic
        self._pause = Pause(Backoff(first=PAUSE, longest=PAUSE))

    def watch(self, flow: Flow[R]) -> Flow[R]:
        """Run a flow that asks a plug-in.

        Raises:
            Unavailable: with the cause, during the pause.
            Exception: what the flow raised.
        """
        began, failed = self._monotonic(), False
        if began < self._pause.until:
            raise Unavailable(
                self._cause, f"it failed or was slow within the last {PAUSE:g} s"
            )
        try:
            return (yield from flow)
        except Exception as error:
            failed = getattr(error, "cause", None) not in (
                Cause.CLAIM_HELD,
                Cause.KEY_PENDING,
                Cause.APPEND_TIME_UNAVAILABLE,
            )
            raise
        finally:
            now = self._monotonic()
            if failed or now - began > PATIENCE:
                self._pause.failed(began, now)


SOON: Final = 14
"""Days before the end from which on it is said each day."""
PENDING: Final = 1000
"""Records that wait for the next minute at most."""
DAY: Final = 86_400.0


class Observing:
    """Counts what a process sees below ``enforce``, and tells of it, of aliases too.

    Args:
        rollout: the rungs and exemptions.
        audit: takes the records; ``None`` where nothing is settled.
        clock: the pipeline's.
        randomness: of the records' ids.
        instance: the name of this process.
        policy: its version is recorded.
        verifier: judges tokens.
        scope_of: returns on whose behalf a message is handled.
    """

    def __init__(
        self,
        rollout: Rollout,
        audit: AuditSink | None,
        *,
        clock: Clock,
        randomness: Randomness,
        instance: str,
        policy: Policy,
        verifier: Verifier,
        scope_of: Callable[[Message], str],
    ) -> None:
        self.rollout = rollout
        self.counts = Observed()
        self.sink: Any = audit
        self.breaker = Breaker(Cause.AUDIT_UNAVAILABLE, clock)
        self._verifier = verifier
        self._clock = clock
        self._randomness = randomness
        self._instance = instance
        self._policy = policy
        self._rules = hashlib.sha256(
            f"{policy.version} {verifier.settings}".encode()
        ).hexdigest()[:16]
        self._scope_of = scope_of
        self._sees = hasattr(audit, "see")
        self._pending: deque[tuple[bool, AuditRecord]] = deque()
        # Records of starts and minutes that are kept while audit is out of reach, at most.
        self._unwritten: deque[AuditRecord] = deque(maxlen=120)
        self._told: dict[tuple[str, str], float] = {}
        self._scope = "default"
        self._due = float("-inf")
        self._began = clock.now()
        self._lock = threading.Lock()

    # Counting

    def passes(self, delivery: Delivery) -> None:
        """Count a delivery that its handler gets unverified, and keep what is to be recorded of it.

        Args:
            delivery: just judged.
        """
        pattern = self._seen(delivery.message)
        would = None if delivery.unverified is None else delivery.unverified.would
        # What is exempt is decided, and no news; at off nothing was judged.
        if would is None or pattern is None or not is_lenient(delivery):
            return
        group = group_of_message(delivery.message, would.code, delivery.candidate)
        shown = self.counts.would(pattern, group, self._clock.now())
        if self.sink is not None and (
            shown or (self._sees and would.reason not in (None, Reason.TOKEN_MISSING))
        ):
            if len(self._pending) < PENDING:
                record = verdict_record(
                    delivery,
                    scope=self._scope,
                    time=self._clock.now(),
                    policy=self._policy.version,
                    instance=self._instance,
                )
                record = replace(
                    record,
                    id=uuid7(self._clock, self._randomness),
                    verdict="would_reject",
                    dead_letter=None,
                    reason=None if would.reason is None else would.reason.value,
                    detail=would.detail
                    if would.reason is not None
                    else f"{would.code}: {would.detail}",
                )
                self._pending.append((shown, record))
            else:
                self.counts.lose("records")

    def accepts(self, delivery: Delivery) -> None:
        """Count a verified delivery of a listed destination."""
        pattern, verified = self._seen(delivery.message), delivery.verified
        if pattern is not None and verified is not None:
            self.counts.accept(pattern, verified.issuer, verified.subject)

    def _seen(self, message: Message) -> str | None:
        """Return the pattern of a message's destination, and note how old it is where RabbitMQ proves that."""
        self._scope, entry = (
            self._scope_of(message),
            self.rollout.entry(message.destination),
        )
        pattern = None if entry is None else entry.pattern(message.destination)
        # what a sender may have written says nothing of what waits
        times = self._verifier.times
        appended = None if times.unsafe_append_evidence else times.evidence(message)
        if (
            pattern is not None
            and appended is not None
            and not is_kafka(message.destination)
        ):
            self.counts.appended(pattern, appended)
        return pattern

    # Telling

    def tick(self, last: bool = False) -> Flow[None]:
        """Say what is due: at the first call all that is not enforced, then the counts of each minute.

        Args:
            last: whether the process ends, so that the counts are due now.
        """
        with self._lock:
            now, first = self._clock.monotonic(), self._due == float("-inf")
            if now < self._due and not last:
                return
            self._due = now + MINUTE
        if first:
            named = [each.facts for each in self._verifier.times.without_evidence]
            facts = as_facts(self.rollout, self._verifier.aliases.values())
            facts |= {"without_evidence": named, "rules": self._rules}
            yield from self._write("rollout", facts, last)
            for line in lines(self.rollout):
                emit("rollout.unenforced", "%s", line)
            for each in named:
                emit(
                    "rollout.without_evidence",
                    "%(destination)s: dead-lettered without an append time, through %(through)s: %(why)s",
                    each,
                )
        # Each day from two weeks before an end, and each hour after it.
        for destination, until in ends(self.rollout):
            self._tell_end("rollout", destination, until, now)
        for name, until in self._verifier.ends.items():
            self._tell_end("issuer", name, until, now)
        # Some messages that would be refused are recorded; the detectors see others, too.
        while self._pending:
            shown, record = self._pending.popleft()
            yield from self._attempt(
                self.sink.write if shown else self.sink.see, record, last
            )
        if self.counts.lost:
            emit(
                "rollout.not_awaited",
                "below enforce, not waited for: %s",
                dict(self.counts.lost),
            )
        if self.rollout:
            began, self._began = self._began, self._clock.now()
            rungs = {
                destination: entry.rung.label
                for entry in self.rollout.entries
                for destination in entry.destinations
            }
            facts = {
                "seconds": round(self._began - began, 3),
                "rules": self._rules,
                "rungs": rungs,
            }
            yield from self._write("observed", facts | self.counts.take(), last)

    def _write(self, verdict: str, facts: dict[str, Any], last: bool) -> Flow[None]:
        """Write what is to be told; where that fails it is kept for the next time."""
        record = record_of_process(
            verdict,
            facts,
            id=uuid7(self._clock, self._randomness),
            time=self._clock.now(),
            scope=self._scope,
            policy=self._policy.version,
            instance=self._instance,
        )
        self._unwritten.append(record)
        while self.sink is not None and self._unwritten:
            if not (yield from self._attempt(self.sink.write, self._unwritten[0], last)):
                return
            self._unwritten.popleft()

    def _attempt(self, write: Any, record: AuditRecord, last: bool) -> Flow[bool]:
        """Write a record, if the sink may be asked now; at the end of the process it may be in any case."""
        writing = call(write, record)
        try:
            yield from writing if last else self.breaker.watch(writing)
            return True
        except Exception as error:
            self.counts.lose("audit_unavailable")
            emit(
                "rollout.unwritten",
                "a record of the rollout was not written: %s",
                type(error).__name__,
            )
            return False

    def _tell_end(self, kind: str, name: str, until: date, now: float) -> None:
        """Warn of a day by which something is to end, unless that was said within the last day or hour."""
        left = days_left(until, self._clock.now())
        every, told = (
            HOUR if left < 0 else DAY,
            self._told.get((kind, name), float("-inf")),
        )
        if left > SOON or now < told + every:
            return
        self._told[kind, name] = now
        what = "not enforced" if kind == "rollout" else "its keys still count"
        if left < 0:
            emit(
                f"{kind}.overdue",
                "%s: %s, and its time was over on %s",
                name,
                what,
                until,
            )
        else:
            emit(
                f"{kind}.ending",
                "%s: %s, %d days left, until %s",
                name,
                what,
                left,
                until,
            )


def lines(rollout: Rollout) -> Iterator[str]:
    """Yield a line for each thing that is not enforced."""
    for entry in rollout.below:
        yield (
            f"{', '.join(entry.destinations)}: {entry.rung.label} until {entry.until}, ask {entry.owner};"
            " forged messages reach handlers"
        )
    for exempt in rollout.exemptions:
        kinds = f" of the kinds {', '.join(sorted(exempt.kinds))}" if exempt.kinds else ""
        yield f"{exempt.destination}: messages{kinds} may lack a token until {exempt.until}: {exempt.why}"


def ends(rollout: Rollout) -> Iterator[tuple[str, date]]:
    """Yield the destinations that are not enforced, and by which day each has to be."""
    for entry in rollout.below:
        yield ", ".join(entry.destinations), entry.until
    for exempt in rollout.exemptions:
        yield exempt.destination, exempt.until


def days_left(until: date, now: float) -> int:
    """Return how many days are left at ``now``, UTC seconds; negative once the day is over."""
    return (until - datetime.fromtimestamp(now, UTC).date()).days


def group_of_message(
    message: Message, code: str, candidate: Candidate | None = None
) -> Group:
    """Return the group of a message that would be refused, by what it says of itself."""
    user = message.properties.get("user-id")
    claims = None if candidate is None else candidate.token.claims
    return Group(
        code=code,
        destination=message.destination[:256],
        app=_cut(message.text_property("app-id")),
        user=_cut(user if isinstance(user, str) else None),
        subject=None if claims is None else _cut(claims.sub),
        kid=None if candidate is None else _cut(candidate.token.opened.kid),
        partition=message.origin.partition,
    )


def _cut(text: str | None) -> str | None:
    return None if text is None else text[:128]
