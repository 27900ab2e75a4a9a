"""Rehearses, redrives and discards dead letters of a frozen selection, one after the other, losing none.

A redrive checks the letter's digest and id, signs a release that waives what is needed and no more, and lets
today's verifier judge the very message that it will send. Then it publishes the message and waits for the broker's
confirm, records the act in the audit, and removes the letter. A discard records and removes.

A crash between two of these steps leaves a letter that is acted on again. The consumer recognises the second copy
as a duplicate. No order of the steps is free of both: the other one could lose a message.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

from mqauth.audit import record as audit_records
from mqauth.audit.record import AuditRecord
from mqauth.clock import Clock, uuid7
from mqauth.errors import ConfigurationError, MalformedMessage, MqauthError, Reason, Unavailable
from mqauth.flow import Flow, call, either
from mqauth.judging.pipeline import Pipeline, Verdict
from mqauth.letters.release import Hop, Release, without_release
from mqauth.review.index import Filter, Index, Selection
from mqauth.review.judge import Judge, Originals, rows, why_unsound, word_for
from mqauth.review.letter import UNKNOWN, Letter, Reading, read, redeliverable
from mqauth.review.letterbox import BATCH, LetterBox
from mqauth.review.terms import Account, Pace, Reviewer, Terms, check_reason
from mqauth.wire.message import Message

UNSENDABLE: Final = "unsendable"
_SLICE: Final = 0.2
"""Seconds after which a waiting act looks whether it was cancelled."""
Act = Callable[[Letter, Reading], Flow[None]]


class _RefusedError(MqauthError):
    """The letter is left where it is; ``str`` is the reason, in one word."""


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
    """Return what a redrive would make of letters of an index: how many are ``accepted``, and why others are not.

    Nothing is sent, claimed or recorded. The arguments are those of ``redrive`` and ``judge``.
    """
    today, counts = Judge(guard, originals), Counter[str]()
    for row in rows(index, wanted, cancelled):
        try:
            reading = yield from today.recalled(index.reading(row.number))
            yield from _released(today, reading, terms)
            counts["accepted"] += 1
        except _RefusedError as refusal:
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

    A letter is refused and left where its original would not be accepted today, even with the release.

    Args:
        box: where the letters are.
        selection: frozen; letters that came later are not touched.
        guard: the consumer's pipeline; its verifier, policy and release authorities judge.
        terms: of the releases.
        reviewer: who acts, and the audit.
        pace: rate, progress, cancel.
        originals: where the originals of reference letters are read again; without it they are refused.
    """
    today = Judge(guard, originals)

    def act(letter: Letter, reading: Reading) -> Flow[None]:
        reading = yield from today.recalled(reading)
        message, release = yield from _released(today, reading, terms)
        try:
            yield from call(box.publish, message)
        except MalformedMessage as error:
            raise _RefusedError(UNSENDABLE) from error
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
    check_reason(reason)

    def act(letter: Letter, reading: Reading) -> Flow[None]:
        record = _record(reviewer, reading, "discarded", reason, None)
        yield from call(reviewer.audit.write, record)
        yield from call(box.remove, letter)

    return (yield from _sweep(box, selection, act, pace or Pace(), reviewer.clock))


def _released(today: Judge, reading: Reading, terms: Terms) -> Flow[tuple[Message, Release]]:
    """Return the message to send, with the release under which today's verifier accepts it.

    The release waives as little as possible: it begins with nothing, and each verdict that the terms may waive
    adds one reason. Only of a letter rejected as ``replayed`` that reason is waived at once, since a verdict
    without claims does not find it.
    """
    if reading.original is None or not reading.sound:
        raise _RefusedError(why_unsound(reading))
    scope = today.scope_for(reading, terms.scope)
    past = today.past(reading.original).and_then(_hop(reading, today.clock))
    original = redeliverable(reading.original, scope=scope, now=today.clock.now())
    waived = terms.waive & {Reason.REPLAYED} if reading.reason == Reason.REPLAYED else frozenset[Reason]()
    while True:
        try:
            message, release = terms.releaser.release(
                original, letter=reading.id, scope=scope, reason=terms.reason, waive=waived, past=past
            )
        except (MalformedMessage, ConfigurationError) as error:
            plain = yield from today.verdict(without_release(original), scope=scope)
            accepted = plain.verdict is Verdict.ACCEPTED
            raise _RefusedError(UNSENDABLE if accepted else word_for(plain)) from error
        outcome = yield from today.verdict(message, scope=scope)
        if outcome.verdict is Verdict.ACCEPTED:
            return message, release
        if outcome.reason is None or outcome.reason not in terms.waive or outcome.reason in waived:
            raise _RefusedError(word_for(outcome))
        waived |= {outcome.reason}


def _hop(reading: Reading, clock: Clock) -> Hop:
    """Return the letter that is released now, as the next dead letter of the message will tell of it."""
    reason = None if reading.reason == UNKNOWN else Reason(reading.reason)
    return Hop(letter=reading.id, reason=reason, time=int(clock.now()))


def _sweep(box: LetterBox, selection: Selection, act: Act, pace: Pace, clock: Clock) -> Flow[Account]:
    """Pass over a letter box and act on the letters of a selection. The pass is ended whatever happens."""
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


def _one(letter: Letter, act: Act, account: Account) -> Flow[None]:
    try:
        yield from act(letter, read(letter))
    except _RefusedError as refusal:
        account.refused[str(refusal)] += 1
    except Unavailable:
        account.failed += 1
        raise
    else:
        account.done += 1


def _wait(due: float, pace: Pace, clock: Clock) -> Flow[float]:
    """Wait until a letter is due, and return the time at which the next one is."""
    if pace.rate is None:
        return due
    woken: Callable[[float], bool | Awaitable[bool]] = pace.cancelled.wait
    while (left := due - clock.monotonic()) > 0 and not pace.cancelled.is_set():
        yield from either(woken, _slept, min(left, _SLICE))
    return max(due, clock.monotonic()) + 1 / pace.rate


async def _slept(seconds: float) -> bool:
    await asyncio.sleep(seconds)
    return False


def _end(box: LetterBox, account: Account) -> Flow[None]:
    """End the pass, which gives back what was not removed."""
    try:
        yield from call(box.browse, 0)
    except Unavailable as error:
        account.error = account.error or str(error)


def _record(reviewer: Reviewer, reading: Reading, act: str, reason: str, release: Release | None) -> AuditRecord:
    """Return the audit record of one act. What the token claims is verified only where a release was signed."""
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
        reason=None if reading.reason == UNKNOWN else reading.reason,
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
