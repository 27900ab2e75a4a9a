"""A dead-letter queue or topic: what a broker has to do, passes over it, and today's verdict on its letters.

Judging claims, records and removes nothing. The original of a *reference* letter was too large for a letter. The
letter names a place and its own id, and the original is read again at that place where the broker still has it.
Whoever may write to the dead-letter queue can name any place, so what is found there counts only if it has that
very id, which a digest of its content is part of.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

from mqauth.errors import MalformedMessage, require
from mqauth.flow import Flow, call
from mqauth.judging.pipeline import Outcome, Pipeline, Verdict
from mqauth.letters.dead_letter import letter_id
from mqauth.letters.release import NO_PAST, Past, without_release
from mqauth.review.index import ALL, Filter, Index
from mqauth.review.letter import Letter, Reading, proven, read, redeliverable
from mqauth.wire import json_form
from mqauth.wire.message import NO_ORIGIN, Message

BATCH = 200
"""Letters asked for at once."""


class LetterBox(Protocol):
    """A dead-letter queue or topic, read in passes. What is not removed stays. Synchronous or asynchronous.

    There is one pass at a time. A crash in the middle of one changes nothing but what was removed.
    """

    @property
    def name(self) -> str:
        """Name of the queue or topic."""

    @property
    def destination(self) -> str:
        """Its canonical destination, to which imported letters are published."""

    @property
    def expected(self) -> int:
        """About how many letters there were when the pass began; 0 where the broker does not say."""

    def browse(self, limit: int, /) -> Sequence[Letter] | Awaitable[Sequence[Letter]]:
        """Return the next letters of the pass; none at its end, after which a new pass begins.

        Args:
            limit: return at most so many; 0 ends the pass and returns none.

        Raises:
            Unavailable: ``dead_letter_unavailable``, the broker cannot be asked; the pass has ended.
        """

    def depth(self) -> int | Awaitable[int]:
        """Return how many letters are open by the broker's own counts, reading none of them; no pass is under way.

        Raises:
            Unavailable: ``dead_letter_unavailable``, the broker cannot be asked.
        """

    def publish(self, message: Message, /) -> Awaitable[None] | None:
        """Publish a message to its destination, and return once the broker has confirmed it.

        Raises:
            Unavailable: ``dead_letter_unavailable``: unroutable, refused, timed out or not reachable.
            MalformedMessage: the client cannot send it so that it arrives as it is.
        """

    def remove(self, letter: Letter, /) -> Awaitable[None] | None:
        """Remove the very letter that this pass returned, or mark it as resolved.

        Raises:
            Unavailable: ``dead_letter_unavailable``; the letter may come again.
        """


def fill(
    index: Index,
    box: LetterBox,
    *,
    progress: Callable[[int], None] = lambda count: None,
    cancelled: threading.Event | None = None,
) -> Flow[None]:
    """Read a letter box into an index, which is ``complete`` at the end of the pass.

    Args:
        index: empty; others may read it meanwhile, and it keeps what was read where the pass fails.
        box: the letter box.
        progress: called with the number of letters read so far.
        cancelled: set from any thread, it ends the pass after the letters at hand.

    Raises:
        Unavailable: the broker cannot be asked.
    """
    try:
        while letters := (yield from call(box.browse, BATCH)):
            index.expected = box.expected
            index.add(letters)
            progress(index.size)
            # With all letters read only the end of the pass is left, and an index that is complete is worth more.
            if (
                cancelled is not None
                and cancelled.is_set()
                and index.size != index.expected
            ):
                yield from call(box.browse, 0)
                return
    except Exception:
        yield from call(box.browse, 0)
        raise
    index.complete = True


def take_in(box: LetterBox, forms: Iterable[Any]) -> Flow[int]:
    """Publish exported letters to a letter box, each confirmed, and return how many.

    Args:
        box: of the same broker that they came from.
        forms: letters in the JSON form of a message.

    Raises:
        MalformedMessage: one is no letter, or is not intact; those before it are published.
        Unavailable: the broker refused one, or could not be reached.
    """
    count = 0
    for count, form in enumerate(forms, 1):
        message = json_form.from_form(form)
        require(
            read(Letter(message=message)).intact,
            f"letter {count}: no dead letter with a valid id and digest",
            MalformedMessage,
        )
        yield from call(
            box.publish, replace(message, destination=box.destination, origin=NO_ORIGIN)
        )
    return count


ONLY_REFERENCE: Final = "reference_only"
GONE: Final = "original_gone"
CHANGED: Final = "original_changed"
_PLACE: Final = re.compile(
    r"((?!\.{1,2}/)[A-Za-z0-9._-]{1,249})/([0-9]{1,9})/([0-9]{1,18})(?:@.{0,90})?"
)


Originals = Callable[[str, int, int], Any]
"""Returns the record of a topic, a partition and an offset, ``None`` where there is none any more.

Synchronous or asynchronous. It raises ``Unavailable`` where the broker cannot be asked.
"""


def recalled(reading: Reading, originals: Originals | None) -> Flow[Reading]:
    """Return the reading of a reference letter with its original read again; any other reading as it is.

    Where there is no such original the reading says why in its ``fault``: ``reference_only``, ``original_gone`` or
    ``original_changed``.

    Args:
        reading: of any letter.
        originals: where to look; ``None`` where the broker keeps nothing, as RabbitMQ.
    """
    if reading.form != "reference" or reading.original is not None:
        return reading
    named = _PLACE.fullmatch(reading.source)
    if originals is None or named is None:
        return replace(reading, fault=ONLY_REFERENCE)
    fetched = yield from call(originals, named[1], int(named[2]), int(named[3]))
    if fetched is None:
        return replace(reading, fault=GONE)
    original = replace(
        fetched, origin=replace(fetched.origin, scope=reading.consumer), native=None
    )
    if (
        original.malformed is not None
        or letter_id(original, reading.consumer) != reading.id
    ):
        return replace(reading, fault=CHANGED)
    return proven(reading, original)


class Judge:
    """Gives today's verdict on letters.

    Args:
        guard: the consumer's pipeline, of which verifier and policy are asked.
        originals: where the originals of reference letters are read again, if the broker keeps them.
    """

    def __init__(self, guard: Pipeline, originals: Originals | None = None) -> None:
        self.clock, self.originals, self._scope = guard.clock, originals, guard.scope
        self._rollout = guard.rollout
        # Without a store nothing is claimed, so that judging leaves no trace.
        self._guard = Pipeline(
            verifier=guard.verifier, policy=guard.policy, replay=None, clock=guard.clock
        )

    def scope_for(self, reading: Reading, wanted: str | None = None) -> str:
        """Return the scope that a letter is judged and released for: the wanted, the pipeline's, or its own."""
        return wanted or self._scope or reading.consumer

    def verdict(self, message: Message, *, scope: str) -> Flow[Outcome]:
        """Judge a message as if it were delivered now, without asking whether it was handled before."""
        return (
            yield from self._guard.judge(
                self._guard.receive(
                    redeliverable(message, scope=scope, now=self.clock.now())
                )
            )
        )

    def admits(self, original: Message) -> bool:
        """Return whether an original may go back without a proof: below ``enforce``, or exempt."""
        return self._rollout is not None and self._rollout.admits(original)

    def past(self, original: Message) -> Past:
        """Return the dead letters that a message had before, as far as a release on it proves them."""
        authorities = self._guard.verifier.release
        return (
            NO_PAST
            if authorities is None
            else authorities.past(original, self.clock.now())
        )

    def today(self, reading: Reading) -> Flow[str]:
        """Return what would become of a letter's original today: ``accepted``, a reason, or a cause.

        Of a letter whose message was handled without a proof it is ``unverified`` where it would be so again.
        """
        reading = yield from recalled(reading, self.originals)
        if reading.original is None or not reading.intact:
            return why_not_intact(reading)
        # A release that the message came with is not one that a redrive would sign.
        bare = without_release(reading.original)
        if reading.rung is not None and self.admits(bare):
            return Verdict.UNVERIFIED.value
        return verdict_word(
            (yield from self.verdict(bare, scope=self.scope_for(reading) or "default"))
        )


def why_not_intact(reading: Reading) -> str:
    """Return in one word why a letter has no original that could be sent."""
    return (
        reading.fault
        if reading.fault in (ONLY_REFERENCE, GONE, CHANGED)
        else "letter_not_intact"
    )


def verdict_word(outcome: Outcome) -> str:
    """Return an outcome in one word: ``accepted``, a reason, or a cause."""
    why = None if outcome.verdict is Verdict.ACCEPTED else outcome.reason or outcome.cause
    return str(why or outcome.verdict.value)


def judge(
    index: Index,
    guard: Pipeline,
    wanted: Filter = ALL,
    *,
    originals: Originals | None = None,
    progress: Callable[[int], None] = lambda seen: None,
    cancelled: threading.Event | None = None,
) -> Flow[Counter[str]]:
    """Judge letters of an index by today's verifier, note each verdict in the index, and return the counts.

    Args:
        index: of the letters.
        guard: the consumer's pipeline.
        wanted: which letters.
        originals: where the originals of reference letters are read again, if the broker keeps them.
        progress: called with the number of letters judged so far.
        cancelled: set from any thread, it stops before the next letter.
    """
    today = Judge(guard, originals)

    def verdict_on(number: int) -> Flow[str]:
        verdict = yield from today.today(index.reading(number))
        index.note(number, verdict)
        return verdict

    return (yield from count_verdicts(index, wanted, verdict_on, progress, cancelled))


def count_verdicts(
    index: Index,
    wanted: Filter,
    verdict_on: Callable[[int], Flow[str]],
    progress: Callable[[int], None],
    cancelled: threading.Event | None,
) -> Flow[Counter[str]]:
    """Return how many letters of an index get each verdict, in one word.

    The index is read a page at a time: with 100,000 letters not all of them are in memory.

    Args:
        index: of the letters.
        wanted: which letters.
        verdict_on: returns the verdict on one letter.
        progress: called with the number of letters so far.
        cancelled: set from any thread, it stops before the next letter.
    """
    after, counts = 0, Counter[str]()
    while page := index.page(wanted, after=after, limit=BATCH):
        after = page[-1].number
        for row in page:
            if cancelled is not None and cancelled.is_set():
                return counts
            counts[(yield from verdict_on(row.number))] += 1
            progress(counts.total())
    return counts
