"""Today's verdict on dead letters: nothing is claimed, recorded or removed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from mqauth.flow import Flow
from mqauth.judging.pipeline import Outcome, Pipeline, Verdict
from mqauth.letters.release import NO_PAST, Past, without_release
from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.review.filters import ALL, Filter
from mqauth.review.index import Index, Row
from mqauth.review.letter import Reading, redeliverable
from mqauth.review.letterbox import BATCH
from mqauth.review.recall import FAULTS, Originals, recalled
from mqauth.wire.message import Message

UNSOUND: Final = "letter_unsound"


class _Untouched:
    """A replay store that claims nothing: judging leaves no trace."""

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Say that nothing was claimed before."""
        return ClaimStatus.FRESH

    def confirm(self, request: ClaimRequest, /) -> None:
        """Do nothing."""

    def release(self, request: ClaimRequest, /) -> None:
        """Do nothing."""


class Judge:
    """Today's verdict on letters, without claims, records or letters.

    Args:
        guard: the consumer's pipeline, of which verifier and policy are asked.
        originals: where the originals of mere references are read again, if anywhere.
    """

    def __init__(self, guard: Pipeline, originals: Originals | None = None) -> None:
        self.clock = guard.clock
        self._originals = originals
        self._scope = guard.scope
        self._guard = Pipeline(
            verifier=guard.verifier, policy=guard.policy, replay=_Untouched(), clock=guard.clock
        )

    def scope_for(self, reading: Reading, wanted: str | None = None) -> str:
        """Return the scope a letter is judged and released for: as asked, as configured, or its own."""
        return wanted or self._scope or reading.scope

    def verdict(self, message: Message, *, scope: str) -> Flow[Outcome]:
        """Judge a message as if it were delivered now; of replay nothing is known."""
        there = redeliverable(message, scope=scope, now=self.clock.now())
        return (yield from self._guard.judge(self._guard.receive(there)))

    def past(self, original: Message) -> Past:
        """Return the dead letters a message had before this one, as far as a release on it proves them."""
        authorities = self._guard.verifier.release
        return NO_PAST if authorities is None else authorities.past(original, self.clock.now())

    def recalled(self, reading: Reading) -> Flow[Reading]:
        """Return the reading with its original, read again where the letter is only a reference."""
        return (yield from recalled(reading, self._originals))

    def today(self, reading: Reading) -> Flow[str]:
        """Return what would become of a letter's original today: ``accepted``, a reason, or a cause."""
        reading = yield from self.recalled(reading)
        if reading.original is None or not reading.sound:
            return why_unsound(reading)
        bare = without_release(reading.original)  # of a release it came with before nothing is left
        return said((yield from self.verdict(bare, scope=self.scope_for(reading) or "default")))


def why_unsound(reading: Reading) -> str:
    """Return in one word why a letter has no original that could be sent."""
    return reading.fault if reading.fault in FAULTS else UNSOUND


def said(outcome: Outcome) -> str:
    """Return a verdict in one word."""
    if outcome.verdict is Verdict.ACCEPTED:
        return str(outcome.verdict.value)
    return str(outcome.reason or outcome.cause or outcome.verdict.value)


def judge(
    index: Index,
    guard: Pipeline,
    wanted: Filter = ALL,
    *,
    originals: Originals | None = None,
    progress: Callable[[int], None] = lambda seen: None,
    cancelled: threading.Event | None = None,
) -> Flow[Counter[str]]:
    """Run today's verifier over letters of an index, note each verdict in it, and return the counts.

    Nothing in the queue is touched, and nothing is claimed.

    Args:
        index: of the letters.
        guard: the consumer's pipeline.
        wanted: which letters.
        originals: where the originals of mere references are read again, if anywhere.
        progress: called with the number of letters judged so far.
        cancelled: set, from any thread, to stop before the next letter.
    """
    today, counts = Judge(guard, originals), Counter[str]()
    for row in rows(index, wanted, cancelled):
        verdict = yield from today.today(index.reading(row.number))
        index.note(row.number, verdict)
        counts[verdict] += 1
        progress(counts.total())
    return counts


def rows(index: Index, wanted: Filter, cancelled: threading.Event | None) -> Iterator[Row]:
    """Yield letters of an index a page at a time, until cancelled."""
    after = 0
    while page := index.page(wanted, after=after, limit=BATCH):
        after = page[-1].number
        for row in page:
            if cancelled is not None and cancelled.is_set():
                return
            yield row
