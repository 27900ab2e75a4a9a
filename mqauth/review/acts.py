"""Rehearses, redrives and discards dead letters of a frozen selection, one after the other, losing none.

A redrive checks the letter's digest and id, signs a release that waives what is needed and no more, and lets
today's verifier judge the very message that it will send. Then it publishes the message and waits for the broker's
confirm, records the act in the audit, and removes the letter. A discard records and removes.

A crash between two of these steps leaves a letter that is acted on again. The consumer recognises the second copy
as a duplicate. Removing the letter first could lose the message instead.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import tenacity

from mqauth.audit.file import AuditFile
from mqauth.audit.record import (
    AuditRecord,
    AuditSink,
    broker_fields,
    sha256,
    token_fields,
)
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, uuid7
from mqauth.errors import (
    Cause,
    ConfigurationError,
    MalformedMessage,
    MqauthError,
    Reason,
    Unavailable,
    refusing,
    require,
)
from mqauth.flow import Flow, call
from mqauth.judging.pipeline import Pipeline, Verdict
from mqauth.letters.authorities import Releaser
from mqauth.letters.release import WAIVABLE, Hop, Release, without_release
from mqauth.logs import harmless
from mqauth.review.index import ALL, Filter, Index
from mqauth.review.letter import UNKNOWN, Reading, read, redeliverable
from mqauth.review.letterbox import (
    BATCH,
    Judge,
    LetterBox,
    Originals,
    count_verdicts,
    recalled,
    verdict_word,
    why_not_intact,
)
from mqauth.wire import claims as claim_set
from mqauth.wire.message import Message

REDRIVE: Final = "redrive"
DISCARD: Final = "discard"
ACTS: Final = (REDRIVE, DISCARD)


def waivable(names: Iterable[str]) -> frozenset[Reason]:
    """Return the reasons that a release may waive, by their names.

    Raises:
        ConfigurationError: no release may waive one of them, or there is no such reason.
    """
    wanted = frozenset(names)
    require(wanted <= set(WAIVABLE), f"a release may waive {', '.join(WAIVABLE)}")
    return frozenset(map(Reason, wanted))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An act that a reviewer wants, before it is rehearsed and confirmed.

    Args:
        act: ``redrive`` or ``discard``.
        wanted: which letters.
        reason: why, one line; it stands in releases and in the audit.
        waive: reasons that a release may waive where a letter needs it.
        scope: consumer group or queue of the releases; by default each letter's own.
        rate: letters a second at most; ``None`` for no limit.
        reviewer: who acts.

    Raises:
        ConfigurationError: an unknown act, no reason, something that no release may waive, a rate of 0, or no name
            of a reviewer.
    """

    act: str
    wanted: Filter = ALL
    reason: str
    waive: frozenset[Reason] = frozenset()
    scope: str | None = None
    rate: float | None = None
    reviewer: str

    def __post_init__(self) -> None:
        # Whatever is no discard would be carried out as a redrive.
        require(self.act in ACTS, f"an act must be {' or '.join(ACTS)}")
        require(
            claim_set.is_name(self.reason) and self.reason.strip(),
            f"a reason is required: one line of 1 to {claim_set.MAX_NAME} characters",
        )
        waivable(self.waive)
        require(
            self.rate is None or self.rate > 0, "rate must be above 0 letters a second"
        )
        require(
            claim_set.is_name(self.reviewer),
            f"a reviewer must be text of 1 to {claim_set.MAX_NAME} characters",
        )


UNSENDABLE: Final = "unsendable"


@dataclass(slots=True, kw_only=True)
class Account:
    """What became of the letters of a selection; ``selected`` is always the sum of the other counts.

    Args:
        selected: letters in the frozen selection.
        done: acted on and removed.
        refused: left where they are, by reason.
        failed: the broker or the audit failed on it, which ends the act; it is left, or acted on again.
        gone: in the selection but no longer in the queue.
        error: what failed, one line.
        cancelled: whether the act was cancelled.
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
        """Letters that were not looked at: the act was cancelled, or failed on an earlier one."""
        return self.selected - self.done - self.refused.total() - self.failed - self.gone

    def as_dict(self) -> dict[str, Any]:
        """Return the account as JSON values."""
        return {
            "selected": self.selected,
            "done": self.done,
            "refused": dict(self.refused),
            "failed": self.failed,
            "gone": self.gone,
            "left": self.left,
            "error": self.error,
            "cancelled": self.cancelled,
        }


class _RefusedError(MqauthError):
    """The letter is left where it is; ``str`` is the reason, in one word."""


def rehearse(
    index: Index,
    plan: Plan,
    *,
    guard: Pipeline,
    releaser: Releaser,
    originals: Originals | None = None,
    progress: Callable[[int], None] = lambda seen: None,
    cancelled: threading.Event | None = None,
) -> Flow[Counter[str]]:
    """Return what a redrive would make of letters of an index: how many are ``accepted``, and why others are not.

    Nothing is sent, claimed or recorded. The arguments are those of ``act`` and ``judge``.
    """
    today = Judge(guard, originals)

    def verdict_on(number: int) -> Flow[str]:
        try:
            yield from _returned(
                today,
                (yield from recalled(index.reading(number), originals)),
                plan,
                releaser,
            )
        except _RefusedError as refusal:
            return str(refusal)
        return "accepted"

    return (
        yield from count_verdicts(index, plan.wanted, verdict_on, progress, cancelled)
    )


def act(
    box: LetterBox,
    selection: Counter[str],
    plan: Plan,
    *,
    audit: AuditSink,
    guard: Pipeline | None = None,
    releaser: Releaser | None = None,
    originals: Originals | None = None,
    clock: Clock = SYSTEM_CLOCK,
    progress: Callable[[int], None] = lambda seen: None,
    cancelled: threading.Event | None = None,
) -> Flow[Account]:
    """Carry out a plan on the letters of a selection, and return what became of them.

    A redrive sends their originals back, each with a release, and removes the letters. A letter is refused and
    left where its original would not be accepted today, even with the release. The letter of a message that was
    handled without a proof goes back as it was, without a release, and only while such messages still reach a
    handler. A discard removes the letters for good.

    Args:
        box: where the letters are.
        selection: frozen; letters that came later are not touched.
        plan: why, what may be waived, for which scope, how fast, and who acts.
        audit: durable; no letter is removed without a record.
        guard: the consumer's pipeline; its verifier, policy and release authorities judge what is redriven.
        releaser: signs with the reviewer's key; a redrive needs both.
        originals: where the originals of reference letters are read again; without it they are refused.
        clock: tells the time.
        progress: called with the number of letters looked at so far.
        cancelled: set from any thread, it stops before the next letter.
    """
    stop = cancelled or threading.Event()
    account, wanted = Account(selected=selection.total()), selection.copy()
    due, wait = clock.monotonic(), cast(Callable[[float], Any], stop.wait)
    today = (
        None
        if plan.act == DISCARD
        else Judge(require(guard, "a redrive needs a pipeline"), originals)
    )
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
                # A waiting act looks five times a second whether it was cancelled.
                while (
                    plan.rate is not None
                    and (left := due - clock.monotonic()) > 0
                    and not stop.is_set()
                ):
                    yield from call(wait, min(left, 0.2), twin=asyncio.sleep)
                due = max(due, clock.monotonic()) + 1 / (plan.rate or math.inf)
                if stop.is_set():
                    account.cancelled = True
                    break
                wanted[mark] -= 1
                try:
                    # Redriven, or without a judge discarded.
                    reading, release = read(letter), None
                    if today is not None:
                        reading = yield from recalled(reading, today.originals)
                        message, release = yield from _returned(
                            today,
                            reading,
                            plan,
                            require(releaser, "a redrive needs a key"),
                        )
                        with refusing(MalformedMessage, UNSENDABLE, _RefusedError):
                            yield from call(box.publish, message)
                    # The record is durable before the letter goes: no letter may vanish without a trace.
                    yield from call(audit.write, _record(plan, reading, clock, release))
                    yield from call(box.remove, letter)
                    account.done += 1
                except _RefusedError as refusal:
                    account.refused[str(refusal)] += 1
                except Unavailable:
                    account.failed += 1
                    raise
                progress(account.selected - account.left)
    except Unavailable as error:
        account.error = str(error)
    except Exception:
        yield from _end(box, account)
        raise
    yield from _end(box, account)
    return account


def _returned(
    today: Judge, reading: Reading, plan: Plan, releaser: Releaser
) -> Flow[tuple[Message, Release | None]]:
    """Return the message to send, with the release under which today's verifier accepts it.

    There is no release for what was handled without a proof. A release waives as little as possible: it begins
    with nothing, and each verdict that the terms may waive adds one reason. Only of a letter rejected as
    ``replayed`` that reason is waived at once, since a verdict without claims does not find it.
    """
    original = require(
        reading.original if reading.intact else None,
        why_not_intact(reading),
        _RefusedError,
    )
    scope, now = today.scope_for(reading, plan.scope), today.clock.now()
    if reading.rung is not None:
        plain = without_release(
            redeliverable(original, scope=scope, now=now, proven=False)
        )
        # Nothing that a release may waive would prove who sent it.
        require(today.admits(plain), "enforced", _RefusedError)
        return plain, None
    # The letter that is released now, as the next dead letter of the message will tell of it.
    past = today.past(original).and_then(
        Hop(
            letter=reading.id,
            reason=None if reading.reason == UNKNOWN else Reason(reading.reason),
            time=int(now),
        )
    )
    original = redeliverable(original, scope=scope, now=now)
    waived = (
        plan.waive & {Reason.REPLAYED}
        if reading.reason == Reason.REPLAYED
        else frozenset[Reason]()
    )
    while True:
        try:
            message, release = releaser.release(
                original,
                letter=reading.id,
                scope=scope,
                reason=plan.reason,
                waive=waived,
                past=past,
            )
        except (MalformedMessage, ConfigurationError) as error:
            outcome = yield from today.verdict(without_release(original), scope=scope)
            raise _RefusedError(
                UNSENDABLE
                if outcome.verdict is Verdict.ACCEPTED
                else verdict_word(outcome)
            ) from error
        outcome = yield from today.verdict(message, scope=scope)
        if outcome.verdict is Verdict.ACCEPTED:
            return message, release
        require(
            outcome.reason in plan.waive - waived, verdict_word(outcome), _RefusedError
        )
        waived |= plan.waive & {outcome.reason}


def _end(box: LetterBox, account: Account) -> Flow[None]:
    """End the pass, which gives back what was not removed."""
    try:
        yield from call(box.browse, 0)
    except Unavailable as error:
        account.error = account.error or str(error)


def _record(
    plan: Plan, reading: Reading, clock: Clock, release: Release | None
) -> AuditRecord:
    """Return the audit record of one act. What the token claims is verified only where a release was signed."""
    original = reading.original
    body = None if original is None else original.body
    released = (
        {}
        if release is None
        else {
            "release": release.jti,
            "authority": harmless(release.iss),
            "waive": sorted(release.waive),
            "until": release.exp,
        }
    )
    return AuditRecord(
        id=uuid7(clock, SYSTEM_RANDOMNESS),
        time=clock.now(),
        verdict="discarded" if plan.act == DISCARD else "redriven",
        reason=None if reading.reason == UNKNOWN else reading.reason,
        detail=plan.reason,
        scope=reading.scope if release is None else release.scope,
        broker={"destination": reading.destination}
        if original is None
        else broker_fields(original),
        token=token_fields(
            None, reading.kid, reading.alg, reading.claims, verified=release is not None
        ),
        body_sha256=None if body is None else sha256(body),
        body_size=None if body is None else len(body),
        key_set=None,
        policy=None,
        dead_letter=reading.id,
        instance=plan.reviewer,
        extra={
            "review": {
                "reviewer": harmless(plan.reviewer),
                "mark": reading.mark,
                "intact": reading.intact,
                **({} if reading.rung is None else {"rung": reading.rung}),
                **released,
            }
        },
    )


class SharedAuditFile:
    """Appends the records of acts to one file and one chain from several processes, which take turns.

    Each has the file for one record only, so a console that runs for weeks leaves it to the reviewer's commands.

    Args:
        path: as of ``AuditFile``.
        patience: seconds to wait for another writer.

    Raises:
        ConfigurationError: as for ``AuditFile``.
    """

    def __init__(self, path: Path, *, patience: float = 5.0) -> None:
        self._path, self._patience = path, patience
        self._opened().close()

    def write(self, record: AuditRecord, /) -> None:
        """Append one record and make it durable.

        Raises:
            Unavailable: ``audit_unavailable``: the disk refused, or another process keeps the file.
        """
        with (
            refusing(
                ConfigurationError, str, partial(Unavailable, Cause.AUDIT_UNAVAILABLE)
            ),
            self._opened() as file,
        ):
            file.write(record)

    def _opened(self) -> AuditFile:
        # Again for as long as another writer has the lock.
        locked = tenacity.retry_if_exception(
            lambda error: isinstance(error.__cause__, BlockingIOError)
        )
        until, often = (
            tenacity.stop_after_delay(self._patience),
            tenacity.wait_fixed(0.01),
        )
        return tenacity.Retrying(retry=locked, stop=until, wait=often, reraise=True)(
            AuditFile, self._path
        )
