"""Judging, redriving and discarding dead letters: a frozen selection, one letter after the other, none lost.

Redrive: check digest and id, sign a release that waives what is needed and no more, judge the very message
that will be sent with today's verifier, publish, have it confirmed, audit, remove. Discard: audit, remove. A
crash leaves a letter that is acted on again, and a duplicate the consumer recognises; never a loss.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from mqauth import audit as audit_records
from mqauth import claims as claim_set
from mqauth.audit import AuditRecord, AuditSink
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness, uuid7
from mqauth.errors import ConfigurationError, MalformedMessage, MqauthError, Reason, Unavailable
from mqauth.flow import Flow, call, either
from mqauth.lineage import Hop
from mqauth.message import Message
from mqauth.pipeline import Pipeline, Verdict
from mqauth.release import WAIVABLE, Release, Releaser, without_release
from mqauth.review.filters import Filter, Selection
from mqauth.review.index import Index
from mqauth.review.judge import Judge, rows, said, why_unsound
from mqauth.review.letter import UNKNOWN, Letter, Reading, read, redeliverable
from mqauth.review.letterbox import BATCH, LetterBox
from mqauth.review.recall import Originals

UNSENDABLE: Final = "unsendable"
_SLICE: Final = 0.2
"""Seconds between looks whether a waiting run was cancelled."""


@dataclass(slots=True, kw_only=True)
class Account:
    """What became of a selection: ``selected`` is always the sum of the other counts.

    Args:
        selected: letters in the frozen selection.
        done: acted on and removed.
        refused: by reason, left where they are.
        failed: the broker or the audit failed on it; it is left, or acted on again, and ends the run.
        gone: in the selection but no longer in the queue.
        left: not looked at: cancelled, or after a failure.
        error: what failed, one line.
        cancelled: whether the run was.
    """

    selected: int
    done: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    gone: int = 0
    error: str | None = None
    cancelled: bool = False

    @property
    def left(self) -> int:
        """Letters not looked at."""
        return self.selected - self.done - self.refused.total() - self.failed - self.gone

    def as_dict(self) -> dict[str, Any]:
        """Return the account as JSON values."""
        return {
            "selected": self.selected, "done": self.done, "refused": dict(self.refused), "failed": self.failed,
            "gone": self.gone, "left": self.left, "error": self.error, "cancelled": self.cancelled,
        }  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Pace:
    """How a run goes: its rate, who watches, and whether to stop.

    Args:
        rate: letters a second at most; ``None`` as fast as it goes.
        progress: called with the account after each letter.
        cancelled: set, from any thread, to stop before the next letter.
    """

    rate: float | None = None
    progress: Callable[[Account], None] = lambda account: None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        if self.rate is not None and not self.rate > 0:
            raise ConfigurationError("rate is above 0 letters a second")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewer:
    """Who acts, and where it is recorded.

    Args:
        name: in every audit record.
        audit: durable; no letter is removed without a record.
    """

    name: str
    audit: AuditSink
    clock: Clock = SYSTEM_CLOCK
    randomness: Randomness = SYSTEM_RANDOMNESS

    def __post_init__(self) -> None:
        if not claim_set.is_name(self.name):
            raise ConfigurationError(f"a reviewer is text of 1 to {claim_set.MAX_NAME} characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms letters are released.

    Args:
        releaser: the reviewer's.
        reason: why, one line; stands in the release and in the audit.
        waive: what may be waived where it is needed.
        scope: for whom; by default the pipeline's scope, or the one each letter names.

    Raises:
        ConfigurationError: no reason, or something that cannot be waived.
    """

    releaser: Releaser
    reason: str
    waive: frozenset[Reason] = field(default_factory=frozenset)
    scope: str | None = None

    def __post_init__(self) -> None:
        _check_reason(self.reason)
        if not self.waive <= set(WAIVABLE):
            raise ConfigurationError(f"a release may waive {', '.join(WAIVABLE)}")


class _Refused(MqauthError):
    """The letter is left where it is; ``str`` is why."""


def rehearse(
    index: Index,
    wanted: Filter,
    *,
    guard: Pipeline,
    terms: Terms,
    originals: Originals | None = None,
    progress: Callable[[int], None] = lambda seen: None,
    cancelled: threading.Event | None = None,
) -> Flow[Counter[str]]:
    """Return what a redrive would make of letters of an index: how many go, and why others would not.

    Nothing is sent, claimed or recorded. ``originals``, ``progress`` and ``cancelled`` are those of ``judge``.
    """
    today, counts = Judge(guard, originals), Counter[str]()
    for row in rows(index, wanted, cancelled):
        try:
            reading = yield from today.recalled(index.reading(row.number))
            yield from _released(today, reading, terms)
            counts["accepted"] += 1
        except _Refused as refusal:
            counts[str(refusal)] += 1
        progress(counts.total())
    return counts


def redrive(
    box: LetterBox,
    selection: Selection,
    *,
    guard: Pipeline,
    terms: Terms,
    reviewer: Reviewer,
    pace: Pace | None = None,
    originals: Originals | None = None,
) -> Flow[Account]:
    """Send the originals of a selection back, each with a release, and remove their letters.

    A letter whose original would not be accepted today, even with the release, is refused and left.

    Args:
        box: where the letters are.
        selection: frozen; letters that came later are not touched.
        guard: the consumer's pipeline: its verifier, policy and release authorities judge.
        terms: of the releases.
        reviewer: who acts, and the audit.
        pace: rate, progress, cancel.
        originals: where the originals of mere references are read again; without it they are refused.
    """
    today = Judge(guard, originals)

    def act(letter: Letter, reading: Reading) -> Flow[None]:
        reading = yield from today.recalled(reading)
        message, release = yield from _released(today, reading, terms)
        try:
            yield from call(box.publish, message)
        except MalformedMessage as error:
            raise _Refused(UNSENDABLE) from error
        record = _record(reviewer, reading, "redriven", terms.reason, release)
        yield from call(reviewer.audit.write, record)
        yield from call(box.remove, letter)

    return (yield from _sweep(box, selection, act, pace or Pace(), today.clock))


def discard(
    box: LetterBox,
    selection: Selection,
    *,
    reviewer: Reviewer,
    reason: str,
    pace: Pace | None = None,
) -> Flow[Account]:
    """Remove the letters of a selection for good, each with an audit record.

    Args:
        box: where the letters are.
        selection: frozen; letters that came later are not touched.
        reviewer: who acts, and the audit.
        reason: why, one line.
        pace: rate, progress, cancel.

    Raises:
        ConfigurationError: no reason.
    """
    _check_reason(reason)

    def act(letter: Letter, reading: Reading) -> Flow[None]:
        record = _record(reviewer, reading, "discarded", reason, None)
        yield from call(reviewer.audit.write, record)
        yield from call(box.remove, letter)

    return (yield from _sweep(box, selection, act, pace or Pace(), reviewer.clock))


def _released(today: Judge, reading: Reading, terms: Terms) -> Flow[tuple[Message, Release]]:
    """Return the message to send: with a release under which today's verifier accepts it, waiving the least."""
    if reading.original is None or not reading.sound:
        raise _Refused(why_unsound(reading))
    scope = today.scope_for(reading, terms.scope)
    past = today.past(reading.original).and_then(_hop(reading, today.clock))
    original = redeliverable(reading.original, scope=scope, now=today.clock.now())
    waived = (
        frozenset([Reason.REPLAYED]) & terms.waive if reading.reason == Reason.REPLAYED else frozenset[Reason]()
    )
    while True:
        try:
            message, release = terms.releaser.release(
                original, letter=reading.id, scope=scope, reason=terms.reason, waive=waived, past=past
            )
        except (MalformedMessage, ConfigurationError) as error:
            plain = yield from today.verdict(without_release(original), scope=scope)
            raise _Refused(said(plain) if plain.verdict is not Verdict.ACCEPTED else UNSENDABLE) from error
        outcome = yield from today.verdict(message, scope=scope)
        if outcome.verdict is Verdict.ACCEPTED:
            return message, release
        if outcome.reason is None or outcome.reason not in terms.waive or outcome.reason in waived:
            raise _Refused(said(outcome))
        waived |= {outcome.reason}


def _hop(reading: Reading, clock: Clock) -> Hop:
    """Return the letter that is released now, as the next one will tell of it."""
    reason = None if reading.reason == UNKNOWN else Reason(reading.reason)
    return Hop(letter=reading.id, reason=reason, time=int(clock.now()))


def _sweep(
    box: LetterBox,
    selection: Selection,
    act: Callable[[Letter, Reading], Flow[None]],
    pace: Pace,
    clock: Clock,
) -> Flow[Account]:
    """Pass over a letter box and act on the letters of a selection; always ends the pass it began."""
    account, wanted = Account(selected=len(selection)), dict(selection.marks)
    due = clock.monotonic()
    try:
        while account.left and not account.cancelled:
            letters = yield from call(box.browse, BATCH)
            if not letters:
                account.gone = account.left
                return account
            for letter in letters:
                mark = letter.mark
                if not wanted.get(mark):
                    continue
                due = yield from _wait(due, pace, clock)
                if pace.cancelled.is_set():
                    account.cancelled = True
                    break
                wanted[mark] -= 1
                yield from _one(letter, act, account)
                pace.progress(account)
    except Unavailable as error:
        account.error = str(error)
    except Exception:
        yield from _end(box, account)
        raise
    yield from _end(box, account)
    return account


def _one(letter: Letter, act: Callable[[Letter, Reading], Flow[None]], account: Account) -> Flow[None]:
    """Act on one letter and count what became of it."""
    try:
        yield from act(letter, read(letter))
    except _Refused as refusal:
        account.refused[str(refusal)] += 1
    except Unavailable:
        account.failed += 1
        raise
    else:
        account.done += 1


def _wait(due: float, pace: Pace, clock: Clock) -> Flow[float]:
    """Wait until the next letter is due, and return when the one after it is."""
    if pace.rate is None:
        return due
    while (left := due - clock.monotonic()) > 0 and not pace.cancelled.is_set():
        yield from either(_wake(pace.cancelled), _slept, min(left, _SLICE))
    return max(due, clock.monotonic()) + 1 / pace.rate


def _wake(cancelled: threading.Event) -> Callable[[float], bool | Awaitable[bool]]:
    """Return what waits so many seconds, or until a run is cancelled."""
    return cancelled.wait


async def _slept(seconds: float) -> bool:
    """Let other tasks run for so many seconds."""
    await asyncio.sleep(seconds)
    return False


def _end(box: LetterBox, account: Account) -> Flow[None]:
    """End the pass; what is not removed is given back."""
    try:
        yield from call(box.browse, 0)
    except Unavailable as error:
        account.error = account.error or str(error)


def _record(reviewer: Reviewer, reading: Reading, act: str, reason: str, release: Release | None) -> AuditRecord:
    """Return the record of one act; what the letter claims is claimed, unless the act proved it."""
    original = reading.original
    body = None if original is None else original.body
    review: dict[str, Any] = {
        "reviewer": audit_records.harmless(reviewer.name), "mark": reading.mark, "sound": reading.sound,
    }  # fmt: skip
    if release is not None:
        review |= {"release": release.jti, "authority": audit_records.harmless(release.iss),
                   "waive": sorted(release.waive), "until": release.exp}  # fmt: skip
    return AuditRecord(
        id=uuid7(reviewer.clock, reviewer.randomness),
        time=reviewer.clock.now(),
        verdict=act,
        reason=None if reading.reason == "unknown" else reading.reason,
        detail=reason,
        scope=reading.scope if release is None else release.scope,
        broker={"destination": reading.destination} if original is None else audit_records.broker_fields(original),
        token=audit_records.token_fields(
            None, reading.kid, reading.alg, reading.claims, verified=release is not None
        ),
        body_sha256=None if body is None else audit_records.sha256(body),
        body_size=None if body is None else len(body),
        key_set=None,
        policy=None,
        dead_letter=reading.id,
        instance=reviewer.name,
        extra={"review": review},
    )


def _check_reason(reason: str) -> None:
    """Refuse an act without a reason."""
    if not claim_set.is_name(reason) or not reason.strip():
        raise ConfigurationError(f"a reason is required: one line of 1 to {claim_set.MAX_NAME} characters")
